"""What tables of a study and tables of public checkpoints hold of a measure: rows with the labels that they are given."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from tying_utils.base.console import tqdm
from tying_utils.measures import alignment, frequency, lens, neighbors, probe

Labels = dict[str, Any]


def scores(score: alignment.Alignment | neighbors.Overlap | probe.Probe) -> dict[str, float]:
    """Return the columns of a score beside its null, as every table of scores has them."""
    return {
        "value": score.value,
        "low": score.interval.low,
        "high": score.interval.high,
        "chance": score.chance,
        "chance_low": score.chance_range.low,
        "chance_high": score.chance_range.high,
        "corrected": score.corrected,
    }


def aligned(labels: Labels, source: Tensor, target: Tensor, kinds: Sequence[alignment.Kind], permutations: int) -> pd.DataFrame:
    """Return how two tables (V, d) align (Table 1), a row per kind of fit."""
    rows = []
    for kind in kinds:
        score = alignment.alignment(source, target, kind, permutations=permutations)
        more = {"held_out": score.held_out, "gaussian": score.gaussian, "tokens": score.tokens}
        rows.append({**labels, "kind": kind, **scores(score), **more})
    return pd.DataFrame(rows)


def cosines(labels: Labels, source: Tensor, target: Tensor) -> pd.DataFrame:
    """Return how the per-token cosines of the linear fit are distributed (Figure 1): a density over 50 bins of -.25 to 1."""
    found = alignment.token_cosines(source, target, "linear").cpu().numpy()
    values, edges = np.histogram(found, bins=50, range=(-0.25, 1.0), density=True)
    return pd.DataFrame({**labels, "cosine": (edges[:-1] + edges[1:]) / 2, "density": values})


def norms(labels: Labels, table: Tensor, counts: np.ndarray) -> pd.DataFrame:
    """Return the row norms of a table (V, d) by how often each token occurs, counts (V,): a row per bin (Figure 5)."""
    frame = frequency.norm_by_frequency(table.cpu(), counts)
    return pd.DataFrame({**labels, "spearman": frequency.spearman(frame), **frequency.binned(frame)})


def lens_curves(labels: Labels, model: Any, tuned: Any, held_out: np.ndarray) -> pd.DataFrame:
    """Return how far each layer is from the model's own prediction by a tuned lens, bits, read right and as published.

    held_out: tokens (n, T) to judge on. A row per indexing and layer (Figure 2).
    """
    kinds: tuple[lens.Indexing, ...] = ("matched", "published")
    curves = {kind: lens.kl_by_layer(model, tuned, held_out, indexing=kind) for kind in kinds}
    return pd.concat([curve(labels | {"indexing": kind}, bits) for kind, bits in curves.items()], ignore_index=True)


def curve(labels: Labels, bits: Sequence[float] | np.ndarray) -> pd.DataFrame:
    """Return a curve of a lens over layers, a row per layer, 0 the input."""
    return pd.DataFrame({**labels, "layer": np.arange(len(bits)), "kl_bits": np.asarray(bits)})


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return `function` of each item, in order."""
    return [function(item) for item in items]


def tabulated(
    one: Callable[[Any], pd.DataFrame],
    items: Sequence[Any],
    bar: "tqdm[Any]",
    how: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = in_turn,
) -> pd.DataFrame:
    """Return the rows that `one` makes of each item, below one another; the bar counts items."""

    def ticked(item: Any) -> pd.DataFrame:
        rows = one(item)
        bar.update()
        return rows

    bar.reset(len(items))
    return pd.concat(how(ticked, items), ignore_index=True)


def labelled(labels: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` with `labels` as the first columns."""
    return pd.DataFrame({**labels, **rows})
