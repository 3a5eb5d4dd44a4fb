"""Claims by the length of training, from values made up to grow, hold, fade and turn."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic_poles import poles
from synthetic_tables import synthetic

from tying_utils.base.names import EQUAL, PYTHON, SECOND_START, TIED, UNTIED, scaled
from tying_utils.experiments import figures, length
from tying_utils.experiments.length import HEADLINES, headlines, trend, values, verdicts
from tying_utils.experiments.tables import where

LENGTHS, SEEDS = (0.4, 4.0, 20.0), 3
PLACE = "packages, d 64"


class Axis(dict):
    profile = SimpleNamespace(name=PLACE)


class Lengths(dict):
    def __init__(self, tables, places):
        super().__init__(tables)
        self.places = places


def lengths(seeds: dict[float, int] | None = None):
    """Tables of one place in the shape that `Lengths` gives them: the cost of tying fades, all else stays as it is."""
    of = seeds or dict.fromkeys(LENGTHS, SEEDS)
    plain, parts = synthetic(SEEDS), {}
    for tokens, count in of.items():
        own = {
            name: where(plain[name], corpus=PYTHON)
            for name in ("alignment", "neighbors", "lens", "residual", "ablation", "drift")
        }
        own["share"] = pd.concat([plain["gradients"], plain["scaling_gradients"]])
        own["poles"] = poles(SEEDS, d_model=64)
        rows = []
        for seed in range(SEEDS):
            gap = 0.3 / (1 + tokens)
            for arm, loss in {UNTIED: 4, TIED: 4 + gap, scaled(5): 4.3 + gap, EQUAL: 4 + gap / 2, SECOND_START: 4}.items():
                loss += 0.01 * seed * (arm == TIED)
                rows.append({"corpus": PYTHON, "arm": arm, "input_scale": 1.0, "seed": seed, "validation_loss": loss})
        own["losses"] = pd.DataFrame(rows)
        deciles = [own["losses"].assign(decile=tenth, loss=own["losses"]["validation_loss"] + tenth) for tenth in range(1, 11)]
        own["deciles"] = pd.concat(deciles)
        for name, table in own.items():
            kept = table[table["seed"] < count].assign(tokens_per_weight=tokens)
            parts.setdefault(name, []).append(kept)
    tables = {name: pd.concat(part, ignore_index=True) for name, part in parts.items()}
    rates = [tables["losses"].assign(rate=rate, learning_rate=rate * 8e-3, d_model=64) for rate in (0.5, 1, 2)]
    tables["rates"] = pd.concat(rates, ignore_index=True)

    return Lengths({name: table.assign(place=PLACE) for name, table in tables.items()}, [Axis(tables)])


def test_every_headline_is_judged_at_every_length():
    found = verdicts(lengths())  # type: ignore[arg-type]
    assert set(HEADLINES) <= set(found["id"]) and set(found["tokens_per_weight"]) == {*LENGTHS}
    assert (found.groupby("id").size() == len(LENGTHS)).all() and (found["seeds"] == SEEDS).all()
    first, middle, last = where(found, id="equal_shape").to_dict("records")
    assert (first["verdict"], last["verdict"]) == ("supported", "open")
    assert middle["estimate"] == pytest.approx(0.3 / 5 + 0.01)


def test_a_headline_is_of_the_longest_length_with_three_seeds():
    found = headlines(lengths({0.4: 3, 4.0: 3, 20.0: 2}))  # type: ignore[arg-type]
    assert set(found["tokens_per_weight"]) == {4.0} and set(found["earliest"]) == {0.4}
    assert [*found["id"]] == [*HEADLINES]
    cost = where(found, id="equal_shape").iloc[0]
    assert cost["early_estimate"] == pytest.approx(0.3 / 1.4 + 0.01) and cost["trend"] == "fades"
    assert where(found, id="position").iloc[0]["trend"] == "holds"


def test_headlines_are_judged_together():
    found = headlines(lengths())  # type: ignore[arg-type]
    alone = where(verdicts(lengths()), tokens_per_weight=20.0).set_index("id")  # type: ignore[arg-type]
    for row in found.to_dict("records"):
        assert row["p_holm"] >= row["p"]
        own = alone.loc[row["id"], "verdict"]
        assert row["verdict"] == ("open" if own in ("supported", "refuted") and row["p_holm"] >= 0.05 else own)


def part(at_the_ends: tuple[float, float], spread: float = 0.01) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    rows = [
        {"tokens_per_weight": tokens, "seed": seed, "value": value + spread * draw.normal()}
        for seed in range(5)
        for tokens, value in zip((0.1, 1.0, 10.0), np.linspace(*at_the_ends, 3), strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("ends", "word"),
    [((0.1, 0.5), "grows"), ((0.5, 0.1), "fades"), ((0.3, 0.3), "holds"), ((-0.2, 0.2), "turns"), ((-0.1, -0.5), "grows")],
)
def test_trends(ends, word):
    found = trend(part(ends), null=0.0, smallest=0.05)
    assert found["trend"] == word
    assert found["slope"] == pytest.approx((ends[1] - ends[0]) / 2, abs=0.01)
    assert found["low"] <= found["slope"] <= found["high"]


def test_a_slope_that_is_not_resolved_is_open():
    assert trend(part((0.3, 0.3), spread=0.3), null=0.0, smallest=0.05)["trend"] == "open"


def test_no_trend_of_one_length_or_one_seed():
    rows = part((0.1, 0.5))
    for few in (where(rows, seed=0), where(rows, tokens_per_weight=1.0)):
        assert trend(few, 0.0)["trend"] == "" and np.isnan(trend(few, 0.0)["slope"])


@pytest.mark.parametrize("name", [*length.FIGURES])
def test_figures_are_drawn(name):
    figure = figures.draw(name, lengths())
    labels = [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes]
    assert all(across for across, _ in labels) and labels[0][1]


def test_values_keep_the_seeds():
    found = values(lengths())  # type: ignore[arg-type]
    assert {tuple(part["seed"]) for _, part in found.groupby(["id", "tokens_per_weight"])} == {(0, 1, 2)}


def test_no_tables_at_all_are_named():
    with pytest.raises(ValueError, match="lengths: no tables of the axis of length are here"):
        headlines(Lengths({}, []))  # type: ignore[arg-type]
