"""How far two tables' neighbour graphs lie apart in one joint spectral embedding.

Source: arXiv 2603.26663, appendix B, after the data kernels of arXiv 2305.05126. The published distances have no null;
`spectral` gives one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from tying_utils.base.checks import positive
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.precision import plain

from .neighbors import neighbor_graphs
from .statistics import Range, central_range


@dataclass(frozen=True)
class Spectral:
    """`spectral_distance` of a pair of `tokens` rows beside the null of `permutations` pairs whose rows no longer correspond.

    - value: the distance, 0 for tables with one neighbour graph.
    - chance, chance_range: mean and 2.5 % to 97.5 % quantiles of the null.
    - closeness: 1 - value / chance: 1 for equal graphs, 0 at chance; nan where chance is 0 to rounding, as at k = V - 1, where
      every two graphs are equal.
    """

    value: float
    chance: float
    chance_range: Range
    closeness: float
    tokens: int
    permutations: int


@plain()
def spectral_distance(a: Tensor, b: Tensor, k: int = 64, components: int = 128) -> float:
    """Return the distance of two tables' neighbour graphs in a joint embedding, at least 0 (arXiv 2603.26663, appendix B).

    a (V, d_a), b (V, d_b): the same tokens in the same order; d may differ. Each table's graph joins a token with its `k`
    cosine neighbours, with weight 1 where both name each other and 1/2 where one does (the source leaves open how the graph
    is made symmetric). The omnibus matrix [[A, (A + B) / 2], [(A + B) / 2, B]] keeps its `components` leading eigenpairs by
    magnitude, S and U; Z = U sqrt(abs(S)) holds both tables' tokens, and the distance is the spectral norm of Z_a - Z_b over
    the smaller of those of Z_a and Z_b. Computed in float64 from a fixed start vector: the same tables give the same number.
    Memory: 2 V components doubles for the eigenvectors, about three times that while they are found, and k V indices per graph.

    Raises ValueError for tables that do not match, unless 1 <= k <= V - 1, and unless 1 <= components < 2 V.
    """
    one, other = _graphs({"a": a, "b": b}, k, components).values()
    return _distance(one, other, components)


@plain()
def spectral(a: Tensor, b: Tensor, k: int = 64, components: int = 128, *, permutations: int = 20, seed: int = 0) -> Spectral:
    """Return `spectral_distance` beside its null: see `Spectral`.

    The null permutes the tokens of `b`, which relabels its graph and finds no neighbours anew; each permutation costs one
    eigenproblem. `seed`, an integer of at least 0, fixes the permutations. Arguments and errors otherwise as there.
    """
    return spectrals({"a": a, "b": b}, k, components, permutations=permutations, seed=seed)["a", "b"]


@plain()
def spectrals(
    tables: Mapping[str, Tensor], k: int = 64, components: int = 128, *, permutations: int = 20, seed: int = 0
) -> dict[tuple[str, str], Spectral]:
    """Return `spectral` of every pair of the tables, by both names in the order given; each table's graph is built once.

    tables (V, d) by name: the same tokens in the same order; d may differ. Each pair scores what `spectral` with the same
    `seed` gives for it alone. Raises ValueError for fewer than 2 tables, and otherwise as there.
    """
    permutations = positive("permutations", permutations)
    seed = checked_seed("seed", seed)
    graphs = _graphs(tables, k, components)
    return {(a, b): _spectral(graphs[a], graphs[b], components, permutations, seed) for a, b in combinations(graphs, 2)}


def _spectral(a: csr_array, b: csr_array, components: int, permutations: int, seed: int) -> Spectral:
    draw, V = np.random.default_rng(seed), _tokens(a)
    value, null = _distance(a, b, components), []
    for _ in range(permutations):
        order = draw.permutation(V)
        null.append(_distance(a, b[order][:, order], components))
    chance = float(np.mean(null))
    return Spectral(
        value=value,
        chance=chance,
        chance_range=central_range(null),
        closeness=1 - value / chance if chance > 1e-6 else math.nan,
        tokens=V,
        permutations=permutations,
    )


def _graphs(tables: Mapping[str, Tensor], k: int, components: int) -> dict[str, csr_array]:
    """Return the symmetric neighbour graph (V, V), float64, of each table, for which `components` are not too many."""
    components = positive("components", components)
    graphs = {}
    for name, near in neighbor_graphs(tables, k).items():
        rows = np.repeat(np.arange(len(near)), k)
        directed = csr_array((np.full(near.numel(), 0.5), (rows, near.cpu().numpy().ravel())), shape=(len(near),) * 2)
        graphs[name] = csr_array(directed + directed.T)
    V = len(next(iter(tables.values())))
    if components >= 2 * V:  # too many only where V is small and the graphs cost nothing
        raise ValueError(f"components: fewer than 2 V = {2 * V} are needed, got {components}")
    return graphs


def _tokens(graph: csr_array) -> int:
    return len(graph.indptr) - 1


def _distance(a: csr_array, b: csr_array, components: int) -> float:
    V = _tokens(a)

    def omnibus(vector: np.ndarray) -> np.ndarray:
        parts = vector.reshape(2, V).T
        of_a, of_b = a @ parts, b @ parts  # each graph is met once
        between = (of_a + of_b) / 2
        return np.concatenate([of_a[:, 0] + between[:, 1], between[:, 0] + of_b[:, 1]])

    operator = LinearOperator((2 * V, 2 * V), matvec=omnibus, dtype=np.float64)  # type: ignore[call-arg]
    start = np.random.default_rng(0).standard_normal(2 * V)
    values, vectors = eigsh(operator, k=components, which="LM", v0=start)
    z = vectors * np.sqrt(np.abs(values))
    parts = z[:V], z[V:]
    apart, *own = (float(torch.linalg.matrix_norm(torch.from_numpy(m), 2)) for m in (parts[0] - parts[1], *parts))
    return apart / min(own)
