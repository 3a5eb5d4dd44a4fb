"""How cost grows with V, d, layers and tokens: sizes in turns, each as a ratio to the smallest, and log-log slopes.

One size is varied at a time from a base, by doubling. A slope is over the sizes shown, fixed costs included, and nothing is
claimed beyond them; its interval is a 95 % t interval over rounds, each of which gives a slope of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tuned_lens.nn.lenses import TunedLens

from benchmarks import alignment, neighbors, training, turns
from benchmarks.turns import SIZES, Turn
from tying_utils import models
from tying_utils.measures import lens, statistics

# `axis` is the size that is varied, `factor` how many times its smallest. `ratio` to the smallest size is a median over rounds
# between its quartiles; `slope`, of log cost on log size over all sizes of the axis, a mean with its 95 % interval.
COLUMNS = ("what", "axis", *SIZES, "factor", "quantity", "ratio", "low", "high", "rounds")
COLUMNS += ("slope", "slope_low", "slope_high", "threads", "device", "torch")


@dataclass(frozen=True)
class Grid:
    """`build(**size)` sets one size up; `axes` are varied from `base`."""

    what: str
    build: Callable[..., Turn]
    base: Mapping[str, int]
    axes: Sequence[str]


def lensed(V: int, d: int, layers: int, tokens: int) -> Callable[[], TunedLens]:  # imported above: no part of its memory
    """A tuned lens of 10 steps on an untrained model, `tokens` to a step: what a step costs does not depend on the weights."""
    sizes = {"vocab_size": V, "d_model": d, "n_layers": layers, "n_heads": max(1, d // 32)}
    model: Any = models.build("olmo", tied=True, **sizes).to(turns.device())  # type: ignore[arg-type]
    model.tie_weights()
    ids = torch.randint(V, (10 * tokens // 64, 64), generator=torch.Generator().manual_seed(0))
    return lambda: lens.train_lens(model, ids, steps=10, tokens_per_step=tokens, progress=False)


def grids() -> list[Grid]:
    """What is measured, from which base sizes."""
    small = {"V": 1024, "d": 64, "layers": 2, "tokens": 256}
    tables = {"V": 2048, "d": 64}
    return [
        Grid("training step", partial(training.step, training.SPLIT), small, SIZES),
        Grid("linear alignment", partial(alignment.fit, alignment.ALIGN), tables, ("V", "d")),
        Grid("neighbour overlap", partial(neighbors.overlap, neighbors.OURS), tables, ("V", "d")),
        Grid("tuned lens", lensed, small, SIZES),
    ]


def table(quick: bool) -> pd.DataFrame:
    """The tidy table of all grids, `COLUMNS` each; `quick`: factors to 4 and no memory, else to 16."""
    factors, rounds = ((1, 2, 4), 5) if quick else ((1, 2, 4, 8, 16), 7)
    rows = [row for grid in grids() for row in grown(grid, factors, rounds, memory=not quick)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def grown(grid: Grid, factors: Sequence[int], rounds: int, *, memory: bool) -> list[dict[str, Any]]:
    """The rows of one grid."""
    rows = []
    for axis in grid.axes:
        sizes = [{**grid.base, axis: grid.base[axis] * factor} for factor in factors]
        turns_of = {factor: grid.build(**size) for factor, size in zip(factors, sizes, strict=True)}
        costs = {"seconds": np.array(list(turns.in_turns(turns_of, rounds, warm=1).values()))}
        del turns_of
        if memory:
            peaks = [turns.alone(turns.peak_of, grid.build, size) for size in sizes]
            costs["memory"] = np.array(peaks, dtype=float)[:, None]
        for quantity, values in costs.items():  # (sizes, rounds)
            slopes = [statistics.slope(np.log(factors), np.log(column)) for column in values.T]
            slope = statistics.mean_interval(slopes)
            ends = {"slope": slope.mean, "slope_low": slope.low, "slope_high": slope.high}
            for factor, size, ratios in zip(factors, sizes, values / values[0], strict=True):
                low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
                row = {"what": grid.what, "axis": axis, **dict.fromkeys(SIZES, math.nan), **size, "factor": factor}
                row |= {"quantity": quantity, "ratio": middle, "low": low, "high": high, "rounds": len(ratios)}
                rows.append({**row, **ends, **turns.machine()})
    return rows
