"""The neighbour overlap of two tables beside the published loop over sets, scikit-learn, and the floor of two matrix products.

Independent Gaussian tables in float32, k 10. The floor keeps nothing: each table times its own transpose, in the same blocks.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.turns import Contest, Turn, device
from tying_utils.measures.neighbors import knn_overlap

OURS, SETS, SKLEARN, FLOOR = "knn_overlap", "loop over sets", "scikit-learn, brute force", "two full products"
BLOCK, K = 1024, 10


def contests(quick: bool) -> list[Contest]:
    """At a small size, and at the paper's largest."""
    ways = [OURS, SETS, FLOOR]
    if device() == "cpu":
        ways.insert(2, SKLEARN)
    sizes = [(8_000, 128, 5)] if quick else [(8_000, 128, 15), (50_304, 2_048, 1)]
    rows = [({"V": V, "d": d}, rounds) for V, d, rounds in sizes]
    return [Contest("neighbors", "neighbour overlap", ways, overlap, size, same, n, warm=min(1, n - 1)) for size, n in rows]


def overlap(way: str, V: int, d: int) -> Turn:
    """The overlap of two (V, d) tables; of the floor None."""
    a, b = (_table(V, d, seed) for seed in (0, 1))
    do: dict[str, Callable[[Tensor, Tensor], float | None]] = {SETS: _sets, SKLEARN: _sklearn, FLOOR: _floor}
    do[OURS] = lambda a, b: knn_overlap(a, b, K, block=BLOCK)
    return lambda: do[way](a, b)


def same(values: dict[str, Any]) -> None:
    """The same share of neighbours but for a few pairs that another order of sums ranks otherwise."""
    for way, value in values.items():
        if way != FLOOR:
            np.testing.assert_allclose(value, values[OURS], rtol=1e-3, err_msg=way)


@cache
def _table(V: int, d: int, seed: int) -> Tensor:
    # Half of every table is common, so that there is an overlap to find.
    common, own = (torch.randn(V, d, generator=torch.Generator().manual_seed(number)) for number in (2, seed))
    return (common + own).to(device())


def _similarities(table: Tensor) -> Any:
    unit = torch.nn.functional.normalize(table)
    for start in range(0, len(unit), BLOCK):
        yield unit[start : start + BLOCK] @ unit.T


def _floor(a: Tensor, b: Tensor) -> None:
    for table in (a, b):
        for _ in _similarities(table):
            pass


def _sets(a: Tensor, b: Tensor) -> float:
    near = []
    for table in (a, b):
        rows: list[list[int]] = []
        for similarity in _similarities(table):
            own = torch.arange(len(similarity), device=table.device)
            similarity[own, len(rows) + own] = -torch.inf
            rows += similarity.topk(K, dim=1).indices.tolist()
        near.append(rows)
    return sum(len(set(x) & set(y)) for x, y in zip(*near, strict=True)) / (K * len(a))


def _sklearn(a: Tensor, b: Tensor) -> float:
    from sklearn.neighbors import NearestNeighbors

    near = []
    for table in (a.numpy(), b.numpy()):
        search = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(table)
        near.append(search.kneighbors(return_distance=False))  # with no argument a token is not its own neighbour
    return sum(len(set(x) & set(y)) for x, y in zip(*near, strict=True)) / (K * len(a))
