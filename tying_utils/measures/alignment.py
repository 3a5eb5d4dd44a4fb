"""How well one embedding table maps onto another: identity, orthogonal and linear alignment, and their chance level.

Source: arXiv 2603.26663, Table 1, measured as the authors' code measures it. Two tables that share nothing score far
above zero once a map is fitted, so every value belongs beside its `chance`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import positive, table_pair

Kind = Literal["identity", "orthogonal", "linear"]

_BLOCK = 2**22  # entries of one float64 block (32 MB): full speed in matrix products, and no table is held in float64


@dataclass(frozen=True)
class Chance:
    """Scores of a pair whose rows were permuted: `mean`, and `low` to `high`, the 2.5 % and 97.5 % quantiles."""

    mean: float
    low: float
    high: float
    permutations: int


def align(source: Tensor, target: Tensor, kind: Kind) -> float:
    """Mean row cosine in [-1, 1] of `source` mapped onto `target`, as published (arXiv 2603.26663, Tables 1, 2 and 6).

    source (V, d_s), target (V, d_t): the same tokens in the same order, any floating dtype; computed in float64, in
    blocks of rows, so that memory beyond the tables is a few d x d matrices.

    - "identity": the raw matrices, neither centred nor fitted; equal d.
    - "orthogonal": both are centred by column and the source rotated by the orthogonal Procrustes solution; equal d.
    - "linear": both are centred by column and the source mapped by least squares; d may differ. The fit is judged on
      the rows that it was made from.

    A row of zero norm (after centring, where there is one) has cosine 0. Raises ValueError for tables that do not
    match, for an unknown kind, and for a linear fit with V <= d_s + 1, which is perfect whatever the tables hold.
    """
    return float(token_cosines(source, target, kind).mean())


def token_cosines(source: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """Row cosines (V,) in float64 whose mean is `align`; arguments, zero rows and errors as there (Figure 1)."""
    return _Pair(source, target, kind).cosines()


def fit(source: Tensor, target: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """The mapped source and the (centred) target, both (V, d_t) in float64; arguments and errors as in `align`."""
    pair = _Pair(source, target, kind)
    mapped, centred = zip(*pair.mapped(), strict=True)
    return torch.cat(mapped), torch.cat(centred)


def chance(source: Tensor, target: Tensor, kind: Kind, *, permutations: int = 20, seed: int = 0) -> Chance:
    """What `align` gives when rows no longer correspond: the rows of `source` are permuted and the fit is made anew.

    This null keeps both spectra and the uneven row norms of the pair at hand; `gaussian_chance` does not. The centring
    and the factor of S'S survive a permutation and are computed once. Each permutation costs two products of
    V x d_s x d_t in float64 and, for "orthogonal", an SVD of d x d: at V = 50,280 and d = 2,048 half a minute (linear)
    to a minute (orthogonal) on two CPU cores. Few permutations give quantiles interpolated within the scores seen.

    `seed` fixes the permutations on every device. Arguments and errors otherwise as in `align`.
    """
    positive("permutations", permutations)
    pair = _Pair(source, target, kind)
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(source), generator=generator) for _ in range(permutations))
    scores = torch.tensor([float(pair.cosines(order).mean()) for order in orders], dtype=torch.float64)
    low, high = scores.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Chance(float(scores.mean()), low, high, permutations)


def gaussian_chance(V: int, d: int, kind: Kind) -> float:
    """Expected `align` of two independent Gaussian (V, d) tables, to leading order in d / V.

    (8 / (3 pi)) sqrt(d / V) for "orthogonal", as the mean singular value of a square Gaussian matrix of width d is
    8 / (3 pi) sqrt(d); sqrt(d / V) for "linear"; 0 for "identity". Raises ValueError unless V >= d >= 1.
    """
    _known(kind)
    if positive("V", V) < positive("d", d):
        raise ValueError(f"V: at least d = {d} tokens are needed, got V = {V}")
    return {"identity": 0.0, "orthogonal": 8 / (3 * math.pi), "linear": 1.0}[kind] * math.sqrt(d / V)


def corrected(value: float, chance: float) -> float:
    """(value - chance) / (1 - chance): 0 at chance, 1 for a perfect map. Raises ValueError unless chance < 1."""
    if not chance < 1:
        raise ValueError(f"chance: a score below 1 is needed, got {chance!r}; at 1 nothing is left to explain")
    return (value - chance) / (1 - chance)


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` with the same row of `b`, both (V, d), uncentred: (V,) in float64; 0 for a zero row.

    Raises ValueError unless both are finite floating tables of one shape.
    """
    a, b = table_pair("a", a, "b", b, same_width=True)
    return torch.cat([_cosines(_double(a[rows]), _double(b[rows])) for rows in _blocks(*a.shape)])


class _Pair:
    """A checked pair with what a permutation of the source's rows leaves alone: the centring and the factor of S'S."""

    def __init__(self, source: Tensor, target: Tensor, kind: Kind):
        _known(kind)
        self.source, self.target = table_pair("source", source, "target", target, same_width=kind != "linear")
        self.kind, (tokens, d) = kind, self.source.shape
        if kind == "linear" and tokens <= d + 1:  # centring spends one token
            raise ValueError(
                f"source: a linear fit of V = {tokens} tokens from d = {d} dimensions is perfect by construction; "
                "more tokens than dimensions would do (V > d + 1, better many times d), or kind='orthogonal'"
            )
        self.source_columns = self.target_columns = None
        if kind != "identity":
            self.source_columns, self.target_columns = _columns(self.source), _columns(self.target)
        self.solve = self._solver() if kind == "linear" else None

    def _solver(self) -> Callable[[Tensor], Tensor]:
        rows = _blocks(*self.source.shape)
        blocks = (_centred(self.source[r], self.source_columns) for r in rows)
        return _gram_solver(_product((s, s) for s in blocks))

    def blocks(self, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Float64 blocks of the (centred) source, its rows taken in `order`, and of the target."""
        for rows in _blocks(len(self.source), max(self.source.shape[1], self.target.shape[1])):
            s = self.source[rows] if order is None else self.source[order[rows]]
            yield _centred(s, self.source_columns), _centred(self.target[rows], self.target_columns)

    def mapped(self, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Fit the map, then yield blocks of the mapped source and of the target."""
        if self.kind == "identity":
            yield from self.blocks(order)
            return
        cross = _product(self.blocks(order))
        if self.solve is not None:
            matrix = self.solve(cross)
        else:
            u, _, vh = torch.linalg.svd(cross)
            matrix = u @ vh
        for s, t in self.blocks(order):
            yield s @ matrix, t

    def cosines(self, order: Tensor | None = None) -> Tensor:
        return torch.cat([_cosines(s, t) for s, t in self.mapped(order)])


def _gram_solver(gram: Tensor) -> Callable[[Tensor], Tensor]:
    """X -> pinv(gram) X up to the choice of least-squares solution, which leaves the fit alone."""
    scale = gram.diagonal().sqrt()[:, None]  # unit columns: their units would otherwise pass for bad conditioning
    scale[scale == 0] = 1
    gram = gram / scale / scale.T
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed and factor.diagonal().min() ** 2 > 1e-10:
        return lambda x: torch.cholesky_solve(x / scale, factor) / scale
    values, vectors = torch.linalg.eigh(gram)
    keep = values > 1e-12 * values[-1]
    half = vectors[:, keep] / values[keep].sqrt()
    return lambda x: half @ (half.T @ (x / scale)) / scale


def _columns(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each column, and the size below which a centred entry is rounding error."""
    sums = [torch.stack((x.sum(0), x.square().sum(0))) for x in (_double(table[r]) for r in _blocks(*table.shape))]
    mean, square = torch.stack(sums).sum(0) / len(table)
    return mean, 1e-12 * square.sqrt()


def _product(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of a.T @ b over blocks of rows: A.T @ B of the whole tables."""
    return functools.reduce(torch.add, (a.T @ b for a, b in pairs))


def _centred(block: Tensor, columns: tuple[Tensor, Tensor] | None) -> Tensor:
    block = _double(block)
    if columns is None:
        return block
    mean, tolerance = columns
    block = block - mean
    return block.masked_fill_(block.abs() <= tolerance, 0)  # so that a constant column or a mean row is exactly zero


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    scale = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / scale.masked_fill(scale == 0, 1)).clamp(-1, 1)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _double(block: Tensor) -> Tensor:
    return (block.cpu() if block.is_mps else block).double()  # Apple GPUs have no float64


def _known(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind: one of {', '.join(get_args(Kind))} is needed, got {kind!r}")
