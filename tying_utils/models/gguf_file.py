"""The token tables of a GGUF file, the format of llama.cpp, through the package gguf: the extra `real`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tying_utils.base import files
from tying_utils.models.layout import check_alone

NAMES = ("token_embd.weight", "output.weight")
_AS_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_installed() -> None:
    """Raise ValueError where the package gguf is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("source: the package gguf is needed to read a GGUF file: pip install '.[real]' in the checkout")


def read(
    path: Path, names: tuple[str, str] | None = None, rows: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """Read "input" and, where it is there, "output" -> table (V, d); their names in the file; and the bytes they take there.

    float32, float16 and bfloat16 come as they are stored, quantised tables (Q8_0 and all others that gguf knows) in float32,
    which holds Q8_0 exactly. names: of the two tensors, where they are called otherwise than `NAMES`. rows: the first so many
    of each table are kept.

    Raises ValueError where the package gguf is missing, for a file that is damaged or cut short, holds no token table or one
    of a kind that gguf does not read, or two tables of unlike shapes.
    """
    stored = _tensors(path)
    outside = {name: tuple(map(int, one.shape[::-1])) for name, one in stored.items() if not name.startswith("blk.")}
    some = ", ".join([*outside][:12]) or "none outside of its blocks"
    for name in names or NAMES[:1]:
        if name not in stored:
            raise ValueError(f"{'names' if names else 'source'}: {path} holds no token table {name!r}; it holds {some}")
    one, other = names or NAMES
    held = {"input": one} | ({"output": other} if other in stored and other != one else {})
    if names is None and "output" not in held:
        check_alone(str(path), one, outside.pop(one), outside)
    tables = {part: _table(path, name, stored[name]) for part, name in held.items()}
    if rows is not None:
        if rows > (least := min(map(len, tables.values()))):
            raise ValueError(f"rows: at most {least} rows of the tables of {path} can be kept, got {rows}")
        tables = {part: table[:rows] for part, table in tables.items()}
    if len(shapes := {part: tuple(table.shape) for part, table in tables.items()}) > 1 and shapes["input"] != shapes["output"]:
        shown = f"the input table of {path} is {shapes['input']}, its output table {shapes['output']}"
        raise ValueError(f"source: {shown}; rows=N keeps the first N rows of each, where the others pad it")
    return tables, held, sum(stored[name].n_bytes for name in held.values())


def _tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, mapped from disk."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(b"GGUF") and (what := files.impostor(head)):
        raise ValueError(f"source: {path} is {what}")
    check_installed()
    from gguf import GGUFReader  # type: ignore[import-not-found]

    class Bounded(GGUFReader):
        """gguf's reader takes what lies beyond the end for empty, and would go on for as long as a damaged count says."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **more: Any) -> Any:
            if (end := int(offset) + int(count) * np.dtype(dtype).itemsize) > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data)}, before byte {end}")
            return super()._get(offset, dtype, count, *rest, **more)

    try:
        return {tensor.name: tensor for tensor in Bounded(path).tensors}
    except Exception as error:  # whatever bytes that are no header lead to
        short = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"source: {path} is damaged, cut short, or no GGUF file ({short}); copy it anew") from error


def _table(path: Path, name: str, stored: Any) -> Tensor:
    """Return a tensor of the file as a table (V, d) of its own memory."""
    from gguf import dequantize  # type: ignore[import-not-found]

    kind = stored.tensor_type.name
    if len(stored.shape) != 2:
        raise ValueError(f"source: {name} of {path} has the shape {tuple(map(int, stored.shape))}; a table (V, d) is needed")
    try:
        values = stored.data.copy() if kind in _AS_STORED else dequantize(stored.data, stored.tensor_type)
    except NotImplementedError as error:
        known = ", ".join(_AS_STORED)
        raise ValueError(f"source: {name} of {path} is stored as {kind}, which is not read; use {known} or Q8_0") from error
    return torch.from_numpy(values).view(_AS_STORED.get(kind, torch.float32))
