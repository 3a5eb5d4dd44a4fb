"""Row norms of a table against how often its tokens occur (arXiv 2603.26663, norm-frequency figures).

The published claim is read off a scatter plot; `spearman` gives it a number.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.checks import integer, positive
from tying_utils.base.checks import table as checked_table


def norm_by_frequency(table: Tensor, counts: Any) -> pd.DataFrame:
    """Return a row per token: token (index), count, log10_count = log10(count + 1), norm (L2 norm of the token's row, float64).

    table (V, d), any floating dtype; counts (V,), non-negative integers: a sequence, an array or a tensor.
    Raises ValueError for counts of another length, of another kind of number, or below zero.
    """
    table = checked_table("table", table)
    count = _checked_counts(counts, len(table))
    norm = torch.linalg.vector_norm(table.cpu(), dim=1, dtype=torch.float64).numpy()
    log10_count = np.log10(count + 1.0)
    return pd.DataFrame({"token": np.arange(len(table)), "count": count, "log10_count": log10_count, "norm": norm})


def spearman(frame: pd.DataFrame) -> float:
    """Return the rank correlation in [-1, 1] of norm and count over the tokens of `norm_by_frequency` seen at least once.

    nan if all of them share one count or one norm. Raises ValueError if fewer than 2 tokens were seen.
    """
    from scipy.stats import spearmanr  # slow to import

    count, norm = frame["count"].to_numpy(), frame["norm"].to_numpy()
    count, norm = count[count > 0], norm[count > 0]
    if len(count) < 2:
        raise ValueError(f"frame: at least 2 tokens with a count above 0 are needed, got {len(count)}")
    if np.ptp(count) == 0 or np.ptp(norm) == 0:
        return float("nan")
    return float(np.asarray(spearmanr(count, norm))[0])


def binned(frame: pd.DataFrame, bins: int = 12) -> pd.DataFrame:
    """Return `norm_by_frequency` in `bins` equal widths of log10_count, a row per bin that holds tokens.

    Columns: log10_count (centre of the bin), norm_mean, norm_std (population standard deviation), tokens.
    """
    edges = np.histogram_bin_edges(frame["log10_count"], positive("bins", bins))
    index = np.digitize(frame["log10_count"], edges[1:-1])  # the last bin holds its right edge
    groups = frame["norm"].groupby(index)
    table = pd.DataFrame({"norm_mean": groups.mean(), "norm_std": groups.std(ddof=0), "tokens": groups.size()})
    table.insert(0, "log10_count", ((edges[:-1] + edges[1:]) / 2)[table.index])
    return table.reset_index(drop=True)


def count_table(counts: Any, d: int) -> Tensor:
    """Return a table (V, d), float64, that knows of each token only how often it occurs: log(count + 1) in one direction.

    What it scores against another table is what frequency alone explains. counts (V,): as in `norm_by_frequency`.
    """
    count = _checked_counts(counts)
    table = torch.zeros(len(count), positive("d", d), dtype=torch.float64)
    table[:, 0] = torch.from_numpy(np.log1p(count))
    return table


def without_frequency(table: Tensor, counts: Any, *, degree: int = 3, folds: int = 10, seed: int = 0) -> Tensor:
    """Return `table` (V, d) without what a polynomial of log(count + 1) predicts of each column, float64, on the CPU.

    Each row is predicted by a fit to the tokens of the other folds, so that a token's own row takes nothing of itself away.
    `seed` deals the tokens into folds; where each count is met often, they hardly matter. Raises ValueError for counts as
    `norm_by_frequency` does, and for more folds than tokens or fewer than 2.
    """
    table = checked_table("table", table).cpu().double()
    count = _checked_counts(counts, len(table))
    if not 2 <= positive("folds", folds) <= len(table):
        raise ValueError(f"folds: from 2 to V = {len(table)} are needed, got {folds}")
    logs = np.log1p(count)
    # Chebyshev polynomials over the range of the counts: powers of a logarithm are nearly alike, these are not.
    span = np.ptp(logs) or 1.0
    terms = torch.from_numpy(np.polynomial.chebyshev.chebvander(2 * (logs - logs.min()) / span - 1, positive("degree", degree)))
    fold = torch.from_numpy(np.random.default_rng(integer("seed", seed, 0)).permutation(len(table)) % folds)
    left = torch.empty_like(table)
    for one in range(folds):
        held_out = fold == one
        # pinv: where tokens share few counts the terms are not independent.
        left[held_out] = table[held_out] - terms[held_out] @ (torch.linalg.pinv(terms[~held_out]) @ table[~held_out])
    return left


def _checked_counts(counts: Any, rows: int | None = None) -> np.ndarray:
    count = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
    if count.ndim != 1 or not len(count) or len(count) != (len(count) if rows is None else rows):
        shape = "(V,)" if rows is None else f"({rows},)"
        raise ValueError(f"counts: one count a row is needed, shape {shape}, got shape {count.shape}")
    if not np.issubdtype(count.dtype, np.integer):
        raise ValueError(f"counts: integers are needed, got {count.dtype}; counts.astype(int) would do for whole numbers")
    if count.min() < 0:
        raise ValueError(f"counts: non-negative integers are needed, got {count.min()} at token {count.argmin()}")
    return count.astype(np.int64)  # of 8 bits numpy takes logarithms in float16
