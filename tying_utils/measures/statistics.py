"""Intervals over seeds and over tokens, the verdict that they allow, and two small curve tools."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit
from torch import Tensor

from tying_utils.base.checks import array, number, positive, scale
from tying_utils.base.checks import seed as checked_seed

ENOUGH = 3  # values, one per seed: with fewer there is no verdict
_ENTRIES = 2**22  # resampled values at a time: 32 MB, and as much of indices


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values with its confidence interval, `low` to `high`; both are nan for one value."""

    mean: float
    low: float
    high: float
    n: int


class Range(NamedTuple):
    """From `low` to `high`, in the units of what it was measured on."""

    low: float
    high: float


def mean_interval(values: ArrayLike, level: float = 0.95, *, at_least: int = 1) -> Interval:
    """Return the Student t interval of the mean of `values` (n,), one value per seed, at confidence `level` in (0, 1).

    One seed gives no interval: low and high are nan; `at_least=2` makes that an error. Raises ValueError for fewer than
    `at_least` values, for none, and for any that is not finite.
    """
    x = _vector("values", values)
    _checked_level(level)
    if len(x) < positive("at_least", at_least):
        raise ValueError(f"values: at least {at_least} seeds are needed, one value each, got {len(x)}; run more seeds")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    # scipy.stats.t.interval differs in the last bit, and is slow to import.
    half = float(stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def bootstrap_interval(values: Tensor | ArrayLike, draws: int = 1000, seed: int = 0, level: float = 0.95) -> Range:
    """Return the percentile bootstrap interval of the mean of `values` (n,), one per token, at confidence `level` in (0, 1).

    The tokens are resampled with replacement `draws` times; `seed` fixes the draws. Any real dtype, computed in float64
    in less than 100 MB for n up to 4 million. The interval tells what other tokens would do, not other seeds. Raises
    ValueError for fewer than 2 values, for any that is not finite, and for a bad `draws`, `seed` or `level`.
    """
    x = _vector("values", values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values)
    if len(x) < 2:
        raise ValueError("values: at least 2 are needed to resample, one per token, got 1")
    draws = positive("draws", draws)
    random = np.random.default_rng(checked_seed("seed", seed))
    mean = float(x.mean())
    x = x - mean  # so that values that are all alike give an interval of exactly no width
    step = max(1, _ENTRIES // len(x))  # draws at a time
    sizes = (min(step, draws - start) for start in range(0, draws, step))
    means = np.concatenate([x[random.integers(len(x), size=(size, len(x)))].mean(1) for size in sizes])
    low, high = central_range(means, level)
    return Range(mean + low, mean + high)


def central_range(values: Tensor | ArrayLike, level: float = 0.95) -> Range:
    """Return the quantiles of `values` (n,) that hold the middle share `level` in (0, 1) of them, linearly interpolated."""
    low, high = np.quantile(_vector("values", values), (0.5 - _checked_level(level) / 2, 0.5 + level / 2))
    return Range(float(low), float(high))


def verdict(
    interval: Interval, null: float = 0.0, claimed: Literal["above", "below"] = "above", *, smallest: float = 0.0
) -> str:
    """Return what `interval` says of the claim that the mean lies "above" or "below" `null`.

    "equivalent" if it lies wholly nearer to `null` than `smallest`, the smallest effect worth naming; else "supported" if it
    lies wholly on the claimed side, "refuted" if wholly on the other, and "open" if it covers or touches `null`. "" for fewer
    than `ENOUGH` values: an interval of two is so wide, or by luck so narrow, that it says nothing.
    """
    if claimed not in ("above", "below"):
        raise ValueError(f"claimed: 'above' or 'below' is needed, got {claimed!r}")
    if not isinstance(interval, Interval):
        raise ValueError(f"interval: one of mean_interval is needed, got {type(interval).__name__}")
    null, smallest = number("null", null), scale("smallest", smallest)
    if interval.n < ENOUGH:
        return ""
    if null - smallest < interval.low and interval.high < null + smallest:
        return "equivalent"
    above, below = interval.low > null, interval.high < null
    if not (above or below):
        return "open"
    return "supported" if above == (claimed == "above") else "refuted"


def p_value(values: ArrayLike, null: float = 0.0) -> float:
    """Return the two-sided p value of Student's t test that the mean of `values` (n,) is `null`; nan for one value.

    It is below .05 where `mean_interval` leaves `null` out. Raises ValueError as that does.
    """
    x, null = _vector("values", values), number("null", null)
    if len(x) == 1:
        return math.nan
    error, distance = float(x.std(ddof=1)) / math.sqrt(len(x)), abs(float(x.mean()) - null)
    if error == 0:
        return 0.0 if distance else 1.0
    return float(2 * stdtr(len(x) - 1, -distance / error))


def holm(p: ArrayLike) -> np.ndarray:
    """Return the p values (n,) of tests that are judged together, adjusted so that one false positive in all is as rare.

    Holm's step-down (1979): the smallest times n, the next times n - 1, and so on, none below the one before it. A nan, of a
    test that could not be made, counts for nothing and stays. Raises ValueError for what is no sequence of numbers from 0 to 1.
    """
    values = array("p", p, np.float64)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise ValueError(f"p: a sequence of numbers from 0 to 1, or nan, is needed, got {p!r:.80}")
    adjusted, order = np.full(values.shape, np.nan), np.argsort(values)  # nan come last
    known = order[: int(np.isfinite(values).sum())]
    steps = values[known] * np.arange(len(known), 0, -1)
    adjusted[known] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Return the least-squares slope of `y` (n,) on `x` (n,), in units of y per unit of x.

    Raises ValueError for lengths that differ, for entries that are not finite, and if `x` holds fewer than 2 values.
    """
    across, up = _vector("x", x), _vector("y", y)
    if len(across) != len(up):
        raise ValueError(f"x and y: equal lengths are needed, got {len(across)} and {len(up)}")
    if across.min() == across.max():
        raise ValueError(f"x: at least 2 different values are needed, got {len(across)} times {across[0]}")
    across = across - across.mean()
    return float(across @ (up - up.mean()) / (across @ across))


def rolling_mean(values: ArrayLike, window: int) -> np.ndarray:
    """Return the mean of the last `window` values at each place, (n,) -> (n,) float64; the first places average what there is.

    Raises ValueError for no values, any that is not finite, or a window below 1.
    """
    x = _vector("values", values)
    window = min(positive("window", window), len(x))
    padded = np.concatenate((np.zeros(window - 1), x))
    sums = np.lib.stride_tricks.sliding_window_view(padded, window).sum(axis=1)  # no running sum, whose error grows
    return sums / np.minimum(np.arange(1, len(x) + 1), window)


def _checked_level(level: float) -> float:
    if not isinstance(level, Real) or not 0 < level < 1:
        raise ValueError(f"level: a confidence between 0 and 1 is needed, got {level!r}")
    return level


def _vector(name: str, values: ArrayLike) -> np.ndarray:
    x = array(name, values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name}: a sequence of at least 1 number is needed, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: finite numbers are needed, got {x[~np.isfinite(x)][0]} at {np.isfinite(x).argmin()}")
    return x
