"""Remedies at several lengths of training, from losses made up to beat both, one, or neither of what they have to beat."""

import itertools
from typing import Any

import pandas as pd
import pytest
from synthetic_poles import poles

from tying_utils.base.names import EQUAL, PYTHON, SECOND_START, TIED, UNTIED, scaled
from tying_utils.experiments import figures
from tying_utils.experiments.remedies_by_length import (
    ARMS,
    PLACE,
    bias_left,
    judged,
    losses,
    positions,
    tuned_positions,
    winners,
)
from tying_utils.experiments.tables import where

LENGTHS = (0.5, 2.0)
X5 = scaled(5)
AXIS = {UNTIED: 4.0, TIED: 4.2, EQUAL: 4.1, X5: 4.4, SECOND_START: 4.05}
# Beats both at either length; the tied one of equal size alone; neither; both at the longer length alone.
REMEDIED = {"norm-match": (3.9, 3.9), "coupled-adam": (4.05, 4.05), "untie": (4.3, 4.3), "table-rates": (4.2, 3.8)}


def tables(seeds: int = 3) -> dict[str, pd.DataFrame]:
    """What `Lengths` has of one place, and of the seeds and lengths for which there are no remedies."""
    made: dict[str, list[Any]] = {"losses": [], "remedy_losses": []}
    for (at, length), seed in itertools.product(enumerate((*LENGTHS, 20.0)), range(seeds + 1)):
        common = {"corpus": PYTHON, "tokens_per_weight": length, "seed": seed, "input_scale": 1.0, "place": PLACE}
        shift = 0.001 * seed
        made["losses"] += [{**common, "arm": arm, "validation_loss": loss} for arm, loss in AXIS.items()]
        if length in LENGTHS and seed < seeds:
            own = {**REMEDIED, "compact": (4.0, 4.0)}
            made["remedy_losses"] += [{**common, "arm": arm, "validation_loss": loss[at] + shift} for arm, loss in own.items()]
    found = {name: pd.DataFrame(rows) for name, rows in made.items()}
    for name in ("losses", "remedy_losses"):
        tenths = [found[name].assign(decile=tenth, loss=found[name]["validation_loss"] / tenth) for tenth in range(1, 11)]
        found[name.replace("losses", "deciles")] = pd.concat(tenths)
    kinds = {("compact", "input"): 0.1, (X5, "tied"): 0.5, **{(arm, "tied"): 0.7 for arm in ("norm-match", "coupled-adam")}}
    kinds |= {("untie", "input"): 0.9, ("table-rates", "input"): 0.0}
    pole = [poles(seeds, kinds, d_model=64, tokens_per_weight=length, place=PLACE) for length in LENGTHS]
    found["remedy_poles"] = pd.concat(pole)
    axis = [poles(seeds + 1, {(TIED, "tied"): 0.9}, d_model=64, tokens_per_weight=length, place=PLACE) for length in LENGTHS]
    found["poles"] = pd.concat(axis)
    tuned = poles(seeds, {(TIED, "tied"): 0.6}, d_model=64, tokens_per_weight=2.0, place=PLACE)
    found["tuned_poles"] = tuned.assign(arm=tuned["arm"].replace(SECOND_START, UNTIED))
    return found


def test_losses_are_of_the_lengths_and_seeds_that_have_remedies():
    found = losses(tables())
    assert set(found["tokens_per_weight"]) == {*LENGTHS} and set(found["seed"]) == {0, 1, 2}
    assert set(found["arm"]) == {*AXIS, *REMEDIED, "compact"}
    assert set(losses(tables(), "deciles")["decile"]) == {*range(1, 11)}


def test_every_remedy_is_judged_beside_what_it_has_to_beat():
    found = judged(tables())
    assert set(found["arm"]) == {*ARMS} and (found["seeds"] == 3).all()
    row = where(found, arm="coupled-adam", beside=EQUAL, tokens_per_weight=2.0).iloc[0]
    assert row["estimate"] == pytest.approx(-0.05 + 0.001) and row["verdict"] == "supported"
    assert where(found, beside=SECOND_START)["estimate"].tolist() == pytest.approx([0.151, -0.249])
    assert {*where(found, arm="untie", beside=UNTIED)["verdict"]} == {"refuted"}


def test_a_winner_beats_both():
    found = winners(judged(tables()))
    won = found[found["wins"]]
    assert {*zip(won["arm"], won["tokens_per_weight"], strict=True)} == {
        ("norm-match", 0.5), ("norm-match", 2.0), ("table-rates", 2.0)
    }  # fmt: skip
    assert len(found) == len(ARMS) * len(LENGTHS)


def test_a_winner_among_many_has_to_win_by_more():
    made = tables()
    remedied = made["remedy_losses"]
    by_seed = remedied["seed"].map({0: -0.03, 1: 0.0, 2: 0.03})  # alone the interval of norm-match is below 0, just
    made["remedy_losses"] = remedied.assign(
        validation_loss=remedied["validation_loss"] + by_seed * (remedied["arm"] == "norm-match")
    )
    found = judged(made)
    assert {*where(found, arm="norm-match")["verdict"]} == {"supported"}
    own = where(winners(found), arm="norm-match")
    assert not own["wins"].any() and (own["p_holm"] > 0.05).all()


def test_positions_are_of_the_table_that_embeds_the_input():
    found = positions(tables()).groupby("arm")["position"].mean()
    assert found.to_dict() == pytest.approx(
        {"compact": 0.1, X5: 0.5, "norm-match": 0.7, "coupled-adam": 0.7, "untie": 0.9, "table-rates": 0.0}
    )
    assert tuned_positions(tables())["position"].mean() == pytest.approx(0.6)


def test_what_is_left_of_the_bias_is_of_the_tied_tables_own():
    found = bias_left(tables())
    assert set(found["seed"]) == {0, 1, 2} and set(found["tokens_per_weight"]) == {*LENGTHS}
    left = found.groupby("arm")["left"].mean()
    assert left["norm-match"] == pytest.approx((-0.2 + 0.8 * 0.7) / (-0.2 + 0.8 * 0.9)), "biases, from poles at -0.2 and 0.6"
    assert left["compact"] == pytest.approx((-0.2 + 0.8 * 0.1) / (-0.2 + 0.8 * 0.9))


def test_the_figure_draws_every_remedy():
    figure = figures.draw("09_lengths", tables())
    axes = figure.get_axes()
    assert [ax.get_title() for ax in axes] == [
        "Loss beside the untied model",
        "Loss beside a tied one of equal size",
        "Is the input-use table more E or more U?",
        "By token, at 2 tokens per weight",
    ]
    assert len(figure.legends[0].get_texts()) == len(ARMS) + 1  # and the line of no effect
    for ax in axes:
        drawn = {line.get_color() for line in ax.lines}
        assert {line.get_color() for line in figure.legends[0].get_lines()} <= drawn
        assert len(ax.lines) >= len(ARMS) * (3 + 1)  # seeds thin, and their mean
