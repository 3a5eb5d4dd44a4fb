"""Files that are whole or absent: atomic writes, checksums, and damaged files set aside by name."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and takes the name `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` atomically, with a checksum of its content under "checksum"."""
    body = {**value, "checksum": _checksum(value)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read what `write_json` wrote; None if there is no such file or its content does not match its checksum."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return value if checksum == _checksum(value) else None


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(path: Path, expected: str) -> bool:
    """Whether `path` is a file with the sha256 `expected`."""
    return path.is_file() and digest(path) == expected


def set_aside(path: Path, why: str) -> Path | None:
    """Rename a damaged file or folder to NAME.damaged-K, warn with its name, and return the new path.

    Nothing is deleted. Returns None (with the warning) if there is nothing to rename.
    """
    if not path.exists():
        warnings.warn(f"{path}: {why}; it is made again", stacklevel=3)
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    warnings.warn(f"{path}: {why}; it is kept as {aside.name} and made again", stacklevel=3)
    return aside


def write_with(path: Path, writer: Callable[[Path], object]) -> str:
    """Write `path` atomically through `writer(temporary path)` and return its sha256."""
    with replacing(path) as temporary:
        writer(temporary)
        result = digest(temporary)
    return result
