"""The gap between two arms at equal loss, of curves whose gap is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.base.names import TIED, UNTIED
from tying_utils.experiments.tuned_lens import gap_at_equal_loss, gap_by_steps, gap_without

GAP = ["low", "high", "gap", "gap_at_low"]


def tables(curves: dict[tuple[str, int], dict[float, float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of lenses and one of losses from {(arm, seed): {loss: KL at the input}}, longest training first."""
    points = [
        {"corpus": "python", "arm": arm, "seed": seed, "length": length, "validation_loss": loss, "kl_bits": bits}
        for (arm, seed), curve in curves.items()
        for length, (loss, bits) in enumerate(curve.items())
    ]
    frame = pd.DataFrame(points)
    layers = [frame.assign(layer=layer, kl_bits=frame["kl_bits"] + 100 * layer) for layer in (1, 0)]
    return pd.concat(layers).drop(columns="validation_loss"), frame.drop(columns="kl_bits")


def line(at: list[float], slope: float, offset: float) -> dict[float, float]:
    return {loss: slope * loss + offset for loss in at}


def test_two_lines_an_exact_distance_apart():
    curves = {(TIED, 0): line([2, 3, 5], -1, 9), (UNTIED, 0): line([1, 2.5, 4], -1, 7)}
    (row,) = gap_at_equal_loss(*tables(curves))[GAP].to_numpy()
    assert row == pytest.approx([2, 4, 2, 2])


def test_two_lines_that_are_not_parallel():
    """4 L - 3 less 2 L + 1 is 2 L - 4: on 3 to 5 its mean is 4, at 3 it is 2."""
    curves = {(TIED, 7): line([6, 3, 4.5], 4, -3), (UNTIED, 7): line([5, 2], 2, 1)}
    table = gap_at_equal_loss(*tables(curves))
    assert list(table.columns) == ["seed", *GAP] and table["seed"].tolist() == [7]
    assert table[GAP].to_numpy()[0] == pytest.approx([3, 5, 4, 2])


def test_what_differs_by_loss_alone_has_no_gap_at_equal_loss():
    curve = {2.0: 5.0, 3.0: 1.0, 4.0: 2.0, 6.0: 0.0}
    curves = {(TIED, 0): curve, (UNTIED, 0): {loss: bits for loss, bits in curve.items() if loss != 6}}
    assert (gap_at_equal_loss(*tables(curves))[["gap", "gap_at_low"]] == 0).all(axis=None)


def test_nothing_is_extrapolated_and_seeds_are_apart():
    curves = {
        (TIED, 0): line([4, 5], 1, 0),
        (UNTIED, 0): line([2, 3.9], 1, 0),
        (TIED, 1): line([4, 5], 1, 0),
        (UNTIED, 1): line([2, 4], 1, -3),
        (TIED, 2): line([4, 5], 1, 0),
    }
    table = gap_at_equal_loss(*tables(curves)).set_index("seed")
    assert table.loc[[0, 2]].isna().all(axis=None), "no overlap, and no other arm"
    assert table.loc[[1]].to_numpy()[0] == pytest.approx([4, 4, 3, 3]), "they touch in one loss"


def test_another_layer_can_be_asked_for():
    curves = {(TIED, 0): line([2, 3], 0, 9), (UNTIED, 0): line([2, 3], 0, 7)}
    lens, losses = tables(curves)
    lens.loc[(lens["layer"] == 1) & (lens["arm"] == TIED), "kl_bits"] += 1
    assert [gap_at_equal_loss(lens, losses, layer)["gap"].sum() for layer in (0, 1)] == pytest.approx([2, 3])


def test_lengths_of_equal_loss_are_one_point():
    lens, losses = tables({(TIED, 0): {2.0: 4.0, 2.5: 6.0, 3.0: 1.0}, (UNTIED, 0): line([2, 3], 0, 1)})
    losses["validation_loss"] = losses["validation_loss"].replace(2.5, 2.0)
    assert gap_at_equal_loss(lens, losses)[GAP].to_numpy()[0] == pytest.approx([2, 3, 2, 4])


@given(
    losses=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True), min_size=2, max_size=2),
    slope=st.integers(-5, 5),
    apart=st.integers(-5, 5),
)
def test_lines_of_any_lengths(losses, slope, apart):
    tied, untied = losses
    curves = {(TIED, 0): line(tied, slope, apart), (UNTIED, 0): line(untied, slope, 0)}
    low, high, *gaps = gap_at_equal_loss(*tables(curves))[GAP].to_numpy()[0]
    if max(min(tied), min(untied)) > min(max(tied), max(untied)):
        assert np.isnan([low, high, *gaps]).all()
    else:
        assert (low, high) == (max(min(tied), min(untied)), min(max(tied), max(untied)))
        assert gaps == pytest.approx([apart, apart], abs=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        lambda lens, losses: (lens, losses.iloc[:-1]),
        lambda lens, losses: (lens, pd.concat([losses, losses.tail(1)])),
        lambda lens, losses: (lens, losses.assign(validation_loss=np.nan)),
        lambda lens, losses: (lens, losses.drop(columns="length")),
    ],
    ids=["none", "two", "nan", "no length"],
)
def test_losses_that_do_not_belong_to_the_lenses_are_refused(change):
    pair = change(*tables({(TIED, 0): line([2, 3], 0, 9), (UNTIED, 0): line([2, 3], 0, 7)}))
    with pytest.raises(ValueError, match=r"^losses: one finite validation_loss is needed for each corpus, arm, seed"):
        gap_at_equal_loss(*pair)


@pytest.mark.parametrize(("name", "column"), [("lens", "kl_bits"), ("losses", "validation_loss"), ("losses", "seed")])
def test_a_missing_column_is_named(name, column):
    lens, losses = tables({(TIED, 0): line([2, 3], 0, 9)})
    pair = {"lens": lens, "losses": losses}
    pair[name] = pair[name].drop(columns=column)
    with pytest.raises(ValueError, match=rf"^{name}: the columns \['{column}'\] are needed"):
        gap_at_equal_loss(pair["lens"], pair["losses"])


def test_the_gap_by_the_lenss_own_training_is_of_the_input_and_each_text():
    rows = [
        {"place": "here", "tokens_per_weight": 20.0, "arm": arm, "seed": seed, "lens": lens, "steps": steps, "text": text}
        | {"layer": layer, "kl_bits": 1.0 + (arm == TIED) * (gap + 0.1 * seed) + 5 * layer}
        for lens, steps, gap in (("stopped", 25, 4.0), ("stopped", 100, 2.0), ("converged", 100, 0.5))
        for text in ("held-out", "training")
        for layer in (0, 1)
        for arm in (UNTIED, TIED)
        for seed in (0, 1)
    ]
    found = gap_by_steps(pd.DataFrame(rows)).set_index(["trained", "text", "seed"])["gap"]
    assert [*found.index.unique("trained")] == ["25 steps", "100 steps", "to its end"] and len(found) == 12
    assert found["to its end", "held-out", 1] == pytest.approx(0.6) and found["25 steps", "training", 0] == pytest.approx(4)


def test_the_gap_without_a_part_is_of_seeds_that_have_both_arms():
    rows = [
        {"tokens_per_weight": 20.0, "arm": arm, "seed": seed, "layer": layer, "how": how, "increase": increase}
        for layer, how, rises in ((-1, "mean", (1, 3)), (0, "mean", (2, 1)), (0, "zero", (5, 5)))
        for arm, increase in zip((UNTIED, TIED), rises, strict=True)
        for seed in ((0, 1) if arm == TIED else (0,))
    ]
    found = gap_without(pd.DataFrame(rows))
    assert [*zip(found["without"], found["how"], found["seed"], found["gap"], strict=True)] == [
        ("the embedding", "mean", 0, 2),
        ("layer 1", "mean", 0, -1),
        ("layer 1", "zero", 0, 0),
    ]
