"""The claims at other places: effects put into tables come out of them, lines cross 0 where they do, and smoke runs agree."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from synthetic_places import BIAS, CHANGE, DEPTH, EQUAL, LENS, PRICE, SHARE, doublings, synthetic_places

from tying_utils.base.names import PLACE, PYTHON, TIED, TWO_ROLE, UNTIED
from tying_utils.experiments import figures, places
from tying_utils.experiments.alignment import output_bias
from tying_utils.experiments.gradients import share_over
from tying_utils.experiments.ground_truth import purity_gap
from tying_utils.experiments.places import EFFECTS, SCALED, crossing, judged, trends
from tying_utils.experiments.tables import tied_less_untied, tuned
from tying_utils.study import Results
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig


@settings(max_examples=20)
@given(
    widths=st.sets(st.sampled_from((16, 32, 48, 64, 96, 128)), min_size=1, max_size=4),
    vocabularies=st.sets(st.sampled_from((300, 512, 2048, 8192)), min_size=1, max_size=3),
    seeds=st.integers(1, 4),
)
def test_effects_put_in_come_out(widths: set[int], vocabularies: set[int], seeds: int) -> None:
    tables = synthetic_places("grid", tuple(range(seeds)), tuple(widths), tuple(vocabularies))
    frame = places.effects(tables, "grid")
    assert len(frame) == len(widths) * len(vocabularies) * seeds
    assert list(dict.fromkeys(frame["place"])) == [f"d {d}, V {v}" for v, d in itertools.product(vocabularies, widths)]
    bias = BIAS + np.array([doublings(row["d_model"], row["vocab_size"]) for row in frame.to_dict("records")])
    put_in = {"output_bias": bias, "bias_change": CHANGE, "early_share": SHARE, "early_update_share": SHARE + 0.1}
    for name, expected in {**put_in, "lens_gap": LENS, "price": PRICE}.items():
        np.testing.assert_allclose(frame[name], expected, rtol=1e-9, err_msg=name)
    tables_of = 2 * frame["vocab_size"] * frame["d_model"]
    trunk = DEPTH * 16 * frame["d_model"] ** 2
    np.testing.assert_array_equal(frame["parameters"], trunk + tables_of)
    np.testing.assert_allclose(frame["share"], tables_of / (trunk + tables_of))
    shape = EQUAL + 0.4 * np.log((trunk + tables_of) / (trunk + tables_of / 2))
    np.testing.assert_allclose(frame["equal_shape"], shape, rtol=1e-9)
    for _, part in frame.groupby("vocab_size"):
        largest = (DEPTH * 16 * part["d_model"] ** 2 + part["vocab_size"] * part["d_model"]).max()
        np.testing.assert_array_equal(part["equal_parameters"].isna(), part["parameters"] > largest, "nothing extrapolated")
    np.testing.assert_allclose(frame["equal_parameters"].dropna(), EQUAL, rtol=1e-9)
    assert frame["purity_gap"].isna().all()


def test_architectures_are_named_and_judged_corpus_by_corpus() -> None:
    frame = places.effects(synthetic_places("architecture", spread=1e-3), "architecture")
    expected = set(itertools.product((PYTHON, TWO_ROLE), ("OLMo", "GPT-2")))
    assert set(zip(frame["corpus"], frame["place"], strict=True)) == expected
    assert frame.groupby("corpus")["purity_gap"].count().to_dict() == {PYTHON: 0, TWO_ROLE: 6}
    table = judged(frame)
    words = table.groupby("claim")["verdict"].agg(set)
    assert words["C3"] == {"equivalent"} and all(words[claim] == {"supported"} for claim in words.index.drop("C3"))
    assert set(table["claim"]) == {effect.claim for effect in EFFECTS.values()}
    estimates = table.query("claim == 'C1 roles'")
    assert set(estimates["corpus"]) == {TWO_ROLE} and estimates["estimate"].to_numpy() == pytest.approx([0.2, 0.2], abs=0.01)
    counts = places.counted(table)
    assert len(counts) == 7 * 2 + 1 and counts["claim"].iloc[0].startswith("C1: A tied table is nearer")
    assert counts["supported"].iloc[0] == counts["places"].iloc[0] == 2
    assert {counts["lowest"].iloc[0].split(" ")[1], counts["highest"].iloc[0].split(" ")[1]} == {"(OLMo)", "(GPT-2)"}


def test_trends_are_the_slopes_put_in() -> None:
    frame = places.effects(synthetic_places("grid", spread=1e-4), "grid")
    frame.loc[frame["place"] == "d 32, V 512", "output_bias"] = np.nan  # what is missing must not tilt the plane
    table = trends(frame).set_index(["effect", "per"])
    bias = EFFECTS["output_bias"].words
    for axis, slope, word in (("d_model", -0.02, "falls"), ("vocab_size", 0.01, "rises")):
        row = table.xs((bias, f"doubling of {axis}")).to_dict()
        assert row["estimate"] == pytest.approx(slope, abs=1e-3) and row["it"] == word
    price = table.xs(EFFECTS["price"].words)
    assert set(price["it"]) == {"open"} and (price["seeds"] == 3).all()


def line(points: list[float], roots: list[float], slope: float) -> pd.DataFrame:
    """An effect that crosses 0 at each seed's root, along log10 of x."""
    rows = [(seed, x, slope * (np.log10(x) - root)) for seed, root in enumerate(roots) for x in points]
    return pd.DataFrame(rows, columns=["seed", "x", "y"])


@example(roots=[1.182210126473612] * 2, slope=-0.1)  # which Python's power rounds up, and numpy's down
@given(roots=st.lists(st.floats(0.1, 2.9), min_size=1, max_size=5), slope=st.sampled_from((-2.0, -0.1, 0.1, 2.0)))
def test_lines_cross_where_they_do(roots: list[float], slope: float) -> None:
    found = crossing(line([1.0, 10.0, 30.0, 1000.0], roots, slope), "x", "y")
    assert found.at and found.crossed == found.seeds == len(roots)
    assert np.log10(found.at.mean) == pytest.approx(np.mean(roots), abs=1e-6)
    assert found.range == pytest.approx((1, 1000))
    assert found.ends == pytest.approx((-slope * np.mean(roots), slope * (3 - np.mean(roots))))
    if len(roots) > 1:
        assert 1 - 1e-9 <= found.at.low <= found.at.mean <= found.at.high <= 1000 + 1e-6
        assert str(found).endswith(f"n = {len(roots)} seeds)")


def test_an_interval_of_the_crossing_is_that_of_the_seeds_and_ends_where_the_range_does() -> None:
    near = crossing(line([1.0, 1000.0], [1.0, 1.1, 1.2], 1.0), "x", "y")
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert near.at and np.log10([near.at.low, near.at.high]) == pytest.approx([1.1 - half, 1.1 + half], abs=1e-6)
    far = crossing(line([1.0, 1000.0], [0.2, 1.5, 2.8], 1.0), "x", "y")
    assert far.at and (far.at.low, far.at.high) == pytest.approx((1, 1000))


def test_what_does_not_cross_is_not_extrapolated() -> None:
    above = crossing(line([1.0, 1000.0], [-0.1, -0.2], 0.5), "x", "y")
    assert above.at is None and above.crossed == 0
    assert str(above) == "not in our range, 1 to 1e+03 (+0.075 to +1.575 at its ends)"
    some = crossing(line([1.0, 1000.0], [-0.1, 1.0], 0.5), "x", "y")
    assert some.at is None and "the lines of 1 of 2 seeds cross" in str(some)
    level = line([1.0, 1000.0], [0.0], 0.0).assign(y=0.0)
    assert crossing(level, "x", "y").at is None
    with pytest.raises(ValueError, match="x: at least 2 different values with y are needed, got 1"):
        crossing(line([5.0], [0.0, 1.0], 1.0), "x", "y")


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group: 'size' is unknown; choose one of architecture, grid"):
        places.effects({}, "size")


# On runs


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Results:
    """The smoke profile, whose runs at other places are trained when a test first asks for their tables."""
    return places.results("smoke", progress=False)


def test_every_place_arm_and_seed_is_measured_once(smoke: Results) -> None:
    losses = smoke["grid_losses"]
    own = smoke.profile.config(TIED, 0)
    assert set(losses["d_model"]) == {16, 32} and set(losses["vocab_size"]) == {300, 384} and set(losses["arch"]) == {"olmo"}
    assert set(losses["n_layers"]) == {own.n_layers} and set(losses["arm"]) == {UNTIED, TIED, SCALED}
    assert len(losses) == len(losses.drop_duplicates([*PLACE, "arm", "seed"])) == 4 * 3 * 2
    architectures = smoke["architecture_losses"].groupby("corpus")["arch"].agg(set)
    assert architectures.to_dict() == {TWO_ROLE: {"olmo", "gpt2"}}
    shares = smoke["grid_share"]
    assert set(shares["arm"]) == {TIED} and list(shares["step"].unique()) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def test_the_manifest_says_in_which_vocabulary_each_run_read_the_text(smoke: Results) -> None:
    study = smoke.studies[PYTHON].complete(["grid_losses"])
    assert study.manifest is not None
    runs, texts = study.manifest["runs"], study.manifest["corpora"]
    assert {texts[run["corpus"]]["vocab_size"] for run in runs.values()} == {300, 384}
    for key, run in runs.items():
        assert run_store.run_key(TrainConfig.from_dict(run["config"]), texts[run["corpus"]]) == key


def test_the_own_place_agrees_with_the_tables_of_the_ordinary_arms(smoke: Results) -> None:
    study = smoke.studies[PYTHON]
    own = places.effects(study, "grid").query("place == 'd 32, V 384'").set_index("seed")
    ordinary = {
        "output_bias": output_bias(study["alignment"].query("kind == 'orthogonal'")).set_index("seed")["output_bias"],
        "early_share": share_over(study["gradients"], 0, 0.1),
        "early_update_share": share_over(study["gradients"], 0, 0.1, "output_update_share"),
        "lens_gap": tied_less_untied(tuned(study["lens"], 0), "kl_bits"),
        "equal_shape": tied_less_untied(study["losses"], "validation_loss"),
    }
    for name, values in ordinary.items():
        np.testing.assert_allclose(own[name], values.loc[own.index], rtol=1e-4, atol=1e-5, err_msg=name)
    roles = places.effects(smoke.studies[TWO_ROLE], "architecture").query("place == 'OLMo'").set_index("seed")["purity_gap"]
    plain = smoke["roles"].query("arm == 'tied' and agreement == 0")
    np.testing.assert_allclose(roles, purity_gap(plain).set_index("seed")["purity_gap"].loc[roles.index], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name.startswith("10_")])
def test_figures_draw_from_runs(smoke: Results, name: str) -> None:
    home = figures.FIGURES[name].corpus
    drawn = figures.publish(name, smoke if home is None else smoke.studies[home])
    assert "n = 2 seeds" in drawn.get_supxlabel() and not plt.get_fignums()
    assert (figures.folder(name, "smoke", home) / f"{name}.png").exists()


def test_a_profile_without_other_places_shows_the_committed_ones() -> None:
    assert places.results("gpu").profile.name == "laptop" and places.results("quick").profile.name == "quick"
    with pytest.raises(ValueError, match="PROFILE: 'huge'"):
        places.results("huge")
