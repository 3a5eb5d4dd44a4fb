"""A statistic's values by seed become a row whose verdict is that of their interval."""

import math
from dataclasses import replace

import pytest

from tying_utils.experiments.judge import SMALLEST, Statistic, at_equal_parameters
from tying_utils.measures.statistics import mean_interval

SHARE = Statistic("share", "C2", "output share", "fraction", null=0.5, published="0.703")


def test_a_row_says_what_was_measured_and_what_follows() -> None:
    values = [0.6, 0.65, 0.7]
    interval = mean_interval(values)
    row = SHARE.row(values)
    assert (row["estimate"], row["low"], row["high"], row["seeds"]) == (interval.mean, interval.low, interval.high, 3)
    said = {"claim": "C2", "statistic": "output share", "published": "0.703", "id": "share", "unit": "fraction", "null": 0.5}
    assert {name: row[name] for name in said} == said
    assert row["verdict"] == "supported"
    assert SHARE.words == "output share (fraction)"


@pytest.mark.parametrize("null", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("claimed", ["above", "below"])
def test_the_verdict_is_of_the_side_of_the_statistics_own_null(null: float, claimed: str) -> None:
    of = Statistic("share", "C2", "output share", "fraction", null=null, claimed=claimed)  # type: ignore[arg-type]
    assert of.row([null + 0.1, null + 0.11, null + 0.12])["verdict"] == ("supported" if claimed == "above" else "refuted")
    assert of.row([null - 0.1, null, null + 0.1])["verdict"] == "open"


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    row = SHARE.row([0.9])
    assert math.isnan(row["low"]) and math.isnan(row["high"]) and (row["seeds"], row["verdict"]) == (1, "")


def test_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="values: a sequence of at least 1 number is needed"):
        SHARE.row([])


def test_an_effect_too_small_to_name_is_equivalent_whichever_side_it_is_on() -> None:
    loss = Statistic("loss", "C5", "loss", "nats per token")
    assert loss.row([0.004, 0.005, 0.006])["verdict"] == "equivalent"
    assert loss.row([0.04, 0.05, 0.06])["verdict"] == "supported"
    assert loss.row([0.004, 0.005, 0.006])["p"] < 0.05


@pytest.mark.parametrize(("unit", "smallest"), SMALLEST.items())
def test_what_is_worth_naming_goes_with_the_unit(unit: str, smallest: float) -> None:
    of = Statistic("it", "C1", "it", unit)
    spread = [-smallest / 9, 0.0, smallest / 9]
    assert of.row([smallest / 2 + one for one in spread])["verdict"] == "equivalent"
    assert of.row([1.2 * smallest + one for one in spread])["verdict"] == "supported"
    assert replace(of, smallest=0.0).row([smallest / 2 + one for one in spread])["verdict"] == "supported"
    assert Statistic("it", "C1", "it", "steps").worth_naming == 0


def test_where_size_does_not_help_a_tied_model_a_comparison_at_equal_size_is_not_judged() -> None:
    loss, gap = Statistic("loss", "C5", "loss", "nats per token"), [0.1, 0.11, 0.12]
    for gained, verdict in (
        ([-0.1, -0.11, -0.12], "supported"),
        ([-0.1, 0.1, 0.0], "not measurable"),
        ([0.1, 0.11, 0.12], "not measurable"),
    ):
        row = at_equal_parameters(loss, gained).row(gap)
        assert (row["verdict"], row["p"]) == (verdict, loss.row(gap)["p"]), "it counts among the rows judged together"
    worse = at_equal_parameters(loss, [0.1, 0.11, 0.12])
    assert worse.row([0.001, 0.002, 0.003])["verdict"] == "equivalent"
    assert at_equal_parameters(loss, [0.1, 0.1]).row(gap[:2])["verdict"] == ""
