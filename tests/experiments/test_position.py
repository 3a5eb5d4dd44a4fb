"""Where a table lies between the poles, from alignments made up to lie there."""

from typing import Any

import pandas as pd
import pytest

from tying_utils.base.names import LOG_COUNT, PYTHON, SECOND_START, TIED, scaled
from tying_utils.experiments.position import evidence, positions

_ARMS = {(TIED, "tied"): 0.8, (scaled(5), "tied"): 0.4, (LOG_COUNT, LOG_COUNT): 0.6}


def poles(seeds: int = 3, arms: dict[tuple[str, str], float] | None = None, **more: object) -> pd.DataFrame:
    """Tables `poles` in which E' has a bias of -0.2, U' one of 0.6, and each of `arms` lies at its share of the way."""
    biases = {(SECOND_START, "input"): -0.2, (SECOND_START, "output"): 0.6}
    biases |= {key: -0.2 + 0.8 * way for key, way in (arms or _ARMS).items()}
    rows = []
    for seed in range(seeds):
        for (arm, target), bias in biases.items():
            for frequency_out in (False, True)[: 1 if arm == LOG_COUNT else 2]:
                shift = 0.01 * seed + (0.05 if frequency_out else 0.0)
                for source, value in (("input", 0.1 + shift), ("output", 0.1 + shift + bias)):
                    labels = {"corpus": PYTHON, **more, "arm": arm, "input_scale": 1.0, "seed": seed}
                    where = {"source": source, "target": target, "frequency_out": frequency_out, "corrected": value}
                    rows.append({**labels, **where})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("more", [{}, {"d_model": 64, "tokens_per_weight": 1.3}])
def test_each_arm_lies_where_it_was_put(more: dict[str, Any]) -> None:
    found = positions(poles(**more))
    for (arm, _), way in _ARMS.items():
        own = found[found["arm"] == arm]
        assert own["position"].tolist() == pytest.approx([way] * (3 if arm == LOG_COUNT else 6))
    assert set(more) <= set(found.columns)
    assert found["input_pole"].tolist() == pytest.approx([-0.2] * len(found))
    assert found["output_pole"].tolist() == pytest.approx([0.6] * len(found))


def test_the_poles_themselves_are_no_arms() -> None:
    assert set(positions(poles())["arm"]) == {arm for arm, _ in _ARMS}


def test_the_statistic_is_of_the_tied_arm_and_judged_against_half_way() -> None:
    found = {statistic.id: statistic.row(values) for statistic, values in evidence({"poles": poles()})}
    assert found["position"]["estimate"] == pytest.approx(0.8) and found["position"]["null"] == 0.5
    assert {row["verdict"] for row in found.values()} == {"supported"}
    nearer = {
        statistic.id: statistic.row(values) for statistic, values in evidence({"poles": poles(arms={(TIED, "tied"): 0.55})})
    }
    assert nearer["position"]["verdict"] == "equivalent"
