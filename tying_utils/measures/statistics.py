"""Intervals over seeds, the verdict that they allow, and two small curve tools."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from ._checks import positive


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values with its confidence interval, `low` to `high`; both are nan for one value."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student t interval of the mean of `values` (n,), one value a seed, at confidence `level` in (0, 1).

    One seed gives no interval: low and high are nan. Raises ValueError for no values, or any that is not finite.
    """
    x = _vector("values", values)
    if not 0 < level < 1:
        raise ValueError(f"level: a confidence between 0 and 1 is needed, got {level!r}")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def verdict(interval: Interval, null: float = 0.0, claimed: Literal["above", "below"] = "above") -> str:
    """What `interval` says of the claim that the mean lies "above" or "below" `null`.

    "supported" if it lies wholly on the claimed side, "refuted" if wholly on the other, "open" if it covers or touches
    `null` or if there is no interval (one seed).
    """
    if claimed not in ("above", "below"):
        raise ValueError(f"claimed: 'above' or 'below' is needed, got {claimed!r}")
    above, below = interval.low > null, interval.high < null  # both False for nan
    if not (above or below):
        return "open"
    return "supported" if above == (claimed == "above") else "refuted"


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Least-squares slope of `y` (n,) on `x` (n,), in units of y a unit of x.

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
    """Mean of the last `window` values at each place, (n,) -> (n,) float64; the first places average what there is.

    Raises ValueError for no values, any that is not finite, or a window below 1.
    """
    x = _vector("values", values)
    window = min(positive("window", window), len(x))
    padded = np.concatenate((np.zeros(window - 1), x))
    sums = np.lib.stride_tricks.sliding_window_view(padded, window).sum(axis=1)  # no running sum, whose error grows
    return sums / np.minimum(np.arange(1, len(x) + 1), window)


def _vector(name: str, values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{name}: a sequence of at least 1 number is needed, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: finite numbers are needed, got {x[~np.isfinite(x)][0]} at {np.isfinite(x).argmin()}")
    return x
