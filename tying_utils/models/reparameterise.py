"""Tables computed from other weights, under a model that stays an ordinary untied one, and the remedies that ask for them.

The model holds the effective tables, two Parameters (V, d). Their gradients go on by the chain rule to the weights behind them,
which the optimizer holds in their place; after its step the tables are written anew:

    folded = Folded(model, ProjectedTable(table))
    loss.backward()
    folded.backward()       # gradients of folded.parameters(), the trunk's among them
    optimizer.step()        # an optimizer of folded.parameters()
    folded.refresh()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tying_utils.base.checks import positive
from tying_utils.models.rules import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "folded."  # of the names of weights that are not the model's own


class ProjectedTable(nn.Module):
    """E = W, U = W P with W (V, d) and P (d, d), from P = I: at first the tied table W in both uses."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.detach().clone())
        self.map = nn.Parameter(torch.eye(table.shape[1], dtype=table.dtype, device=table.device))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the input and output table, each (V, d)."""
        return self.table.view_as(self.table), self.table @ self.map


class SPDTable(nn.Module):
    """E = W T^-1, U = W T with W (V, d) and T = L L^T (d, d), from T = I: at first the tied table W in both uses.

    The weights of L, lower triangular, are its entries below the diagonal and the logarithms of those on it, so that T is
    positive definite and weight decay draws it to I.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        d = table.shape[1]
        self.table = nn.Parameter(table.detach().clone())
        self.log_diagonal = nn.Parameter(torch.zeros(d, dtype=table.dtype, device=table.device))
        self.below = nn.Parameter(torch.zeros(d * (d - 1) // 2, dtype=table.dtype, device=table.device))

    def factor(self) -> Tensor:
        """Return L (d, d)."""
        d = len(self.log_diagonal)
        rows, columns = torch.tril_indices(d, d, -1, device=self.below.device)
        return torch.diag(self.log_diagonal.exp()).index_put((rows, columns), self.below)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the input and output table, each (V, d)."""
        factor = self.factor()
        inner = torch.linalg.solve_triangular(factor, self.table.T, upper=False)
        return torch.linalg.solve_triangular(factor.T, inner, upper=True).T, self.table @ factor @ factor.T


class FactorisedInput(nn.Module):
    """E = A B with A (V, width) and B (width, d), and U (V, d) of its own.

    A starts as the first columns of `table` and B with a standard deviation of width^-1/2, so that the entries of A B are about
    as large as those of `table`. B depends on `seed` alone.
    """

    def __init__(self, table: Tensor, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        up = torch.randn(width, table.shape[1], generator=generator) / width**0.5
        self.rows = nn.Parameter(table[:, :width].detach().clone())
        self.up = nn.Parameter(up.to(table))
        self.output = nn.Parameter(table.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the input and output table, each (V, d)."""
        return self.rows @ self.up, self.output.view_as(self.output)


class CompactInput(nn.Module):
    """E made from each token's number by a small network, and U (V, d) of its own.

    The number is written in `digits` digits of base b, the smallest that will do for V. Each digit chooses one of b learned
    codes (d,), and their sum goes through a layer of 2 d SiLU units to the row. The start depends on `seed` alone; the entries
    of E are as large as those of `table`.
    """

    digits: Tensor

    def __init__(self, table: Tensor, digits: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        V, d = table.shape
        base = _base(V, digits)
        places = torch.arange(V)[:, None] // base ** torch.arange(digits) % base + base * torch.arange(digits)
        self.register_buffer("digits", places.to(table.device), persistent=False)  # (V, digits): rows of `codes`
        codes, hidden = (torch.randn(shape, generator=generator) for shape in ((base * digits, d), (d, 2 * d)))
        self.codes = nn.Parameter((codes * digits**-0.5).to(table))
        self.hidden = nn.Parameter((hidden * d**-0.5).to(table))
        up = torch.randn(2 * d, d, generator=generator).to(table)
        with torch.no_grad():
            self.up = nn.Parameter(up * table.std() / (self._units() @ up).std())
        self.output = nn.Parameter(table.detach().clone())

    def _units(self) -> Tensor:
        return nn.functional.silu(self.codes[self.digits].sum(1) @ self.hidden)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the input and output table, each (V, d)."""
        return self._units() @ self.up, self.output.view_as(self.output)


def _base(vocab_size: int, digits: int) -> int:
    """Return the smallest base in which `digits` digits number that many tokens."""
    base = max(1, int(vocab_size ** (1 / digits)) - 1)  # a root in floating point may come out above
    while base**digits < vocab_size:
        base += 1
    return base


class Folded:
    """`model`, untied, with its two tables made by `tables`, a module whose forward gives (input, output), each (V, d).

    The tables are written into the model at once. Raises ValueError if the model is tied.
    """

    def __init__(self, model: PreTrainedModel, tables: nn.Module) -> None:
        ends: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
        self._model, self.tables, self._leaves = model, tables, tuple(end.weight for end in ends)
        if self._leaves[0].data_ptr() == self._leaves[1].data_ptr():
            raise ValueError("model: an untied model is needed to hold two tables, this one is tied; build it with tied=False")
        self.refresh()

    def named(self) -> dict[str, nn.Parameter]:
        """Return what to train by name: the trunk's weights, then those behind the tables, under `PREFIX`."""
        own = {id(leaf) for leaf in self._leaves}
        trunk = {name: p for name, p in self._model.named_parameters() if id(p) not in own}
        return trunk | {f"{PREFIX}{name}": p for name, p in self.tables.named_parameters()}

    def parameters(self) -> list[nn.Parameter]:
        """Return what to give to the optimizer and to clipping."""
        return list(self.named().values())

    def path_gradients(self) -> tuple[Tensor, Tensor]:
        """Return the gradients (V, d) of the input and output table, since the last `backward`. ValueError if there is none."""
        source, target = (leaf.grad for leaf in self._leaves)
        if source is None or target is None:
            raise ValueError("backward: no gradient of both tables since the last one; run loss.backward() first")
        return source, target

    def backward(self) -> None:
        """Carry the tables' gradients on to the weights behind them, and drop them."""
        torch.autograd.backward(self.tables(), self.path_gradients())
        for leaf in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the tables anew into the model."""
        for leaf, table in zip(self._leaves, self.tables(), strict=True):
            leaf.copy_(table)


class _Folded(Remedy):
    def tied_after(self, tied: bool, step: int, steps: int) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Projection(_Folded):
    """A learned d x d map P on the output side: E = W, U = W P, from P = I.

    Press & Wolf's projection (arXiv 1608.05859), there with a penalty on P's norm in the loss; here AdamW's weight
    decay, which it shares with all weights, pulls it to 0.
    """

    name: ClassVar[str] = "projection"
    line: ClassVar[str] = "a learned d x d map before the output use (Press & Wolf)"

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        return d_model**2

    def tables(self, table: Tensor, seed: int) -> nn.Module:
        return ProjectedTable(table)


@dataclass(frozen=True, kw_only=True)
class SPDMap(_Folded):
    """A learned symmetric positive definite map T between the two uses: E = W T^-1, U = W T, from T = I.

    The map of Pseudo-Inverse Tying (arXiv 2602.04556), T = L L^T by its Cholesky factor. There W is kept orthonormal, which
    makes the two tables each other's pseudo-inverses; here W trains freely and only the map is taken over.
    """

    name: ClassVar[str] = "spd-map"
    line: ClassVar[str] = "a learned symmetric positive definite map between the uses (Pseudo-Inverse Tying's)"

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        return d_model * (d_model + 1) // 2

    def tables(self, table: Tensor, seed: int) -> nn.Module:
        return SPDTable(table)


@dataclass(frozen=True, kw_only=True)
class Factorised(_Folded):
    """An untied model whose input table is small: E = A B with A (V, width) and B (width, d); U is its own.

    Chung et al., "Rethinking embedding coupling" (arXiv 2010.12821): decoupled tables, the input's narrow and projected up.
    """

    name: ClassVar[str] = "factorised"
    line: ClassVar[str] = "an untied model with a small factorised input table (Chung et al.)"
    fits: ClassVar[tuple[bool, ...]] = (False,)
    width: int = 16

    def __post_init__(self) -> None:
        self._set(width=positive("width", self.width))

    def check_width(self, d_model: int) -> None:
        """Raise ValueError where the factors would not be smaller than the table."""
        if self.width >= d_model:
            raise ValueError(f"width: below d_model = {d_model} is needed, got {self.width}; try {max(1, d_model // 4)}")

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        return self.width * (vocab_size + d_model) - vocab_size * d_model

    def tables(self, table: Tensor, seed: int) -> nn.Module:
        return FactorisedInput(table, self.width, seed)


@dataclass(frozen=True, kw_only=True)
class Compact(_Folded):
    """An untied model whose input table is a learned map of the token's number, with few weights; U is its own.

    In the manner of Leviathan (arXiv 2601.22040): a compact map in place of the input table, an untied head. The map itself is
    ours, two layers on the sum of learned codes for the number's digits (`CompactInput`).
    """

    name: ClassVar[str] = "compact"
    line: ClassVar[str] = "an untied model whose input table is a small learned map of the token's number (after Leviathan)"
    fits: ClassVar[tuple[bool, ...]] = (False,)
    digits: int = 2

    def __post_init__(self) -> None:
        self._set(digits=positive("digits", self.digits))

    def added_parameters(self, vocab_size: int, d_model: int) -> int:
        return d_model * (self.digits * _base(vocab_size, self.digits) + 4 * d_model - vocab_size)

    def tables(self, table: Tensor, seed: int) -> nn.Module:
        return CompactInput(table, self.digits, seed)
