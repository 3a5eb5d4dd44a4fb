import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.measures.statistics import Interval, mean_interval, rolling_mean, slope, verdict

numbers = st.floats(-1e6, 1e6)


def test_mean_interval_by_the_table():
    # t at 97.5 % with 2 degrees of freedom is 4.302653; the standard error of 1, 2, 3 is 1 / sqrt(3).
    result = mean_interval([1, 2, 3])
    assert (result.mean, result.n) == (2, 3)
    assert (result.low, result.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert mean_interval([1, 2, 3], level=0.9).high == pytest.approx(2 + 2.919986 / math.sqrt(3))


def test_one_seed_gives_no_interval():
    result = mean_interval([0.3])
    assert (result.mean, result.n) == (0.3, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert verdict(result) == "open"


@pytest.mark.parametrize("values", [[], [1, math.nan], [1, math.inf], [[1, 2]], 3.0])
def test_bad_values(values):
    for call in (mean_interval, lambda x: rolling_mean(x, 2), lambda x: slope(x, [1, 2])):
        with pytest.raises(ValueError):
            call(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_bad_level(level):
    with pytest.raises(ValueError, match="level"):
        mean_interval([1, 2], level)


@pytest.mark.parametrize(
    ("low", "high", "null", "claimed", "expected"),
    [
        (0.1, 0.3, 0.0, "above", "supported"),
        (0.1, 0.3, 0.0, "below", "refuted"),
        (-0.3, -0.1, 0.0, "above", "refuted"),
        (-0.3, -0.1, 0.0, "below", "supported"),
        (-0.1, 0.3, 0.0, "above", "open"),
        (0.0, 0.3, 0.0, "above", "open"),
        (-0.3, 0.0, 0.0, "above", "open"),
        (0.1, 0.3, 0.5, "above", "refuted"),
        (0.6, 0.8, 0.5, "above", "supported"),
        (math.nan, math.nan, 0.0, "below", "open"),
    ],
)
def test_verdict(low, high, null, claimed, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), null, claimed) == expected


def test_verdict_rejects_another_side():
    with pytest.raises(ValueError, match="claimed"):
        verdict(Interval(1, 0, 2, 3), claimed="over")  # pyright: ignore[reportArgumentType]


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True), numbers, numbers)
def test_slope_of_a_line(x, a, b):
    assert slope(x, [a * value + b for value in x]) == pytest.approx(a, rel=1e-6, abs=1e-6)


def test_slope_by_hand_and_bad_input():
    assert slope([0, 1, 2], [0, 0, 3]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="x: at least 2 different"):
        slope([2, 2], [0, 1])
    with pytest.raises(ValueError, match="equal lengths"):
        slope([1, 2, 3], [0, 1])


@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 50))
def test_rolling_mean_equals_pandas(values, window):
    expected = pd.Series(values).rolling(window, min_periods=1).mean()
    np.testing.assert_allclose(rolling_mean(values, window), expected, atol=1e-6)


def test_rolling_mean_by_hand():
    assert rolling_mean([2, 4, 6, 8], 2).tolist() == [2, 3, 5, 7]
    with pytest.raises(ValueError, match="window"):
        rolling_mean([1, 2], 0)
