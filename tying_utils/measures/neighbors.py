"""Nearest neighbours of tokens, and how far two tables agree on them (arXiv 2603.26663, Table 5: KNN@10)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import positive, table, table_pair


def nearest(value: Tensor, k: int = 10, *, block: int = 1024) -> Tensor:
    """The `k` cosine neighbours of each row of a (V, d) table, self excluded: (V, k) int64, nearest first.

    Rows are not centred; a zero row has cosine 0 with every other. Ties fall as torch.topk breaks them. Half precision
    is computed in float32. `block` rows of similarities, (block, V), are in memory at a time.
    Raises ValueError unless 1 <= k <= V - 1.
    """
    value = table("value", value)
    return _nearest(value, _checked_k(k, len(value)), positive("block", block))


def knn_overlap(a: Tensor, b: Tensor, k: int = 10, *, block: int = 1024) -> float:
    """Mean over tokens of |neighbours in a & neighbours in b| / k, in [0, 1] (arXiv 2603.26663, Table 5).

    a (V, d_a), b (V, d_b): the same tokens in the same order; d may differ. Neighbours and `block` as in `nearest`.
    Raises ValueError for tables that do not match and unless 1 <= k <= V - 1. Independent tables score `knn_chance`.
    """
    a, b = table_pair("a", a, "b", b)
    _checked_k(k, len(a))
    positive("block", block)
    both = torch.cat((_nearest(a, k, block), _nearest(b, k, block).to(a.device)), dim=1).sort(dim=1).values
    # An index occurs at most once in each half, so equal neighbours in the sorted row are the intersection.
    return int((both[:, 1:] == both[:, :-1]).sum()) / (len(a) * k)


def knn_chance(V: int, k: int) -> float:
    """Expected overlap k / (V - 1) of independent neighbour sets. Raises ValueError unless 1 <= k <= V - 1."""
    return _checked_k(k, positive("V", V)) / (V - 1)


def _nearest(value: Tensor, k: int, block: int) -> Tensor:
    unit = value if value.dtype == torch.float64 else value.float()
    unit = F.normalize(unit, eps=torch.finfo(unit.dtype).tiny)
    found = []
    for start in range(0, len(unit), block):
        similarity = unit[start : start + block] @ unit.T
        similarity.diagonal(start).fill_(-torch.inf)
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def _checked_k(k: int, V: int) -> int:
    if positive("k", k) > V - 1:
        raise ValueError(f"k: at most V - 1 = {V - 1} neighbours exist, got {k}")
    return k
