"""The benchmarks at toy sizes: every way gives the same values, every table has its columns, nothing unequal is timed."""

import dataclasses
import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import alignment, checkpoints, growth, lens, neighbors, share, suite, training, turns
from benchmarks import figures as pictures
from tying_utils.base import paths
from tying_utils.corpora import two_role
from tying_utils.experiments import figures
from tying_utils.measures.alignment import gaussian_chance
from tying_utils.pages import costs
from tying_utils.training.config import TrainConfig

ROOT = Path(costs.__file__).parents[2]
TOY = {"V": 320, "d": 16, "layers": 1, "tokens": 128}
CONTESTS = [contest for module in (training, alignment, neighbors, share) for contest in module.contests(True)]


def toy(contest: turns.Contest, **changes: Any) -> turns.Contest:
    """`contest` at a size that takes a moment; in this process alone."""
    known = {**TOY, "steps": 3, "runs": 2, "permutations": 4}  # of which the null makes the same as the other way
    size = {name: known[name] for name in contest.size}
    return dataclasses.replace(contest, **{"size": size, "rounds": 3, "memory": False, **changes})


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: f"{contest.part}: {contest.what}")
def test_every_way_gives_the_same_values_and_a_row(contest: turns.Contest):
    rows = pd.DataFrame(turns.held(toy(contest)))
    assert list(rows.columns) == list(turns.COLUMNS)
    assert list(rows["other"]) == list(contest.ways[1:])
    assert (rows["rounds"] == 3).all() and (rows["low"] > 0).all()
    assert (rows["low"] <= rows["ratio"]).all() and (rows["ratio"] <= rows["high"]).all()


def test_the_published_hooks_recompute_the_gradient_of_the_output_path():
    values = {way: training.step(way, **TOY)() for way in (training.SPLIT, training.ORDINARY, training.HOOKS)}
    assert set(values[training.HOOKS]) == {"loss", "published_input_norm", "output_norm"}
    values[training.HOOKS]["output_norm"] *= 1.01
    with pytest.raises(AssertionError, match="published hooks: output_norm"):
        training.same_step(values)


def test_full_sizes_are_those_of_the_paper():
    full = [contest for module in (training, alignment, neighbors, share) for contest in module.contests(False)]
    sizes = {(contest.part, contest.size["V"], contest.size["d"]) for contest in full}
    assert {("step", 50_304, 128), ("alignment", 50_304, 2_048), ("neighbors", 50_304, 2_048)} <= sizes


def unequal(way: str, V: int) -> turns.Turn:
    return lambda: {"ours": 1.0, "other": 1.1}[way]


def test_unequal_values_give_no_ratio():
    contest = turns.Contest("p", "w", ("ours", "other"), unequal, {"V": 2}, alignment.same)
    for warm in (0, 1):
        with pytest.raises(AssertionError):
            turns.held(dataclasses.replace(contest, warm=warm))


def test_ratios_are_of_ours_over_the_other_pair_by_pair():
    contest = turns.Contest("p", "w", ("ours", "a", "b"), unequal, {"V": 2}, alignment.same, note="n")
    rows = turns.against(contest, "seconds", {"ours": [1, 4, 9], "a": [1, 2, 3], "b": [2, 2, 2]})
    assert [(row["other"], row["ratio"], row["low"], row["high"]) for row in rows] == [("a", 2, 1.5, 2.5), ("b", 2, 1.25, 3.25)]
    assert rows[0]["V"] == 2 and np.isnan(rows[0]["d"]) and rows[0]["ours_value"] == 4


def test_turns_alternate():
    order: list[str] = []
    seconds = turns.in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 2, warm=1)
    assert "".join(order) == "cba" + "abc" + "cba"
    assert [len(values) for values in seconds.values()] == [2, 2, 2]


def test_peak_memory_is_of_a_process_of_its_own():
    little, much = (turns.alone(turns.peak_of, partial(partial, torch.ones), {"size": (n,)}) for n in (2**18, 26 * 2**20))
    assert 95 * 2**20 < much - little < 110 * 2**20  # bytes: 103 MiB more


def test_errors_of_a_process_are_raised_here():
    with pytest.raises(RuntimeError, match="ValueError: kind: one of"):
        turns.alone(gaussian_chance, 2, 1, "oblique")


def test_checkpoints_are_read_alike_by_both_ways():
    rows = pd.DataFrame(checkpoints.read(512, 64, 1, rounds=1, shard="300KB"))
    assert list(rows["quantity"]) == ["seconds", "memory", "bytes"]
    assert not rows["what"].str.contains("1 file$").any()  # it was sharded
    assert rows.set_index("quantity")["ratio"]["bytes"] < 1


@pytest.fixture
def model(home: Path) -> TrainConfig:
    language = two_role.Settings(length=70_000)
    sizes: dict[str, Any] = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 32}
    return TrainConfig(corpus="two-role", language=language, vocab_size=304, **sizes, steps=20, device="cpu")


def test_a_lens_that_does_not_come_near_says_so_and_one_that_does_counts(model: TrainConfig):
    rows = lens.race(model, steps=20, rounds=2, cap=0, first=1)
    assert [row["other"] for row in rows] == [lens.ONE_BY_ONE, lens.RECIPE]
    assert all("not within 1 % at the cap" in row["note"] and row["rounds"] == 1 for row in rows)
    assert lens._equal(lambda steps: steps, lambda made: 8 / made, 1.0, 1, 1e9) == (8, 1.0)
    assert lens._equal(lambda steps: steps, lambda made: 8 / made, 1.0, 1, -1) == (1, 8.0)


def test_lenses_of_all_ways_come_to_the_same(model: TrainConfig, home: Path):
    trained, corpus = lens.train(model, progress=False).model(), model.load_corpus()
    tokens = torch.from_numpy(corpus.windows("train", 1000, 32))
    held_out = corpus.windows("validation", 20, 32)
    ours = lens.measured.train_lens(trained, tokens, progress=False)
    start, *kl = (
        float(lens.measured.kl_by_layer(trained, made, held_out)[0])
        for made in (lens.identity(trained), ours, lens.one_by_one(trained, tokens, 600), lens.recipe(trained, tokens, 600))
    )
    assert kl[1] == pytest.approx(kl[0], rel=0.05) and kl[2] < 0.5 * start


def test_growth_of_a_known_cost(monkeypatch: pytest.MonkeyPatch):
    def seconds(turns_of: dict[int, Any], rounds: int, warm: int) -> dict[int, list[float]]:
        return {factor: [scale * factor**2 for scale in (1.0, 3.0, 2.0)] for factor in turns_of}

    monkeypatch.setattr(turns, "in_turns", seconds)
    rows = pd.DataFrame(growth.grown(growth.Grid("w", hungry_size, {"V": 4}, ["V"]), (1, 2, 4), 3, memory=False))
    assert list(rows.columns) == list(growth.COLUMNS)
    assert list(rows["ratio"]) == [1, 4, 16] and list(rows["V"]) == [4, 8, 16]
    np.testing.assert_allclose(rows[["slope", "slope_low", "slope_high"]], 2)


def hungry_size(V: int) -> turns.Turn:
    return lambda: V


@pytest.mark.parametrize("grid", growth.grids(), ids=lambda grid: grid.what)
def test_every_grid_builds(grid: growth.Grid):
    assert set(grid.axes) == set(grid.base)
    grid.build(**{name: TOY[name] for name in grid.base})()


def tables(slopes: float = 1.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A suite's two tables, made up."""
    contest = turns.Contest("alignment", "linear alignment", ("align", "lstsq"), unequal, TOY, alignment.same)
    ratios = turns.against(contest, "seconds", {"align": [1, 2, 3], "lstsq": [4, 4, 4]})
    ratios += turns.against(contest, "memory", {"align": [1], "lstsq": [2]})
    row: dict[str, Any] = {"what": "tuned lens", "axis": "V", **TOY, "quantity": "seconds", "rounds": 3, **turns.machine()}
    row |= {"slope": slopes, "slope_low": slopes - 0.1, "slope_high": slopes + 0.1}
    grown = []
    for axis, quantity, factor in itertools.product(turns.SIZES, ("seconds", "memory"), (1, 2, 4)):
        ratio = factor**slopes
        own = {"axis": axis, "quantity": quantity, "factor": factor}
        grown.append({**row, **own, "ratio": ratio, "low": ratio * 0.9, "high": ratio * 1.1})
    return pd.DataFrame(ratios, columns=list(turns.COLUMNS)), pd.DataFrame(grown, columns=list(growth.COLUMNS))


def test_tables_are_kept_replaced_by_part_and_shown(home: Path, monkeypatch: pytest.MonkeyPatch):
    ratios, grown = tables()
    assert costs.benchmarks() == "Not measured yet: `make bench`."
    assert pictures.render() == []
    monkeypatch.setattr(suite, "rows", lambda part, quick: grown if part == "growth" else ratios.assign(part=part))
    for part in ("alignment", "lens", "alignment", "growth", "growth"):
        suite.measure(part, False)
    monkeypatch.setattr(suite, "rows", lambda part, quick: ratios.assign(device="a GPU"))
    suite.measure("alignment", False)
    store = pictures.store()
    held = pd.read_csv(store.folder / "ratios.csv")
    assert list(held.columns) == list(turns.COLUMNS) and len(held) == 3 * len(ratios)
    assert set(store.manifest["tables"]["ratios"]["parts"]) == {"alignment on cpu", "lens on cpu", "alignment on a GPU"}  # type: ignore[index]
    assert len(pd.read_csv(store.folder / "growth.csv")) == len(grown)
    block = costs.benchmarks()
    size, ways = "V 320, d 16, layers 1, tokens 128", "align / lstsq"
    assert f"| {size} | {ways} | 0.500 (0.375 to 0.625) | 0.500 |  | 3 | cpu, 1 threads |" in block
    assert "| tuned lens | seconds | cpu | 1.00 (0.90 to 1.10) |" in block
    pdf, png = pictures.render()
    assert pdf.is_file() and figures.source(png) == {"benchmarks/growth": store.checksums["benchmarks/growth"]}
    assert paths.figures("benchmarks") == png.parent


@pytest.mark.parametrize("slopes", [0.0, 1.0, 2.0])
def test_the_figure_keeps_its_slopes_clear_of_the_curves(slopes: float):
    figure = pictures.growth({"growth": tables(slopes)[1]})
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_legend().get_window_extent()  # type: ignore[union-attr]
        for line in ax.get_lines():
            points = ax.transData.transform(np.column_stack([np.asarray(d, float) for d in line.get_data()]))
            assert not any(box.contains(*point) for point in points)


def test_the_committed_figure_belongs_to_the_committed_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    store = pictures.store()
    if "growth" not in (store.manifest or {}).get("tables", {}):
        pytest.skip("growth has not been measured here")
    digest = store.checksums["benchmarks/growth"]
    assert figures.source(ROOT / "figures" / "benchmarks" / "growth.png") == {"benchmarks/growth": digest}


def test_the_command_knows_its_parts():
    asked = subprocess.run([sys.executable, "-m", "benchmarks", "--only", "weather"], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 2 and "weather" in asked.stderr and "neighbors" in asked.stderr
