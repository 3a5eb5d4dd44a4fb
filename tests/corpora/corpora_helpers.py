"""What the tests of corpora share: tokens read back as text, files of a folder, a site-packages folder, sizes of shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tying_utils.corpora import Corpus, store

FILES = ["validation.bin", *(f"train-{number:05d}.bin" for number in range(5))]
# Of the documents of conftest.py: five shards, the last one shorter.
SIZES: dict[str, Any] = {"vocab_size": 300, "shard_tokens": 4500, "validation_tokens": 1000, "progress": False}


def decoded(corpus: Corpus, part: str) -> list[str]:
    """The documents of a part, decoded from its tokens."""
    tokens = getattr(corpus, part)
    separator = corpus.tokenizer.token_to_id(corpus.separator)
    ends = np.flatnonzero(tokens == separator)
    assert ends[-1] == len(tokens) - 1, "the last document has no end"
    pieces = np.split(np.asarray(tokens), ends + 1)[:-1]
    return corpus.tokenizer.decode_batch([piece[:-1].tolist() for piece in pieces], skip_special_tokens=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def write(folder: Path, texts: Mapping[str, str | bytes]) -> Path:
    for name, content in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def install(
    folder: Path,
    name: str,
    texts: Mapping[str, str | bytes],
    *,
    version: str = "1.0",
    record: str | bytes | None = None,
    metadata: bytes | None = None,
) -> None:
    """Write a distribution as pip does; `record` and `metadata` stand in place of what is in its RECORD and METADATA."""
    info = f"{name}-{version}.dist-info"
    listed = "".join(f"{file},sha256=x,1\n" for file in (*texts, f"{info}/METADATA", f"../../../bin/{name}"))
    about = f"Name: {name}\nVersion: {version}\n"
    write(folder, texts)
    write(folder / info, {"RECORD": listed if record is None else record, "METADATA": about if metadata is None else metadata})


def refuse(*arguments: Any) -> Any:
    pytest.fail("the text was tokenised again")


def environment(folder: Path, grammar: Any, count: int = 25) -> Path:
    """A site-packages folder with so many packages of three files each."""
    for number in range(count):
        texts = {f"p{number}/{name}.py": grammar(9, seed=3 * number + at) for at, name in enumerate(("__init__", "a", "b"))}
        install(folder, f"p{number}", texts, version=f"1.{number}")
    return folder


def sizes(**changes: Any) -> dict[str, Any]:
    return {**SIZES, **changes}


def shard_tokens(folder: Path, dtype: str = "<u2") -> list[np.ndarray]:
    """Of each file, read plainly."""
    return [
        np.frombuffer((folder / name).read_bytes(), dtype) for name in json.loads((folder / "corpus.json").read_text())["files"]
    ]


def load_shards(folder: Path, vocab_size: int = 300) -> Corpus:
    return store.load("shards", vocab_size=vocab_size, path=folder)
