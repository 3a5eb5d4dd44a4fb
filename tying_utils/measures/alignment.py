"""How well one embedding table maps onto another: identity, orthogonal and linear alignment, and their chance level.

Source: arXiv 2603.26663, Table 1, measured as the authors' code measures it. Two tables that share nothing score far
above zero once a map is fitted, so every value belongs beside its `chance`; `alignment` gives both, and what the map
scores on tokens that it was not fitted on.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tying_utils.base.checks import number, positive, table_pair
from tying_utils.base.checks import seed as checked_seed
from tying_utils.base.precision import plain

from . import permuted
from .statistics import Range, bootstrap_interval, central_range

Kind = Literal["identity", "orthogonal", "linear"]

_BLOCK = 2**22  # entries of one float64 block (32 MB): full speed in matrix products, and no table is held in float64


@dataclass(frozen=True)
class Chance:
    """Scores of a pair whose rows were permuted: `mean`, and `low` to `high`, the 2.5 % and 97.5 % quantiles."""

    mean: float
    low: float
    high: float
    permutations: int


@dataclass(frozen=True)
class Alignment:
    """`align` of a pair of `tokens` rows beside its null, what it keeps on other tokens, and how sure both are.

    - value, interval: `align`, and its 95 % bootstrap interval over tokens, the fitted map held fixed. The map has seen
      these tokens, so the interval says how far `value` depends on which they are, not what the map would score on others.
    - held_out, held_out_interval: the mean row cosine of tokens that the map was not fitted on, and its interval, likewise.
      Of unrelated tables the interval is too narrow, as each token also helps to fit the others' map: it covers 0 four
      times in five. Whether two tables are related at all is for `value` and `chance_range` to say.
    - chance, chance_range: mean and 2.5 % to 97.5 % quantiles of the null of `permutations` permutations (see `chance`).
    - corrected: (value - chance) / (1 - chance); nan where chance is 1 to rounding and leaves nothing to explain.
    - gaussian: `gaussian_chance` at this V and the source's d, for reference; nan if V < d.
    """

    value: float
    held_out: float
    chance: float
    chance_range: Range
    corrected: float
    interval: Range
    held_out_interval: Range
    gaussian: float
    tokens: int
    permutations: int


@plain()
def align(source: Tensor, target: Tensor, kind: Kind) -> float:
    """Return mean row cosine in [-1, 1] of `source` mapped onto `target`, as published (arXiv 2603.26663, Tables 1, 2 and 6).

    source (V, d_s), target (V, d_t): the same tokens in the same order, any floating dtype; computed in float64, in
    blocks of rows, so that memory beyond the tables is a few d x d matrices.

    - "identity": the raw matrices, neither centred nor fitted; equal d.
    - "orthogonal": both are centred by column and the source rotated by the orthogonal Procrustes solution; equal d.
    - "linear": both are centred by column and the source mapped by least squares; d may differ. The fit is judged on
      the rows that it was made from. Columns taken at unit length, directions below 1e-9 of the largest count as none.

    A row of zero norm (after centring, where there is one) has cosine 0. Raises ValueError for tables that do not
    match, for an unknown kind, and for a linear fit with V <= d_s + 1, which is perfect whatever the tables hold.
    """
    return float(token_cosines(source, target, kind).mean())


@plain()
def token_cosines(source: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """Return row cosines (V,) in float64 whose mean is `align`; arguments, zero rows and errors as there (Figure 1)."""
    return _Pair(source, target, kind).cosines()


@plain()
def fit(source: Tensor, target: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the mapped source and the (centred) target, both (V, d_t) in float64; arguments and errors as in `align`."""
    pair = _Pair(source, target, kind)
    mapped, centred = zip(*pair.mapped(), strict=True)
    own, other = _unit(source), _unit(target)
    # A linear map ends in the target's unit, the others stay in the source's.
    return torch.cat(mapped) / (other if kind == "linear" else own), torch.cat(centred) / other


@plain()
def alignment(
    source: Tensor,
    target: Tensor,
    kind: Kind,
    *,
    folds: int = 5,
    permutations: int = 100,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Alignment:
    """Return `align` with everything that a value needs beside it: see `Alignment` for what comes back.

    The held-out score deals the tokens at random into `folds` folds and fits centring and map to the others of each, for the
    cost of one more pass over the tables. `bootstrap` draws make each interval. `seed`, an integer of at least 0, fixes folds,
    permutations and draws on every device. At V = 50,000 and d = 768 the defaults take under a minute on two CPU cores, nearly
    all of it for the null.

    Raises ValueError as `align` does, for more folds than tokens or fewer than 2, and for a linear fit that a fold would
    leave d_s + 1 tokens or fewer.
    """
    permutations = positive("permutations", permutations)
    bootstrap = positive("bootstrap", bootstrap)
    seed = checked_seed("seed", seed)
    pair = _Pair(source, target, kind)
    tokens, d = pair.source.shape
    _checked_folds(folds, tokens, d, kind)
    cosines = pair.cosines()
    held_out = cosines if kind == "identity" else pair.held_out(folds, seed)
    null = pair.null(permutations, seed)
    value, mean = float(cosines.mean()), float(null.mean())
    return Alignment(
        value=value,
        held_out=float(held_out.mean()),
        chance=mean,
        chance_range=central_range(null),
        corrected=corrected(value, mean) if mean < 1 - 1e-6 else math.nan,
        interval=bootstrap_interval(cosines, bootstrap, seed),
        held_out_interval=bootstrap_interval(held_out, bootstrap, seed),
        gaussian=gaussian_chance(tokens, d, kind) if tokens >= d else 0.0 if kind == "identity" else math.nan,
        tokens=tokens,
        permutations=permutations,
    )


@plain()
def chance(source: Tensor, target: Tensor, kind: Kind, *, permutations: int = 20, seed: int = 0) -> Chance:
    """Return what `align` gives when rows no longer correspond: the rows of `source` are permuted and the fit is made anew.

    This null keeps both spectra and the uneven row norms of the pair at hand; `gaussian_chance` does not. The centring
    and, for "linear", the whitening of the source survive a permutation and are computed once, in float64; what follows is
    in float32, good to 1e-4. Few permutations give quantiles interpolated within the scores seen.

    Beyond 8,192 tokens each permutation is scored on 8,192 drawn anew: the mean stays unbiased, and the range widens by that
    draw's noise, the row cosines' standard deviation / 90. There, more than 16 permutations share their blocks: the tokens of
    either table are dealt at random into 16 blocks of equal size, and a permutation says which block meets which. Each is a
    uniform permutation by itself; all together cost as much as 16 made whole.

    `seed`, an integer of at least 0, fixes the permutations on every device. Arguments and errors otherwise as in `align`.
    """
    permutations = positive("permutations", permutations)
    seed = checked_seed("seed", seed)
    null = _Pair(source, target, kind).null(permutations, seed)
    low, high = central_range(null)
    return Chance(float(null.mean()), low, high, permutations)


@plain()
def held_out(source: Tensor, target: Tensor, kind: Kind, *, folds: int = 5, seed: int = 0) -> Tensor:
    """Return the cosine (V,), float64, of each token whose fold the map was not fitted on; arguments as in `alignment`."""
    pair = _Pair(source, target, kind)
    tokens, d = pair.source.shape
    _checked_folds(folds, tokens, d, kind)
    return pair.cosines() if kind == "identity" else pair.held_out(folds, checked_seed("seed", seed))


def gaussian_chance(V: int, d: int, kind: Kind) -> float:
    """Return the expected `align` of two independent Gaussian (V, d) tables, to leading order in d / V.

    (8 / (3 pi)) sqrt(d / V) for "orthogonal", as the mean singular value of a square Gaussian matrix of width d is
    8 / (3 pi) sqrt(d); sqrt(d / V) for "linear"; 0 for "identity". Raises ValueError unless V >= d >= 1.
    """
    _known(kind)
    if positive("V", V) < positive("d", d):
        raise ValueError(f"V: at least d = {d} tokens are needed, got V = {V}")
    return {"identity": 0.0, "orthogonal": 8 / (3 * math.pi), "linear": 1.0}[kind] * math.sqrt(d / V)


def corrected(value: float, chance: float) -> float:
    """Return (value - chance) / (1 - chance): 0 at chance, 1 for a perfect map. Raises ValueError unless chance < 1."""
    if not (isinstance(value, float) and math.isnan(value)):  # of what could not be measured, which stays
        value = number("value", value)
    if not number("chance", chance) < 1:
        raise ValueError(f"chance: a score below 1 is needed, got {chance!r}; at 1 nothing is left to explain")
    return (value - chance) / (1 - chance)


def row_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each row of `a` with the same row of `b`, both (V, d), uncentred: (V,) in float64; 0 for a zero row.

    Raises ValueError unless both are finite floating tables of one shape.
    """
    a, b = table_pair("a", a, "b", b, same_width=True)
    return torch.cat([_cosines(_double(a[rows]), _double(b[rows])) for rows in _blocks(*a.shape)])


class _Pair:
    """A checked pair with the centring of both tables."""

    def __init__(self, source: Tensor, target: Tensor, kind: Kind):
        _known(kind)
        pair = table_pair("source", source, "target", target, same_width=kind != "linear")
        self.source, self.target = map(ordinary, pair)
        self.kind, (tokens, d) = kind, self.source.shape
        if kind == "linear" and tokens <= d + 1:  # centring spends one token
            raise ValueError(
                f"source: a linear fit of V = {tokens} tokens from d = {d} dimensions is perfect by construction; "
                "more tokens than dimensions would do (V > d + 1, better many times d), or kind='orthogonal'"
            )
        self.source_columns = self.target_columns = None
        if kind != "identity":
            self.source_columns, self.target_columns = _columns(self.source), _columns(self.target)

    def blocks(self, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float64 blocks of the (centred) source and target: of all rows, or of `rows` in their order."""
        tokens = len(self.source) if rows is None else len(rows)
        for part in _blocks(tokens, max(self.source.shape[1], self.target.shape[1])):
            at = part if rows is None else rows[part]
            yield _centred(self.source[at], self.source_columns), _centred(self.target[at], self.target_columns)

    def sums(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return S'R, the column sums of S and those of R over `rows`: R is the target, and for a linear fit [S T]."""
        parts = ((s, torch.cat((s, t), 1) if self.kind == "linear" else t) for s, t in self.blocks(rows))
        sums = ((s.T @ right, s.sum(0), right.sum(0)) for s, right in parts)
        return functools.reduce(lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]), sums)

    @functools.cached_property
    def total(self) -> Tensor:
        return self.sums()[0]

    def triangle(self, rows: Tensor | None = None, shift: Tensor | float = 0.0) -> Tensor:
        """Return R (d_s, d_s) of S = QR: all rows of the (centred) source, or `rows` plus `shift`. R'R is the S'S of `sums`."""
        blocks = (s + shift for s, _ in self.blocks(rows))
        return functools.reduce(lambda r, s: torch.linalg.qr(torch.cat((r, s)), mode="r").R, blocks, _double(self.source[:0]))

    def matrix(self, product: Tensor, rows: Tensor | None = None, shift: Tensor | float = 0.0) -> Tensor:
        """Return the map (d_s, d_t) that fits the S'R of `sums`, which is that of `rows` plus `shift`."""
        if self.kind == "orthogonal":
            u, _, vh = torch.linalg.svd(product)
            return u @ vh
        gram, cross = product[:, : len(product)], product[:, len(product) :]
        half = _whitener(gram, lambda: self.triangle(rows, shift))
        return half @ (half.T @ cross)

    def mapped(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Fit the map, then yield blocks of the mapped source and of the target."""
        if self.kind == "identity":
            yield from self.blocks()
            return
        matrix = self.matrix(self.total)
        for s, t in self.blocks():
            yield s @ matrix, t

    def cosines(self) -> Tensor:
        return torch.cat([_cosines(s, t) for s, t in self.mapped()])

    def held_out(self, folds: int, seed: int) -> Tensor:
        """Return row cosines (V,), in the order of the deal, of each fold under the centring and map fitted to the others."""
        V, found = len(self.source), []
        for rows in torch.randperm(V, generator=torch.Generator().manual_seed(seed)).tensor_split(int(folds)):
            product, s_sum, right_sum = self.sums(rows)
            others = V - len(rows)
            fitted = torch.ones(V, dtype=torch.bool).index_fill(0, rows, False).nonzero().flatten()
            # All rows sum to zero, so the others' mean is minus this fold's sum / others.
            product = self.total - product - torch.outer(s_sum, right_sum) / others
            if self.kind == "linear":
                gram = product[:, : len(product)]
                constant = gram.diagonal() <= 1e-12 * self.total.diagonal()  # over the others: what is left is rounding
                gram[constant] = 0
                gram[:, constant] = 0
            matrix, t_sum = self.matrix(product, fitted, s_sum / others), right_sum[-self.target.shape[1] :]
            found += [_cosines((s + s_sum / others) @ matrix, t + t_sum / others) for s, t in self.blocks(rows)]
        return torch.cat(found)

    def singles(self) -> tuple[Tensor, Tensor]:
        """Return both (centred) tables in float32, the source of a linear fit whitened to orthonormal columns.

        Scales that no cosine sees are taken out, so that float32 does not overflow.
        """
        half = _whitener(self.total[:, : len(self.total)], self.triangle) if self.kind == "linear" else None
        s_scale, t_scale = (float(table.abs().max()) or 1.0 for table in (self.source, self.target))
        pairs = [((s / s_scale if half is None else s @ half).float(), (t / t_scale).float()) for s, t in self.blocks()]
        source, target = zip(*pairs, strict=True)
        return torch.cat(source), torch.cat(target)

    def null(self, permutations: int, seed: int) -> Tensor:
        """Return scores (permutations,) in float64 of the pair with its rows permuted, the map fitted anew each time."""
        return permuted.scores(*self.singles(), self.kind, permutations, seed)


def _whitener(gram: Tensor, triangle: Callable[[], Tensor]) -> Tensor:
    """Return X (d, rank) such that S X has orthonormal columns, S'S = `gram`: so X X' is a pseudoinverse of it.

    Where `gram` is nearly singular, rounding has lost what S'S squares to less than its last digits. There the directions of S
    are read off its `triangle`, R of S = QR, which keeps them; those below 1e-9 of the largest count as none.
    """
    scale = gram.diagonal().sqrt()[:, None]  # unit columns: their units would otherwise pass for bad conditioning
    scale[scale == 0] = math.inf  # a column that is none stays none, whatever rounding left of it in the triangle
    gram = gram / scale / scale.T
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed and factor.diagonal().min() ** 2 > 1e-10:
        return torch.linalg.solve_triangular(factor.T, torch.eye(len(gram)).to(gram), upper=True) / scale
    _, values, directions = torch.linalg.svd(triangle() / scale.T, full_matrices=False)
    keep = values > 1e-9 * values[0]
    return directions[keep].T / values[keep] / scale


def _columns(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each column, and the size below which a centred entry is rounding error."""
    sums = [torch.stack((x.sum(0), x.square().sum(0))) for x in (_double(table[r]) for r in _blocks(*table.shape))]
    mean, square = torch.stack(sums).sum(0) / len(table)
    return mean, 1e-12 * square.sqrt()


def _centred(block: Tensor, columns: tuple[Tensor, Tensor] | None) -> Tensor:
    block = _double(block)
    if columns is None:
        return block
    mean, tolerance = columns
    block = block - mean
    return block.masked_fill_(block.abs() <= tolerance, 0)  # so that a constant column or a mean row is exactly zero


def ordinary(table: Tensor) -> Tensor:
    """Return a float64 table scaled by a power of two where squares of its entries over- or underflow; no cosine sees it."""
    return table if (unit := _unit(table)) == 1 else table * unit


def _unit(table: Tensor) -> Tensor | float:
    if table.dtype != torch.float64 or 1e-18 < (top := table.detach().abs().max()) < 1e18:
        return 1.0
    return _halving(top)


def _halving(top: Tensor) -> Tensor:
    """Return the power of two that takes `top`, at least 0, to [1/2, 1): to multiply by it changes no digit."""
    top = top.clamp(min=torch.finfo(top.dtype).tiny)
    return top.frexp().mantissa / top


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x * _halving(x.abs().amax(1, keepdim=True)) for x in (a, b))  # a row may be far smaller than its table
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


def _checked_folds(folds: int, V: int, d: int, kind: Kind) -> None:
    if positive("folds", folds) < 2 or folds > V:
        raise ValueError(f"folds: from 2 to V = {V} are needed, got {folds}; there are no more folds than tokens")
    others = V - math.ceil(V / folds)
    if kind == "linear" and others <= d + 1:
        raise ValueError(
            f"folds: {folds} folds of V = {V} tokens leave {others} to fit, and a linear fit from d = {d} dimensions needs "
            "more than d + 1; more folds, more tokens or kind='orthogonal' would do"
        )
