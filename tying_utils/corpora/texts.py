"""The text of each name: where it comes from, and which part of it is held out.

The text of installed packages (see `installed`) is split by package, every other one by file.
"""

import functools
import hashlib
import io
import platform
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tying_utils.base import paths
from tying_utils.corpora import decoding, installed
from tying_utils.corpora.installed import Documents

NAMES = ("python", "packages", "text", "wikitext-2", "wikitext-103")
# Library folders that hold tests or other people's packages, not the standard library's own source.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_EVERY = 20  # every 20th file is held out

Parts = tuple[Documents, Documents]  # for training and for validation
Places = tuple[str, tuple[Path, ...]]  # of the text "packages": the argument that says them, and the folders


def found(name: str, path: str | Path | None = None) -> tuple[dict[str, Any], Callable[[], Parts]]:
    """Return what the text of `name` is, as `Corpus.fingerprint` says it, and a function that returns its parts.

    name and path as in `corpora.load`. Raises ValueError as `documents`; the function does so for packages that have changed
    since they were read.
    """
    if name == "packages":
        places = _places(path)
        return _known_packages(places), lambda: _packages_again(places)
    parts = documents(name, path)
    version = {"python": platform.python_version()} if name == "python" else {}
    return {"name": name, **version, **_facts(*parts)}, lambda: parts


def documents(name: str, path: str | Path | None = None) -> Parts:
    """Return the (file name, text) pairs of a text's training and validation part, as `corpora.load` splits and tokenises them.

    Raises ValueError for a name that is no text's, and for a text that is missing, empty or not UTF-8.
    """
    if name not in NAMES:
        raise ValueError(f"name: {name!r} is no text; choose one of {', '.join(NAMES)}")
    if path is None and name.startswith("wikitext"):
        path = next(iter(_local(name)), None)
    if name == "packages":
        return _packages(_places(path))[1]
    if name == "python":
        train, validation = _split(_standard_library(Path(sysconfig.get_paths()["stdlib"])))
    elif path is not None:
        train, validation = _split(list(_read(Path(path))))
    else:
        train, validation = _wikitext(name)
    for part, pairs in (("training", train), ("validation", validation)):
        if not any(text.strip() for _, text in pairs):
            raise ValueError(f"{'path' if path else 'name'}: the {part} part of {path or name} is empty; give more text")
    return train, validation


def _facts(train: Documents, validation: Documents) -> dict[str, Any]:
    """Return how many files and bytes a text has, and the sha256 of names and texts."""
    content, size = hashlib.sha256(), 0
    for file_name, text in (*train, ("", ""), *validation):
        content.update(f"{file_name}\0{len(text)}\0".encode())
        content.update(raw := text.encode())
        size += len(raw)
    return {"files": len(train) + len(validation), "bytes": size, "sha256": content.hexdigest()}


def _places(path: str | Path | None) -> Places:
    if path is not None:
        return "path", (Path(path).resolve(),)
    return "name", _local("packages") or installed.folders()


def _packages(places: Places) -> tuple[dict[str, Any], Parts]:
    """Return what the text "packages" is, and its parts; ValueError where not both of them have a text."""
    argument, folders = places
    train, validation, facts = installed.read(folders)
    if not all(any(text.strip() for _, text in part) for part in (train, validation)):
        there = f"{len(facts['packages'])} distributions with {len(train)} files to train on and {len(validation)} held out"
        raise ValueError(
            f"{argument}: 'packages' needs two installed packages with Python files, one of them to hold out; in "
            f"{', '.join(map(str, folders))} there are {there}; install more, or give path=, another site-packages folder"
        )
    return {"name": "packages", **facts, **_facts(train, validation)}, (train, validation)


@functools.cache  # of hundreds of MB, and every run asks for it
def _known_packages(places: Places) -> dict[str, Any]:
    return _packages(places)[0]


def _packages_again(places: Places) -> Parts:
    """Return both parts, as `_known_packages` has seen them; ValueError if a package has come, gone or changed since."""
    facts, parts = _packages(places)
    if facts != _known_packages(places):
        argument, folders = places
        changed = f"the packages in {', '.join(map(str, folders))} have changed since this process read them"
        raise ValueError(f"{argument}: {changed}; start it again, or give path=, a copy of them")
    return parts


def _local(name: str) -> tuple[Path, ...]:
    """Return the folder called `name` among the local texts; nothing where there is none."""
    return (folder.resolve(),) if (folder := paths.texts() / name).is_dir() else ()


@functools.cache  # every run asks for it, and an interpreter's own library does not change under it
def _standard_library(library: Path) -> Documents:
    """Return the standard library's Python files by relative path, in one order on every machine; undecodable ones left out."""
    documents = []
    for file in sorted(library.rglob("*.py"), key=lambda p: p.relative_to(library).as_posix()):
        relative = file.relative_to(library)
        if _LEFT_OUT.isdisjoint(relative.parts):
            with suppress(UnicodeDecodeError):  # a few files declare another encoding
                # In the middle of Python source a byte order mark is part of a string.
                documents.append((relative.as_posix(), file.read_text(encoding="utf-8").lstrip("\ufeff")))
    return documents


def _read(path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        raise ValueError(f"path: {path} does not exist; give a file or a folder of UTF-8 text")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [p for p in found if p == path or not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not found:
        raise ValueError(f"path: {path} holds no file; give a file or a folder of UTF-8 text")
    for file in found:
        try:
            name = file.name if file == path else file.relative_to(path).as_posix()
            # A name may hold bytes that are no text; contents may not. Every kind of line end becomes \n.
            text = io.StringIO(decoding.decode(file.read_bytes()), newline=None).read()
            yield name.encode(errors="backslashreplace").decode(), text
        except UnicodeDecodeError as error:
            where = f"{error.reason} at byte {error.start}"
            raise ValueError(f"path: {file} is not {error.encoding.upper()} ({where}); convert or remove it") from error


def _split(documents: Documents) -> Parts:
    """Return documents in a training and a validation part (see `corpora.load`)."""
    named: dict[str, Documents] = {"train": [], "valid": [], "test": []}
    for name, text in documents:
        pieces = Path(name).name.lower().replace("validation", "valid").split(".")
        for part in named:
            if part in pieces and pieces[-1] != "py":
                named[part].append((name, text))
    parts = [named[part] for part in ("train", "valid", "test") if named[part]]
    if len(parts) >= 2:
        return parts[0], parts[1]
    train, validation = _apart(documents)
    if _written(train) and _written(validation):
        return train, validation
    return _apart(_written(documents))


def _written(documents: Documents) -> Documents:
    return [(name, text) for name, text in documents if text.strip()]


def _apart(documents: Documents) -> Parts:
    """Return whole documents in two parts; a single one is cut between lines, or by size where a part would be blank."""
    if len(documents) == 1:
        name, text = documents[0]
        lines = text.splitlines(keepends=True)
        cut = len("".join(lines[: len(lines) - max(1, len(lines) // _EVERY)]))
        if not (text[:cut].strip() and text[cut:].strip()):
            size = len(text.strip())
            cut = len(text.rstrip()) - max(1, size // _EVERY)
        return [(name, text[:cut])], [(name, text[cut:])]
    held_out = {i for i in range(len(documents)) if i % _EVERY == _EVERY - 1} or {len(documents) - 1}
    return (
        [document for i, document in enumerate(documents) if i not in held_out],
        [document for i, document in enumerate(documents) if i in held_out],
    )


def _wikitext(name: str) -> Parts:
    from datasets import load_dataset

    try:
        data = load_dataset("Salesforce/wikitext", f"{name}-raw-v1")
    except Exception as error:  # whatever the hub client raises without a network
        wrong = f"{name!r} could not be fetched from the Hugging Face hub ({type(error).__name__})"
        folder = f"a folder with its train, valid and test text, or put that folder at {paths.texts() / name}"
        raise ValueError(f"name: {wrong}; give path=, {folder} ($TYING_TEXTS moves it)") from error
    return tuple([(part, "".join(data[part]["text"]))] for part in ("train", "validation"))  # type: ignore[return-value]
