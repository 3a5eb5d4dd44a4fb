"""Checks of arguments, shared by all: each names the argument, what came, and what would do. Reading this loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real  # numpy's scalars are of these kinds, too, and it need not be loaded to say so
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def table(name: str, value: Tensor) -> Tensor:
    """Return `value` detached if it is a finite floating (V, d) table with at least 2 rows, else raise ValueError."""
    import torch
    from torch import Tensor

    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: a torch tensor of shape (V, d) is needed, got {type(value).__name__}")
    if value.is_nested or value.is_meta or value.layout != torch.strided:
        kind = "nested" if value.is_nested else "meta" if value.is_meta else str(value.layout)
        raise ValueError(
            f"{name}: a dense tensor that holds its values is needed, got a {kind} one; .to_dense() makes one of a sparse one"
        )
    if value.ndim != 2 or not value.is_floating_point():
        raise ValueError(f"{name}: a floating tensor of shape (V, d) is needed, got shape {tuple(value.shape)}, {value.dtype}")
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{name}: float16, bfloat16, float32 or float64 is needed, got {value.dtype}; its .float() would do")
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


def differentiable(name: str, weight: Tensor) -> None:
    """Raise ValueError for a weight of the model `name` that was made in inference mode."""
    if weight.is_inference():
        raise ValueError(f"{name}: it was built in inference mode, so nothing of it has a gradient; build or load it outside")


def integer(name: str, value: int, least: int, below: float = math.inf) -> int:
    """Return `value` as an int if it is an integer (numpy's too) of at least `least` and below `below`, else ValueError."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value < below:
        bound = f"below {below:,}" if whole and value >= below else f"of at least {least}"
        raise ValueError(f"{name}: an integer {bound} is needed, got {_short(value)}")
    return int(value)


def positive(name: str, value: int) -> int:
    """Return `value` as an int if it is an integer of at least 1, else raise ValueError."""
    return integer(name, value, 1)


def seed(name: str, value: int) -> int:
    """Return `value` as an int if it is an integer from 0 to 2^63 - 1, which torch and numpy both take, else ValueError."""
    return integer(name, value, 0, 2**63)


def number(name: str, value: float, least: float = -math.inf) -> float:
    """Return `value` as a float if it is a finite number (numpy's too) of at least `least`, else raise ValueError."""
    try:
        found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # 10^400 fits no float
        found = math.inf
    if not (math.isfinite(found) and least <= found):
        bound = f" of at least {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name}: a finite number{bound} is needed, got {_short(value)}")
    return found


def scale(name: str, value: float) -> float:
    """Return `value` as a float if it is finite and at least 0, else raise ValueError."""
    return number(name, value, 0)


def above_zero(name: str, value: float) -> float:
    """Return `value` as a float if it is finite and above 0, else raise ValueError."""
    if scale(name, value) == 0:
        raise ValueError(f"{name}: a finite number above 0 is needed, got {value!r}")
    return float(value)


def flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: True or False is needed, got {_short(value)}")
    return value


def text(name: str, value: str) -> str:
    """Return `value` if it is a string, else raise ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: a string is needed, got {_short(value)}")
    return value


def path(name: str, value: str | Path) -> Path:
    """Return `value` with its ~ expanded if it is a string or a Path of a form that a file may have, else raise ValueError."""
    if not isinstance(value, str | Path):
        raise ValueError(f"{name}: a path, as a string or a pathlib.Path, is needed, got {_short(value)}")
    try:
        found = Path(value).expanduser()
        if "\0" in str(found):
            raise ValueError("a null byte")
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, or the ~ of nobody
        raise ValueError(f"{name}: {_short(str(value))} can be no path: {_short(error)}; give another") from error
    return found


def array(name: str, values: Any, dtype: Any = None) -> np.ndarray:
    """Return `values`, a tensor, an array or a sequence, as an array of numpy if they make one, else raise ValueError."""
    import numpy as np

    try:
        if hasattr(values, "detach"):  # numpy has no bfloat16
            values = values.detach().cpu()
            values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.asarray(values, dtype)
    except (TypeError, ValueError, OverflowError) as error:  # ragged, of no numbers, or of one too large
        raise ValueError(f"{name}: a sequence of numbers is needed, got {type(values).__name__} ({error})") from error


def mapping(name: str, value: Any, of: str) -> None:
    """Raise ValueError unless `value` is a mapping; `of` says in words from what to what."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: a mapping {of} is needed, got {_short(value)}")


def fields(name: str, values: Mapping[str, Any], known: Iterable[str], of: str) -> dict[str, Any]:
    """Return the mapping `values` as a dictionary if each key is one of the `known` fields of `of`, else raise ValueError."""
    mapping(name, values, f"of the fields of {of}")
    known = [*known]
    if unknown := sorted({str(key) for key in values} - {*known}):
        raise ValueError(f"{name}: {', '.join(unknown)}: no field of {of}; it has {', '.join(known)}")
    return dict(values)


def steps(name: str, tables: Mapping[int, Any]) -> list[int]:
    """Return the steps of a mapping from at least 2 optimizer steps to tables, in order, else raise ValueError."""
    mapping(name, tables, "from optimizer steps to tables")
    if len(tables) < 2:
        raise ValueError(f"{name}: at least 2 steps are needed, got {len(tables)}")
    for step in tables:
        integer(f"{name}, its steps", step, 0)
    return sorted(tables)


def _short(value: object) -> str:
    """Return how `value` is written, cut: it may be a text, a table or a number of thousands of digits."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"a number of {type(value).__name__}"
