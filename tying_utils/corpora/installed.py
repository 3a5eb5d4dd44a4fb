"""The Python source of installed packages as a text: what is read, what is left out, and which packages are held out."""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_paths
from typing import Any

LARGEST = 1_000_000  # bytes: a longer file is generated, or data in the form of code
_HELD_OUT = 20  # a twentieth of the bytes
_TOP = re.compile(r'"?(\w+)(?:/|\.py(?:"?,|$))')  # of a line of RECORD, the top-level name; a path that leads out has none
_OWN = {"tying_utils", "weight-tying"}  # otherwise the text would change with every change of this package

Documents = list[tuple[str, str]]  # (name, text)


def folders() -> tuple[Path, ...]:
    """Return where the running environment's packages are: its site-packages, and where torch and transformers were found."""
    paths = get_paths()
    found = [Path(paths["purelib"]), Path(paths["platlib"])]
    for name in ("torch", "transformers"):  # the packages of a system or a container need not be in its site-packages
        spec = find_spec(name)
        if spec and spec.origin:
            found.append(Path(spec.origin).parents[1])
    return tuple(dict.fromkeys(folder.resolve() for folder in found))


def read(folders: Sequence[Path]) -> tuple[Documents, Documents, dict[str, Any]]:
    """Read the Python files of every package in `folders`: the training documents, the held-out ones, and what they are.

    Documents are (relative path, text) in one order on every machine, a package after the other. The facts are "packages" (the
    version of each distribution), "held_out" (the packages of the second part) and "left_out" (files by reason): over `LARGEST`
    bytes, unreadable, not UTF-8, and exact copies of an earlier file, so that no file is in both parts. Links are followed, as
    some installers put nothing but links; what a distribution names outside of its folder is not read. Nothing is written.
    """
    versions, files = _installed(folders)
    held_out = _held_out({name: sum(size for _, size in own.values()) for name, own in files.items()})
    left_out: Counter[str] = Counter()
    seen: set[bytes] = set()
    parts: list[Documents] = []
    for names in (sorted(files.keys() - held_out), held_out):
        documents: Documents = []
        for name in names:
            for relative, (file, size) in files[name].items():
                text, reason = _text(file, size, seen)
                if text is None:
                    left_out[reason] += 1
                else:
                    documents.append((relative, text))
        parts.append(documents)
    return *parts, {"packages": versions, "held_out": held_out, "left_out": dict(sorted(left_out.items()))}  # type: ignore[return-value]


def _text(file: Path, size: int, seen: set[bytes]) -> tuple[str | None, str]:
    """Return the text of a file, or None and why it is left out; what was read is added to `seen`."""
    if size > LARGEST:
        return None, "huge"
    try:
        text = file.read_text(encoding="utf-8").lstrip("\ufeff")  # also where there are two byte order marks
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except OSError:
        return None, "unreadable"
    digest = hashlib.sha256(text.encode()).digest()
    if digest in seen:
        return None, "a copy"
    seen.add(digest)
    return text, ""


def _installed(folders: Sequence[Path]) -> tuple[dict[str, str], dict[str, dict[str, tuple[Path, int]]]]:
    """Return the version of each distribution, and by package its Python files (relative path: file and size), in order.

    Distributions that share a top-level name, as in a namespace, are one package, called by the first of its top-level names.
    """
    versions: dict[str, str] = {}
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for name, version, tops in sorted(_distributions(folder), key=lambda each: each[:2]):
            versions.setdefault(name, version)  # of what is there twice, as after an interrupted update, one and the same
            merged = tops.union(*(groups.get(top, ()) for top in tops))
            groups |= dict.fromkeys(merged, merged)
    files: dict[str, dict[str, tuple[Path, int]]] = {}
    for top, group in sorted(groups.items()):
        found = next((found for folder in folders if (found := dict(_python_files(folder, top)))), {})
        if found:
            files.setdefault(min(group), {}).update(found)
    return dict(sorted(versions.items())), dict(sorted(files.items()))


def _distributions(folder: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Yield name, version and top-level names of each distribution in `folder`, in any order."""
    for each in metadata.distributions(path=[str(folder)]):
        try:
            name, version = each.metadata["Name"], each.version or ""
            listed = {match[1] for match in map(_TOP.match, (each.read_text("RECORD") or "").splitlines()) if match}
            listed |= set((each.read_text("top_level.txt") or "").split())  # all that Debian's packages have
        except (OSError, UnicodeDecodeError):
            continue
        if name and name not in _OWN:  # without a name: what an interrupted installation has left
            yield name, version, {top for top in listed if top.isidentifier()} - _OWN - {"__pycache__"}


def _python_files(folder: Path, top: str) -> Iterator[tuple[str, tuple[Path, int]]]:
    """Yield the Python files of one top-level name by path relative to `folder`, with their sizes, in order."""
    found = [folder / f"{top}.py"]
    for place, _, names in os.walk(folder / top):  # which passes over folders that it may not look into
        found += [Path(place, name) for name in names if name.endswith(".py")]
    for relative, file in sorted((file.relative_to(folder).as_posix(), file) for file in found):
        try:
            status = file.stat()
        except OSError:
            continue  # not there, or a link to nowhere
        if stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            yield relative.encode(errors="backslashreplace").decode(), (file, status.st_size)


def _held_out(sizes: dict[str, int]) -> list[str]:
    """Return the packages that fit into a twentieth of all bytes, by their names' hashes, else the smallest; never all."""
    room, held_out = sum(sizes.values()) // _HELD_OUT, []
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if 0 < sizes[name] <= room:
            held_out.append(name)
            room -= sizes[name]
    if not held_out and len(sizes) > 1:
        held_out = [min(sizes, key=lambda name: (not sizes[name], sizes[name], name))]  # one with text in it, if there is any
    return sorted(held_out)
