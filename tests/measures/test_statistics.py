import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tying_utils.measures import statistics as module
from tying_utils.measures.statistics import (
    Interval,
    bootstrap_interval,
    central_range,
    holm,
    mean_interval,
    p_value,
    rolling_mean,
    slope,
    verdict,
)

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
    assert math.isnan(result.low) and math.isnan(result.high)
    assert verdict(result) == ""


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_verdict_needs_three_seeds(n):
    assert verdict(Interval(1.0, 0.9, 1.1, n)) == ("supported" if n == 3 else "")
    assert verdict(Interval(0.0, -0.01, 0.01, n), smallest=0.05) == ("equivalent" if n == 3 else "")
    assert verdict(Interval(0.0, -1.0, 1.0, n)) == ("open" if n == 3 else "")


def test_fewer_seeds_than_an_interval_needs():
    with pytest.raises(ValueError, match="values: at least 2 seeds are needed, one value each, got 1; run more seeds"):
        mean_interval([0.3], at_least=2)
    assert mean_interval([0.3, 0.4], at_least=2) == mean_interval([0.3, 0.4])
    with pytest.raises(ValueError, match="at_least"):
        mean_interval([0.3], at_least=0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_over_seeds_cover_a_known_effect(n):
    seeds = np.random.default_rng(n).normal(0.3, 0.02, size=(4000, n))
    intervals = [mean_interval(values) for values in seeds]
    assert 0.94 <= np.mean([x.low <= 0.3 <= x.high for x in intervals]) <= 0.96  # 0.95 give or take three deviations


def test_bootstrap_interval_is_that_of_the_normal_for_many_values():
    values = np.random.default_rng(0).normal(2, 3, 5000)
    half = 1.96 * values.std() / math.sqrt(5000)
    result = bootstrap_interval(values, draws=4000)
    assert result == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    narrower = bootstrap_interval(values, draws=4000, level=0.5)
    assert narrower.high - narrower.low == pytest.approx((result.high - result.low) * 0.6745 / 1.96, rel=0.06)


def test_bootstrap_interval_by_enumeration():
    # Two values resampled: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so the middle 40 % are all 1/2.
    assert bootstrap_interval([0, 1], draws=2000, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0, 1], draws=2000) == (0, 1)


@pytest.mark.parametrize(
    ("name", "draw", "mean"),
    [
        ("normal", lambda random: random.normal(1, 2, 200), 1.0),
        ("skewed", lambda random: random.exponential(1, 200), 1.0),
        ("bounded, at an edge", lambda random: random.beta(8, 1, 200), 8 / 9),
    ],
)
def test_bootstrap_intervals_cover_a_known_mean(name, draw, mean):
    random = np.random.default_rng(1)
    ranges = [bootstrap_interval(draw(random), draws=400, seed=seed) for seed in range(1500)]
    covered = np.mean([low <= mean <= high for low, high in ranges])
    assert 0.92 <= covered <= 0.98, name


def test_bootstrap_interval_is_fixed_by_its_seed_and_blind_to_the_container(monkeypatch):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    result = bootstrap_interval(values, draws=100, seed=3)
    assert result == bootstrap_interval(values, draws=100, seed=3)
    assert result != bootstrap_interval(values, draws=100, seed=4)
    assert result == bootstrap_interval(torch.tensor(values, requires_grad=True), draws=100, seed=3)
    assert result == bootstrap_interval(values.tolist(), draws=100, seed=3)
    assert bootstrap_interval(torch.tensor(values).bfloat16()) == pytest.approx(bootstrap_interval(values), abs=0.01)
    monkeypatch.setattr(module, "_ENTRIES", 120)  # two draws at a time
    assert bootstrap_interval(values, draws=101, seed=3) == pytest.approx(result, abs=0.05)


@given(st.floats(-1e6, 1e6), st.integers(2, 20))
def test_bootstrap_interval_of_equal_values_has_no_width(value, n):
    low, high = bootstrap_interval([value] * n, draws=5)
    assert low == high == pytest.approx(value)


@given(st.lists(numbers, min_size=2, max_size=30), numbers)
def test_bootstrap_interval_lies_in_the_values_and_moves_with_them(values, shift):
    low, high = bootstrap_interval(values, draws=20)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low <= high <= max(values) + slack
    moved = bootstrap_interval([value + shift for value in values], draws=20)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-6)


def test_central_range():
    assert central_range(range(101)) == pytest.approx((2.5, 97.5))
    assert central_range(torch.arange(101.0), level=0.5) == pytest.approx((25, 75))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0]}, "values: at least 2 are needed"),
        ({"values": []}, "values: a sequence"),
        ({"values": [1, math.nan]}, "values: finite"),
        ({"values": torch.ones(2, 2)}, r"got shape \(2, 2\)"),
        ({"draws": 0}, "draws: an integer of at least 1"),
        ({"draws": 10.0}, "draws: an integer of at least 1"),
        ({"seed": -1}, "seed: an integer of at least 0"),
        ({"seed": 1.5}, "seed: an integer of at least 0"),
    ],
)
def test_bad_arguments_of_the_bootstrap_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**{"values": [1.0, 2.0], **changes})


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
@pytest.mark.parametrize("call", [bootstrap_interval, mean_interval, central_range])
def test_a_bad_level_is_named(call, level):
    with pytest.raises(ValueError, match="level: a confidence between 0 and 1"):
        call([1.0, 2.0], level=level)


@pytest.mark.parametrize("values", [[], [1, math.nan], [1, math.inf], [[1, 2]], 3.0])
def test_bad_values(values):
    for call in (mean_interval, lambda x: rolling_mean(x, 2), lambda x: slope(x, [1, 2])):
        with pytest.raises(ValueError):
            call(values)


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


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.04, "equivalent"),  # above the null, but nowhere worth naming
        (-0.04, 0.04, "equivalent"),
        (0.01, 0.06, "supported"),
        (-0.06, -0.01, "refuted"),
        (-0.06, 0.04, "open"),
        (-0.05, 0.05, "open"),
        (math.nan, math.nan, "open"),
    ],
)
def test_what_is_too_small_to_name_is_equivalent(low, high, expected):
    assert verdict(Interval(0.0, low, high, 3), smallest=0.05) == expected
    shifted = Interval(0.5, 0.5 + low, 0.5 + high, 3)
    assert verdict(shifted, 0.5, smallest=0.0500001) == (expected if (low, high) != (-0.05, 0.05) else "equivalent")


@given(st.lists(numbers, min_size=2, max_size=12), numbers)
def test_p_is_below_a_twentieth_where_the_interval_leaves_the_null_out(values, null):
    interval = mean_interval(values)
    edge = min(abs(interval.low - null), abs(interval.high - null))
    assume(edge > 1e-6 * (1 + abs(interval.mean) + interval.high - interval.low))  # at the edge itself rounding decides
    assert (p_value(values, null) < 0.05) == (not interval.low <= null <= interval.high)


def test_p_values_are_those_of_scipy():
    from scipy.stats import ttest_1samp

    values = [0.3, 0.5, 0.1, 0.7]
    assert p_value(values, 0.1) == pytest.approx(ttest_1samp(values, 0.1)[1])
    assert math.isnan(p_value([1.0]))
    assert (p_value([2.0, 2.0], 2.0), p_value([2.0, 2.0], 1.0)) == (1.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    with_none = holm([math.nan, 0.02, 0.02])
    assert math.isnan(with_none[0]) and with_none[1:].tolist() == pytest.approx([0.04, 0.04])
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_each_alone_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all() and (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@pytest.mark.parametrize("p", [None, 0.5, [-1] * 60, [1.5], [math.inf], "x", ["x"], {"a": 1}, [[0.1]], [10**400]])
def test_what_are_no_p_values_is_named(p):
    with pytest.raises(ValueError, match="^p: "):
        holm(p)


@pytest.mark.parametrize("values", [None, "x", {"a": 1}, [[1], [1, 2]], [10**400], object()])
def test_what_are_no_numbers_is_named(values):
    for measure in (mean_interval, central_range, p_value, lambda x: bootstrap_interval(x, 10), lambda x: rolling_mean(x, 1)):
        with pytest.raises(ValueError, match="^values: "):
            measure(values)


@pytest.mark.parametrize("value", ["x", None])
def test_a_level_or_null_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="^level: "):
        mean_interval([1.0, 2.0], value)
    with pytest.raises(ValueError, match="^null: "):
        p_value([1.0, 2.0], value)
    for name in ("interval", "null", "smallest"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            verdict(**{"interval": mean_interval([1.0, 2.0, 3.0]), name: value})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_values_may_be_a_tensor_of_any_numbers(dtype):
    assert module.mean_interval(torch.tensor([1, 2, 3], dtype=dtype)) == module.mean_interval([1.0, 2.0, 3.0])
