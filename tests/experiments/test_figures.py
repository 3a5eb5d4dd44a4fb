"""Figures from synthetic tidy tables: drawn, labelled, saved whole, and tied to the tables that they show."""

import base64
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from matplotlib.text import Text
from PIL import Image
from synthetic_tables import synthetic, synthetic_public

from tying_utils.base import files, paths
from tying_utils.base.names import PYTHON, TIED, TWO_ROLE
from tying_utils.experiments import alignment, claims, figures, gradients, overview, scaling, sizes, style, tuned_lens
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.looks import ARMS, BLACK, BLUE, CHANCE, CORPORA, GREEN, LOOKS, ORANGE, SOURCE, in_order
from tying_utils.experiments.public import Public
from tying_utils.experiments.tables import with_scaling
from tying_utils.measures import statistics
from tying_utils.study import axis, profiles
from tying_utils.study.profiles import SCALES
from tying_utils.study.study import Results

matplotlib.use("Agg")


class OnDisk(dict):
    """What `figures` asks of a `study.Study`: tables, a profile, and their checksums."""

    def __init__(self, tables: dict[str, pd.DataFrame], profile: str, corpus: str = PYTHON) -> None:
        super().__init__(tables)
        self.profile = profiles.get(profile, corpus)
        folder = paths.results(profile) / corpus
        folder.mkdir(parents=True)
        entries, made = {}, {"date": "2020-01-01", "python": "3.11", "device": "cpu"}
        for name, table in tables.items():
            digest = files.write_with(folder / f"{name}.csv", lambda p, t=table: t.to_csv(p, index=False))
            entries[name] = {"sha256": digest, "made": made}
        self.checksums = {f"{corpus}/{name}": entry["sha256"] for name, entry in entries.items()}
        files.write_json(folder / "manifest.json", {"tables": entries, "runs": {}, "corpora": {}})


class OfPublicModels(dict):
    """Tables of the public models themselves, as `public.Public` says it."""

    profile = SimpleNamespace(corpus="public")


FORESTS = ("01_alignment", "01_position", "08_alignment", "09_changes", "10_architectures", "11_probe")
FEW = [(name, seeds) for name in ("00_overview", "01_control", "03_lens") for seeds in (1, 2)]


IN_SHORT = [name for name, figure in figures.FIGURES.items() if figure.corpus != axis.NAME]  # the others: test_length


@pytest.mark.parametrize(("name", "seeds"), [*((name, 3) for name in IN_SHORT), *FEW])
def test_every_figure_draws_from_the_tables_it_names(name: str, seeds: int):
    of_public = figures.FIGURES[name].corpus == "miniatures"
    known = synthetic_public() if of_public else synthetic(seeds)
    drawn = figures.draw(name, {table: known[table] for table in figures.FIGURES[name].needs})
    assert drawn.get_figwidth() in (style.ONE_COLUMN, style.TWO_COLUMNS)
    if name == "00_verdicts":  # a row per claim: its sentence, and its forest
        assert all(bool(ax.get_xlabel()) != any(text.get_text() for text in ax.texts if not ax.axison) for ax in drawn.axes)
    elif name in FORESTS:  # rows are named at the left
        assert all(ax.get_title() and ax.get_xlabel() for ax in drawn.axes)
        assert all(label.get_text() for label in drawn.axes[0].get_yticklabels())
    else:
        assert all(ax.get_ylabel() and (ax.get_xlabel() or ax.get_label() == "<colorbar>") for ax in drawn.axes)
    if name != "06_language" and not of_public:  # one language, or one model of each kind: nothing averaged
        assert f"n = {seeds} seed" in drawn.get_supxlabel()
    assert not plt.get_fignums()
    drawn.draw_without_rendering()
    titles, labels = [ax.title for ax in drawn.axes if ax.get_title()], [ax.yaxis.label for ax in drawn.axes]
    texts = [*drawn.legends[0].get_texts(), *drawn.texts, *titles, *labels, *(ax.xaxis.label for ax in drawn.axes)]
    for box in (text.get_window_extent() for text in texts if text.get_text()):  # nothing leaves the page
        assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1 and drawn.bbox.y0 <= box.y0 and box.y1 <= drawn.bbox.y1
    within = [text for ax in drawn.axes for text in ax.get_children() if isinstance(text, Text)]
    letters = [text for text in within if len(text.get_text()) == 1 and text.get_fontweight() == "bold"]
    assert not any(letter.get_window_extent().overlaps(title.get_window_extent()) for letter in letters for title in titles)
    assert not any(title.get_window_extent().overlaps(label.get_window_extent()) for title in titles for label in labels)


def test_means_and_intervals_are_those_of_the_seeds():
    bias = output_bias(with_scaling(synthetic(), "alignment").query("kind == 'orthogonal'"))
    panel = figures.draw("00_overview", synthetic()).axes[3]
    mean = next(line for line in panel.lines if line.get_marker() == LOOKS[TIED].marker)
    expected = [statistics.mean_interval(rows["output_bias"]) for _, rows in bias.groupby("input_scale")]
    assert np.allclose(np.asarray(mean.get_xdata()), SCALES)
    assert np.allclose(np.asarray(mean.get_ydata()), [interval.mean for interval in expected])
    bars = np.array([segment for c in panel.containers for segment in c[2][0].get_segments()])[:, :, 1]
    assert np.allclose(bars, [(interval.low, interval.high) for interval in expected])


def stated(drawn) -> dict[str, str]:
    """The numbers of seeds that a caption states, by corpus; "" for all of them."""
    words = drawn.get_supxlabel().replace("\n", " ")
    numbers = re.search(r"n = (.*?) seed", words)
    assert numbers, words
    by = re.findall(r"(\d+(?: to \d+)?) \(([^)]*)\)", numbers[1])
    return {label: n for n, labels in by for label in labels.split(", ")} or {"": numbers[1]}


@pytest.mark.parametrize("name", ["00_verdicts", "02_cause", "09_changes", "09_pareto", "10_architectures", "11_loss"])
def test_captions_state_the_seeds_of_each_corpus(name: str):
    """From the committed tables, once as they are and once with fewer seeds of the two-role language."""
    results = Results("laptop", only_read=True)
    tables = {table: results[table] for table in figures.FIGURES[name].needs}
    fewer = {
        table: rows[(rows["corpus"] != TWO_ROLE) | (rows["seed"] % 5 < 2)] for table, rows in tables.items() if "seed" in rows
    }
    for given in (tables, tables | fewer):
        counted = next(given[table] for table in ("remedy_losses", "architecture_losses", "transfer_losses", "gradients")
                       if table in given and not (name == "02_cause" and table.startswith("remedy")))  # fmt: skip
        seeds = counted.groupby("corpus")["seed"].nunique()
        found = stated(figures.draw(name, given))
        if seeds.nunique() == 1:
            assert found == {"": str(seeds.iloc[0])}
        else:
            assert found == {CORPORA[str(corpus)].label: str(n) for corpus, n in seeds.items()}


def test_captions_of_lengths_state_the_fewest_and_the_most_seeds():
    lengths = axis.Lengths()
    assert stated(figures.draw("00_rates", lengths)) == {"": ", ".join(
        str(n) for n in lengths["rates"].groupby(["d_model", "tokens_per_weight"])["seed"].nunique())}  # fmt: skip
    shown = lengths["deciles"].query("place == 'packages, d 64' and tokens_per_weight in (0.4, 4.0, 20.0)")
    counts = shown.groupby("tokens_per_weight")["seed"].nunique()
    assert stated(figures.draw("00_deciles", lengths)) == {"": style.from_to(counts)}


def test_a_colour_has_one_meaning():
    four = {BLUE, ORANGE, GREEN, BLACK}
    others = [*CORPORA.values(), *ARMS.values(), *in_order("abcdef"), SOURCE, CHANCE]
    assert not {look.colour for look in others} & four
    assert len({look.marker for look in (*CORPORA.values(), SOURCE)}) == len(CORPORA) + 1


def test_what_the_verdicts_shade_is_the_side_that_the_statistics_claim():
    judged = (alignment, gradients, tuned_lens, scaling, sizes)
    sides = {statistic.id: statistic.claimed for of in judged for statistic, _ in of.evidence(synthetic())}
    assert [*overview.CLAIMED] == [*claims.HEADLINES]
    shown, panels = {}, figures.draw("00_verdicts", synthetic()).axes[1::2]
    for name, ax in zip(overview.CLAIMED, panels, strict=True):
        shade: Any = ax.patches[0]
        null: Any = ax.lines[-1].get_xdata()  # drawn last
        shown[name] = "above" if (shade.get_x() + shade.get_width() / 2) > null[0] else "below"
    assert shown == {name: sides[name] for name in claims.HEADLINES}


def test_miniatures_carry_the_word_in_every_panel_that_shows_one():
    tables = synthetic_public()
    for name, figure in figures.FIGURES.items():
        if figure.corpus == "miniatures" and name != "08_shares":  # counted of the public models
            marked = ["MINIATURE" in [text.get_text() for text in ax.texts] for ax in figures.draw(name, tables).axes]
            assert all(marked if name != "08_lens" else marked[:-1]) and len(marked) > 1
            public = OfPublicModels(tables)
            assert not any("MINIATURE" in [text.get_text() for text in ax.texts] for ax in figures.draw(name, public).axes)


def test_committed_miniatures_have_no_difference_to_a_public_model():
    public = Public("laptop", only_read=True)
    for name in ("alignment", "neighbors", "spectral"):
        assert "difference" in (public.folder / f"{name}.csv").read_text().splitlines()[0], "the file keeps its bytes"
        assert "published" in public[name] and "difference" not in public[name]


def test_what_was_left_out_is_marked_and_named():
    drawn = figures.draw("08_evolution", synthetic_public())
    crosses = [[line for line in ax.lines if line.get_marker() == "x"] for ax in drawn.axes]
    assert [len(lines) for lines in crosses] == [0, 0, 2]  # both tables of Pythia-1B
    assert np.asarray(crosses[2][0].get_xdata()).tolist() == [pytest.approx(2 / 3)]
    assert "Pythia-1B step 200: equal to step 100" in drawn.get_supxlabel().replace("\n", " ")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name: '06_none' is unknown; choose one of 00_deciles"):
        figures.draw("06_none", synthetic())


def test_a_notebook_shows_a_figure_once():
    data, metadata = DisplayFormatter().format(figures.draw("01_control", synthetic()))
    assert set(data) == {"text/plain", "image/png"}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG") and metadata["image/png"]["width"] < 800
    assert metadata["image/png"]["alt"] == "What a start that both arms share adds to the alignment of W with E."


def test_save_writes_pdf_and_png_with_their_source(home: Path):
    study = OnDisk(synthetic(), "smoke")
    pdf, png = figures.save(figures.draw("01_control", study), "01_control", study)
    assert (pdf, png) == tuple(home / "figures" / "smoke" / f"01_control.{kind}" for kind in ("pdf", "png"))
    with Image.open(png) as image:
        assert [round(value) for value in image.info["dpi"]] == [300, 300]
        assert image.width == pytest.approx(300 * style.ONE_COLUMN, abs=1)
    sources = {f"python/{name}": study.checksums[f"python/{name}"] for name in ("alignment", "control_alignment")}
    assert figures.source(png) == sources
    assert sources["python/alignment"].encode() in pdf.read_bytes()
    before = pdf.read_bytes(), png.read_bytes()
    figures.save(figures.draw("01_control", study), "01_control", study)
    assert (pdf.read_bytes(), png.read_bytes()) == before
    Image.new("RGB", (4, 4)).save(png)
    assert figures.source(png) == {}


def test_a_figure_of_another_corpus_than_its_home_lies_below(home: Path):
    study = OnDisk(synthetic(), "smoke", TWO_ROLE)
    assert figures.save(figures.draw("01_cosines", study), "01_cosines", study)[0].parent == home / "figures/smoke/two-role"
    assert figures.save(figures.draw("06_roles", study), "06_roles", study)[0].parent == home / "figures/smoke"


def test_publish_keeps_a_committed_figure_that_belongs_to_its_tables(home: Path):
    study = OnDisk(synthetic(), "laptop")
    kept = home / "figures" / "laptop" / "01_control.png"
    figures.publish("01_control", study)
    kept.write_bytes(kept.read_bytes() + b"as it was committed")
    figures.publish("01_control", study)
    assert kept.read_bytes().endswith(b"as it was committed")
    study.checksums["python/alignment"] = "another"
    figures.publish("01_control", study)
    assert not kept.read_bytes().endswith(b"as it was committed")
    assert figures.source(kept)["python/alignment"] == "another"


def test_publish_always_writes_where_nothing_is_committed(home: Path):
    study = OnDisk(synthetic(), "smoke")
    figures.publish("01_control", study)
    (home / "figures" / "smoke" / "01_control.png").write_bytes(b"")
    figures.publish("01_control", study)
    assert figures.source(home / "figures" / "smoke" / "01_control.png")


def test_render_draws_what_the_profile_allows_and_never_trains(home: Path, monkeypatch: pytest.MonkeyPatch):
    few = {name: figures.FIGURES[name] for name in ("01_cosines", "06_roles", "05_drift")}
    few["00_none"] = style.Drawing(lambda tables: pytest.fail("drawn"), ("no such table",), PYTHON)
    monkeypatch.setattr(figures, "FIGURES", few)
    with pytest.raises(ValueError, match="make reproduce PROFILE=smoke"):
        figures.render("smoke", progress=False)
    for corpus in (PYTHON, TWO_ROLE):
        OnDisk(synthetic(), "smoke", corpus)
    written = figures.render("smoke", progress=False)
    names = [path.name for path in written]
    assert names == [f"{name}.{kind}" for name in ("01_cosines", "06_roles", "05_drift") for kind in ("pdf", "png")]
    assert not paths.runs().exists()
    (paths.results("smoke") / PYTHON / "drift.csv").write_text("damaged")
    with pytest.raises(ValueError, match=r"drift\.csv: missing, or not as its manifest says"):
        figures.render("smoke", progress=False)


def test_the_readers_own_settings_stay_as_they_are():
    code = "import matplotlib; matplotlib.use('Agg'); matplotlib.rcParams['font.size'] = 13; before = dict(matplotlib.rcParams)"
    code += "\nfrom tying_utils.experiments import figures, style; assert dict(matplotlib.rcParams) == before"
    code += "\nwith style.styled(): pass\nassert dict(matplotlib.rcParams) == before; print('kept')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "kept\n"
