"""Nearest neighbours of tokens, and how far two tables, or a table and labels, agree on them.

Source: arXiv 2603.26663, Table 5 (KNN@10), with a null and intervals that the paper does not give. Nothing is fitted here,
so there is nothing to hold out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from tying_utils.base.checks import array, positive, table_pair
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.checks import table as checked_table
from tying_utils.base.precision import plain

from .alignment import corrected
from .statistics import Range, bootstrap_interval, central_range

Labels = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Overlap:
    """`knn_overlap` of a pair of `tokens` rows beside its null; every score is a share of `k` neighbours.

    - value, interval: `knn_overlap`, and its 95 % bootstrap interval over tokens, the neighbours held fixed.
    - chance: k / (V - 1), the exact mean of the null in which rows no longer correspond.
    - chance_range: the 2.5 % and 97.5 % quantiles of `permutations` draws of that null.
    - corrected: (value - chance) / (1 - chance); nan at k = V - 1, where every two tables agree.
    """

    value: float
    chance: float
    chance_range: Range
    corrected: float
    interval: Range
    tokens: int
    permutations: int
    k: int


@plain()
def nearest(value: Tensor, k: int = 10, *, block: int = 1024) -> Tensor:
    """Return the `k` cosine neighbours of each row of a (V, d) table, self excluded: (V, k) int64, nearest first.

    Rows are not centred; a zero row has cosine 0 with every other. Ties, as among duplicate rows, may fall either way, and
    otherwise for another `block`. float64 is computed in float64, all else in float32. In memory at a time: one normalised
    copy of the table and (block, V) similarities. Raises ValueError unless 1 <= k <= V - 1.
    """
    value = checked_table("value", value)
    return _nearest(value, _checked_k(k, len(value)), positive("block", block))


@plain()
def neighbor_graphs(tables: Mapping[str, Tensor], k: int = 10, *, block: int = 1024) -> dict[str, Tensor]:
    """Return `nearest` of each of two or more tables of the same tokens in one order: (V, k) int64, on the first's device.

    tables (V, d) by name; d, dtype and device may differ. Each graph is built once, after all arguments were checked.
    Raises ValueError for fewer than 2 tables, for tables that do not match and unless 1 <= k <= V - 1.
    """
    if not isinstance(tables, Mapping) or len(tables) < 2:
        came = list(tables) if isinstance(tables, Mapping) else type(tables).__name__
        raise ValueError(f"tables: a mapping from names to tables, at least 2 of them, is needed, got {came}")
    first, *others = tables
    checked: dict[str, Tensor] = {}
    for name in others:
        checked[first], checked[name] = table_pair(first, tables[first], name, tables[name])
    _checked_k(k, len(checked[first]))
    block = positive("block", block)
    return {name: _nearest(table, k, block).to(checked[first].device) for name, table in checked.items()}


@plain()
def knn_overlap(a: Tensor, b: Tensor, k: int = 10, *, block: int = 1024) -> float:
    """Return the mean over tokens of |neighbours in a & neighbours in b| / k, in [0, 1] (arXiv 2603.26663, Table 5).

    a (V, d_a), b (V, d_b): the same tokens in the same order; d may differ. Neighbours and `block` as in `nearest`.
    Raises ValueError for tables that do not match and unless 1 <= k <= V - 1. Independent tables score `knn_chance`.
    """
    near_a, near_b = neighbor_graphs({"a": a, "b": b}, k, block=block).values()
    return int(_shared(near_a, near_b).sum()) / near_a.numel()


@plain()
def overlap(
    a: Tensor, b: Tensor, k: int = 10, *, permutations: int = 100, bootstrap: int = 1000, seed: int = 0, block: int = 1024
) -> Overlap:
    """Return `knn_overlap` of two tables beside its null and intervals: see `Overlap`. No score is held out: nothing is fitted.

    The null permutes the rows of `b`, which relabels its neighbours and finds no new ones: V k indices per permutation. A
    token's relabelled neighbours are a uniform k-set of the others, hence the exact mean. `bootstrap` draws of the tokens
    and `seed`, an integer of at least 0, fix the rest. Arguments and errors otherwise as in `knn_overlap`.
    """
    tables = {"a": a, "b": b}
    return overlaps(tables, k, permutations=permutations, bootstrap=bootstrap, seed=seed, block=block)["a", "b"]


@plain()
def overlaps(
    tables: Mapping[str, Tensor],
    k: int = 10,
    *,
    permutations: int = 100,
    bootstrap: int = 1000,
    seed: int = 0,
    block: int = 1024,
) -> dict[tuple[str, str], Overlap]:
    """Return `overlap` of every pair of the tables, by both names in the order given, for the price of one graph per table.

    tables (V, d) and errors as in `neighbor_graphs`. Each pair scores what `overlap` with the same `seed` gives for it alone.
    """
    permutations = positive("permutations", permutations)
    bootstrap = positive("bootstrap", bootstrap)
    seed = checked_seed("seed", seed)
    near = neighbor_graphs(tables, k, block=block)
    return {(a, b): _overlap(near[a], near[b], permutations, bootstrap, seed) for a, b in combinations(near, 2)}


def knn_chance(V: int, k: int) -> float:
    """Return the expected overlap k / (V - 1) of independent neighbour sets. Raises ValueError unless 1 <= k <= V - 1."""
    return _checked_k(k, positive("V", V)) / (V - 1)


@plain()
def purity(table: Tensor, labels: Labels, k: int = 10, *, block: int = 1024) -> float:
    """Return the mean over tokens of the share of the `k` cosine neighbours that carry the token's own label, in [0, 1].

    table (V, d); labels (V,), any integers: a tensor, an array or a sequence. Neighbours and `block` as in `nearest`. A
    token that is alone under its label counts as 0. A table that knows nothing of the labels scores `purity_chance`.
    Raises ValueError for labels of another length or kind and unless 1 <= k <= V - 1.
    """
    table = checked_table("table", table)
    own = torch.from_numpy(_checked_labels(labels))
    if len(own) != len(table):
        raise ValueError(f"labels: one label a row is needed, {len(table)}, got {len(own)}")
    near = _nearest(table, _checked_k(k, len(table)), positive("block", block)).cpu()
    return int((own[near] == own[:, None]).sum()) / near.numel()


def purity_chance(labels: Labels) -> float:
    """Return the expected `purity` of a table that knows nothing of the labels: sum_c n_c (n_c - 1) / (V (V - 1)), whatever k.

    labels (V,) as in `purity`, n_c of them alike. Raises ValueError for fewer than 2 labels or other than integers.
    """
    counts = np.unique(_checked_labels(labels), return_counts=True)[1]
    V = int(counts.sum())
    return int((counts * (counts - 1)).sum()) / (V * (V - 1))


def _overlap(near_a: Tensor, near_b: Tensor, permutations: int, bootstrap: int, seed: int) -> Overlap:
    k, generator = near_a.shape[1], torch.Generator().manual_seed(seed)
    shared = _shared(near_a, near_b)
    scores, moved = [], torch.empty_like(near_b)
    for _ in range(permutations):
        order = torch.randperm(len(near_b), generator=generator).to(near_b.device)
        moved[order] = order[near_b]
        scores.append(int(_shared(near_a, moved).sum()) / near_a.numel())
    value, chance = int(shared.sum()) / near_a.numel(), knn_chance(len(shared), k)
    return Overlap(
        value=value,
        chance=chance,
        chance_range=central_range(scores),
        corrected=corrected(value, chance) if chance < 1 else math.nan,
        interval=bootstrap_interval(shared.cpu().double() / k, bootstrap, seed),
        tokens=len(shared),
        permutations=permutations,
        k=k,
    )


def _shared(near_a: Tensor, near_b: Tensor) -> Tensor:
    """Return the size of the intersection of each row of `near_a` with the same row of `near_b`, both (V, k)."""
    both = torch.cat((near_a, near_b), dim=1).sort(dim=1).values
    # An index occurs at most once in each half, so equal neighbours in the sorted row are the intersection.
    return (both[:, 1:] == both[:, :-1]).sum(1)


def _nearest(value: Tensor, k: int, block: int) -> Tensor:
    """Compute each similarity once for both of its rows, half the multiplications of unit @ unit.T; return as `nearest`."""
    unit = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
    for p in (torch.inf, 2):  # the largest entry is scaled to 1 first: its square may over- or underflow
        unit /= torch.linalg.vector_norm(unit, p, dim=1, keepdim=True).clamp(min=torch.finfo(unit.dtype).tiny)
    best = unit.new_full((len(unit), k), -torch.inf)
    near = torch.zeros_like(best, dtype=torch.int64)

    def offer(rows: slice, similarity: Tensor, first: int) -> None:
        """Let the neighbours `first`, `first` + 1, ... compete with the best k that `rows` have so far."""
        top, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best[rows], order = torch.cat((best[rows], top), dim=1).topk(k, dim=1)
        near[rows] = torch.cat((near[rows], index + first), dim=1).gather(1, order)

    for start in range(0, len(unit), block):
        similarity = unit[start : start + block] @ unit[start:].T
        similarity.diagonal().fill_(-torch.inf)
        offer(slice(start, start + block), similarity, start)
        offer(slice(start + block, None), similarity[:, block:].T, start)
        del similarity  # before the next one takes as much memory
    return near


def _checked_k(k: int, V: int) -> int:
    if (k := positive("k", k)) > V - 1:
        raise ValueError(f"k: at most V - 1 = {V - 1} neighbours exist, got {k}")
    return k


def _checked_labels(labels: Labels) -> np.ndarray:
    found = array("labels", labels)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"labels: a sequence of at least 2 integers is needed, one per token, got shape {found.shape}")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"labels: integers are needed, got {found.dtype}; number the classes from 0, as np.unique does")
    return found.astype(np.int64)
