"""Checks of arguments, shared by all: each names the argument, what came, and what would do. Reading this loads no torch."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real  # numpy's scalars are of these kinds, too, and it need not be loaded to say so
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def table(name: str, value: Tensor) -> Tensor:
    """Return `value` detached if it is a finite floating (V, d) table with at least 2 rows, else raise ValueError."""
    import torch
    from torch import Tensor

    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: a torch tensor of shape (V, d) is needed, got {type(value).__name__}")
    if value.ndim != 2 or not value.is_floating_point():
        raise ValueError(f"{name}: a floating tensor of shape (V, d) is needed, got shape {tuple(value.shape)}, {value.dtype}")
    if value.shape[0] < 2 or value.shape[1] < 1:
        raise ValueError(f"{name}: at least 2 rows and 1 column are needed, got shape {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: {bad} entries are NaN or infinite; drop those rows or repair the table first")
    return value.detach()


def table_pair(name_a: str, a: Tensor, name_b: str, b: Tensor, *, same_width: bool = False) -> tuple[Tensor, Tensor]:
    """Check two tables of equal V (and, with `same_width`, equal d) and return them detached."""
    a, b = table(name_a, a), table(name_b, b)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{name_a} and {name_b}: rows are tokens and must match, got V = {a.shape[0]} and V = {b.shape[0]}; "
            "keep the rows of the tokens that both vocabularies hold, in one order"
        )
    if same_width and a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_a} and {name_b}: equal d is needed, got d = {a.shape[1]} and d = {b.shape[1]}")
    return a, b


def integer(name: str, value: int, least: int, below: float = math.inf) -> int:
    """Return `value` as an int if it is an integer (numpy's too) of at least `least` and below `below`, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value < below:
        raise ValueError(f"{name}: an integer of at least {least} is needed, got {value!r}")
    return int(value)


def positive(name: str, value: int) -> int:
    """Return `value` as an int if it is an integer of at least 1, else raise ValueError."""
    return integer(name, value, 1)


def scale(name: str, value: float) -> float:
    """Return `value` as a float if it is finite and at least 0, else raise ValueError."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, int) else value  # 10^400 fits no float
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= number <= sys.float_info.max:
        raise ValueError(f"{name}: a finite number of at least 0 is needed, got {value!r}")
    return float(value)


def above_zero(name: str, value: float) -> float:
    """Return `value` as a float if it is finite and above 0, else raise ValueError."""
    if scale(name, value) == 0:
        raise ValueError(f"{name}: a finite number above 0 is needed, got {value!r}")
    return float(value)
