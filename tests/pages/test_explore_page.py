"""explore.html as text: what it says, that it loads nothing, and that its numbers are those of the tables."""

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from synthetic_sweep import INPUT, OUTPUT, SEEDS, STEPS, synthetic_sweep

from tying_utils.pages import explore_page
from tying_utils.study import sweep

CORPORA = sweep.corpora("laptop")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("explore") / "explore.html"
    explore_page.write(page)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


@pytest.fixture(scope="module")
def charts(page: BeautifulSoup) -> dict[str, Any]:
    """What the page hands to Vega, by the id of the place."""
    script = page.find_all("script")[-1].get_text()
    found, _ = json.JSONDecoder().raw_decode(script, script.index("Object.entries(") + len("Object.entries("))
    return found


def rows(chart: dict[str, Any]) -> list[dict[str, str]]:
    """The table of a chart."""
    return [*csv.DictReader(io.StringIO(*chart["datasets"].values()))]


def test_title_words_and_the_way_back(page: BeautifulSoup) -> None:
    assert page.title and page.title.get_text().startswith("Turn a gradient")
    (words,) = page.find_all("p")
    for said in ("away from U", "towards E", "0.13 (Python source)", "0.52 (two-role language) tokens per weight", "hundredth"):
        assert said in words.get_text()
    assert [link["href"] for link in page.find_all("a")] == ["index.html"]


def test_every_input_has_a_label_and_the_swept_stops(page: BeautifulSoup) -> None:
    for corpus in CORPORA:
        of = sweep.Sweep.of(sweep.study("laptop", corpus))
        for path, scales in (("input", of.input_scales), ("output", of.output_scales)):
            (slider,) = page.find_all("input", id=f"{corpus}-{path}")
            stops = str(slider["data-stops"]).split()
            assert [float(stop) for stop in stops] == scales and int(str(slider["max"])) == len(scales) - 1
            assert page.find("label", attrs={"for": slider["id"]})
        (choice,) = page.find_all("select", id=f"{corpus}-seed")
        assert [option.get_text() for option in choice.find_all("option")] == ["mean", *map(str, of.seeds)]


def test_nothing_is_loaded(text: str, page: BeautifulSoup, charts: dict[str, Any]) -> None:
    assert not page.find_all(["link", "img", "iframe"]) and not page.find_all(src=True)
    assert not re.search(r"@import|url\(", str(page.style))
    assert "default-src 'none'" in str(page.find("meta", attrs={"http-equiv": "Content-Security-Policy"}))
    assert '"url":' not in json.dumps(charts)
    assert len(text.encode()) < 2_500_000


@pytest.mark.parametrize("corpus", CORPORA)
def test_numbers_are_those_of_the_tables(corpus: str, charts: dict[str, Any]) -> None:
    of = sweep.Sweep.of(sweep.study("laptop", corpus))
    choices = {"mean": slice(None)} | {str(seed): [row] for row, seed in enumerate(of.seeds)}
    seen = set()
    for row in rows(charts[f"{corpus}-bias"]):
        pair, seeds = (of.input_scales[int(row["input"])], of.output_scales[int(row["output"])]), choices[row["seed"]]
        seen.add((pair, row["seed"]))
        bias, loss = of.bias(pair)[seeds, -1], of.loss(pair)[seeds]
        for name, value in {"bias": bias, "loss": loss, "bias_tied": of.bias((1, 1))[seeds, -1]}.items():
            assert float(row[name]) == pytest.approx(value.mean(), rel=1e-3, abs=1e-4)
        assert (row["bias_low"] == "") == (len(bias) == 1)
    assert len(seen) == len(of.conditions) * len(choices)


@pytest.mark.parametrize(("chart", "source"), [("alignment", "output"), ("alignment", "input"), ("share", "share")])
def test_curves_are_those_of_the_tables(chart: str, source: str, charts: dict[str, Any]) -> None:
    of = sweep.Sweep.of(sweep.study("laptop", "python"))
    name = {"input": "with E (input)", "output": "with U (output)", "share": "share"}[source]
    for pair in ((10.0, 1.0), (0.1, 0.3)):
        place = str(of.input_scales.index(pair[0])), str(of.output_scales.index(pair[1]))
        mine = [row for row in rows(charts[f"python-{chart}"]) if (row["input"], row["output"], row["curve"]) == (*place, name)]
        values = of.share(pair) if source == "share" else of.alignment(pair, source, "corrected")
        for row, expected in (("mean", values.mean(0)), ("3", values[3])):
            drawn = [float(one["value"]) for one in mine if one["seed"] == row]
            assert drawn == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_intervals_are_of_the_mean_over_seeds() -> None:
    frame = explore_page.numbers(synthetic_sweep())
    assert len(frame) == len(INPUT) * len(OUTPUT) * (1 + len(SEEDS))
    one = frame[(frame["input_scale"] == 10) & (frame["output_scale"] == 1) & (frame["seed"] == "mean")].iloc[0]
    assert one["loss"] == pytest.approx(1.31) and one["loss_tied"] == pytest.approx(1.21)
    half = 4.302653 * 0.01 / np.sqrt(3)  # Student's t at 2 degrees of freedom
    assert (one["loss_low"], one["loss_high"]) == pytest.approx((1.31 - half, 1.31 + half))
    drawn = explore_page.curves(synthetic_sweep())
    steps = len(STEPS) * 2 + len(STEPS) - 1
    assert len(drawn) == len(frame) * steps and (drawn["low"] <= drawn["value"]).all()


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_without_the_library_it_says_what_to_install(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{missing}.*pip install '\.\[site\]'"):
        explore_page.write(tmp_path / "explore.html")
    assert not [*tmp_path.iterdir()]
