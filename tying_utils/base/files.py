"""Files that are whole or absent: atomic writes, checksums, damaged files set aside by name, and names that stay inside."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

ZIP = b"PK\x03\x04"
# What is often found in place of a file of weights, by how it begins: in lower case, without blanks and byte order mark.
_AGAIN = "download the file itself"
_POINTER = "a git-lfs pointer, which stands for the file"
_IMPOSTORS = {
    **dict.fromkeys((b"version https://git-lfs", b"version https://hawser"), f"{_POINTER}; run `git lfs pull` in its folder"),
    b"<!doctype html": f"an HTML page, of a hub or a proxy; {_AGAIN}",
    b"<html": f"an HTML page, of a hub or a proxy; {_AGAIN}",
    b"<?xml": f"an XML page, as a store answers that refuses; {_AGAIN}",
    b"{": f"JSON, as a server answers that refuses; {_AGAIN}",
    ZIP.lower(): "a zip archive; unpack it, or where torch.save wrote it name it pytorch_model.bin",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"gguf": "a GGUF file; give its own path, which ends in .gguf",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is flushed to disk and takes the name `path`.

    Raises OSError as `naming_a_full_disk`; after any exception the old file stays and the temporary one goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_a_full_disk(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Raise one OSError that says so where there is no room for `path`, whatever error the library that writes raises."""
    try:
        yield
    except Exception as error:
        signs = [text for number in _FULL for text in (f"os error {number})", os.strerror(number))]
        said = getattr(error, "errno", None) in _FULL or any(sign in str(error) for sign in signs)
        if not said and not (isinstance(error, OSError) and shutil.disk_usage(path.parent).free < 4096):
            raise
        words = "there is no room to write it; make some and start again: what was finished is kept"
        raise OSError(errno.ENOSPC, words, str(path)) from error


def impostor(head: bytes | bytearray) -> str | None:
    """Return what a file that begins with `head` is, if it is none of weights but one of those often found in its place."""
    if not head:
        return "empty, as a download leaves it that was cut off; copy it anew"
    start = bytes(head[:64]).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if known := next((what for sign, what in _IMPOSTORS.items() if start.startswith(sign)), None):
        return known
    text = bytes(head[:200]).decode("latin-1")
    printed = text.isascii() and all(sign.isprintable() or sign.isspace() for sign in text)
    return f"a text that begins {text[:40]!r}; {_AGAIN}" if printed else None


def inside(folder: Path, name: object) -> Path:
    """Return `folder` / `name`, for a name that stands in a file of unknown origin.

    Raises ValueError for what is no name and for a name that leads out of the folder: absolute, with "..", or through a link.
    """
    if isinstance(name, str) and name and "\0" not in name:
        parts = PureWindowsPath(name)  # knows both kinds of separators, and drives
        path = folder / name
        plain = not (parts.drive or parts.root or ".." in parts.parts or PurePosixPath(name).is_absolute())
        if plain and path != folder and path.parent.resolve().is_relative_to(folder.resolve()):
            return path
    raise ValueError(f"name: {name!r} leads out of {folder}, which it may not; do not use what you were given")


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`, but not below it; for the holder of its lock."""
    for left in folder.glob(".*.tmp"):
        left.unlink()


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
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return value if checksum == _checksum(value) else None


def read_or_set_aside(path: Path) -> dict[str, Any] | None:
    """Return what `read_json` returns; a file that is there and damaged is set aside, with a warning."""
    value = read_json(path)
    if value is None and path.exists():
        set_aside(path, "its content does not match its checksum")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(path: Path, expected: str) -> bool:
    """Return whether `path` is a file with the sha256 `expected`."""
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
        return digest(temporary)
