"""Where a table lies between the poles, from alignments made up to lie there."""

from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D
from synthetic_poles import ARMS, poles

from tying_utils.base.names import LOG_COUNT, TIED
from tying_utils.experiments import figures
from tying_utils.experiments.position import evidence, positions


@pytest.mark.parametrize("more", [{}, {"d_model": 64, "tokens_per_weight": 1.3}])
def test_each_arm_lies_where_it_was_put(more: dict[str, Any]) -> None:
    found = positions(poles(**more))
    for (arm, _), way in ARMS.items():
        own = found[found["arm"] == arm]
        assert own["position"].tolist() == pytest.approx([way] * (3 if arm == LOG_COUNT else 6))
    assert set(more) <= set(found.columns)
    assert found["input_pole"].tolist() == pytest.approx([-0.2] * len(found))
    assert found["output_pole"].tolist() == pytest.approx([0.6] * len(found))


def test_the_poles_themselves_are_no_arms() -> None:
    assert set(positions(poles())["arm"]) == {arm for arm, _ in ARMS}


def test_the_statistic_is_of_the_tied_arm_and_judged_against_half_way() -> None:
    found = {statistic.id: statistic.row(values) for statistic, values in evidence({"poles": poles()})}
    assert found["position"]["estimate"] == pytest.approx(0.8) and found["position"]["null"] == 0.5
    assert {row["verdict"] for row in found.values()} == {"supported"}
    nearer = {
        statistic.id: statistic.row(values) for statistic, values in evidence({"poles": poles(arms={(TIED, "tied"): 0.55})})
    }
    assert nearer["position"]["verdict"] == "equivalent"


def test_the_figure_shows_each_seed_and_their_mean_on_the_way_from_pole_to_pole() -> None:
    arms = {(TIED, "tied"): 0.8, (LOG_COUNT, LOG_COUNT): 1.2}
    (ax,) = figures.draw("01_position", {"poles": poles(arms=arms)}).axes
    at = {label.get_text().replace("\n", " "): y for y, label in enumerate(ax.get_yticklabels())}
    for name, way in {"W": 0.8, "W, token frequency out": 0.8, "log counts alone": 1.2}.items():
        own = [line for line in ax.lines if isinstance(line, Line2D) and set(np.asarray(line.get_ydata())) == {at[name]}]
        dots, mean, interval = own
        assert np.asarray(dots.get_xdata()) == pytest.approx([way] * 3) and len(np.asarray(interval.get_xdata())) == 2
        assert np.asarray(mean.get_xdata()) == pytest.approx([way])
    low, high = ax.get_xlim()
    assert low < 0 and high > 1.2
