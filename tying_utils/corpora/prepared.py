"""The token files that `token_shards.prepare` wrote, verified and opened where they lie."""

import dataclasses
import hashlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tying_utils.base import files, paths
from tying_utils.base.console import tqdm
from tying_utils.base.folder import VerifiedFolder
from tying_utils.corpora.corpus import Corpus, Shards, in_tokens_of


def load(path: Path, vocab_size: int, vocabulary: Corpus | None) -> Corpus:
    """Return the corpus "shards" in the folder `path`; see `corpora.load`, also for the ValueErrors."""
    folder = VerifiedFolder(path, "corpus.json")
    record = folder.read()
    where = shlex.quote(str(path))
    if record is None or "arguments" not in record:
        command = f"`tying-utils prepare --out {where} --text SOURCE --vocab-size {vocab_size}`"
        raise ValueError(f"path: {path} holds no prepared text, or its corpus.json is damaged; {command} makes it")
    command = f"`tying-utils prepare --out {where} {record['arguments']}`"
    if not record["finished"]:
        raise ValueError(f"path: the text in {path} is not prepared to its end; {command} goes on with it")
    if (known := record["vocab_size"]) != vocab_size:
        advice = f"ask for {known}, or prepare the text anew"
        raise ValueError(f"vocab_size: {path} was prepared for {known} tokens, got {vocab_size}; {advice}")
    held: dict[str, Any] = record["files"]
    fingerprint = {
        "name": "shards",
        "tokens": record["tokens"]["train"],
        "sha256": hashlib.sha256("".join(entry["sha256"] for entry in held.values()).encode()).hexdigest(),
        "vocab_size": vocab_size,
    }
    dtype = np.dtype(record["dtype"]).newbyteorder("<")
    expected = {files.inside(path, name): (entry["tokens"] * dtype.itemsize, entry["sha256"]) for name, entry in held.items()}
    memory = paths.corpora() / f"shards-{vocab_size}-{fingerprint['sha256'][:16]}.json"
    if damaged := _damaged(expected, memory) or folder.damaged({"tokenizer.json": record["tokenizer"]}):
        wrong = f"{', '.join(damaged)} in {path}: missing or not as corpus.json says"
        raise ValueError(f"path: {wrong}; {command} sets damaged files aside and makes them again")
    validation, *train = (np.memmap(file, dtype=dtype, mode="r") for file in expected)
    tokens = train[0] if len(train) == 1 else Shards(train)
    shards = Corpus("shards", vocab_size, tokens, validation, fingerprint, path, record["separator"])
    if vocabulary is None or vocabulary.fingerprint == fingerprint:
        return shards
    if vocabulary.tokenizer.to_str() != shards.tokenizer.to_str():
        advice = f"prepare them with `--tokenizer {vocabulary.folder / 'tokenizer.json'}`"
        raise ValueError(f"vocabulary: the shards in {path} are no tokens of {vocabulary.name!r}; {advice}")
    return dataclasses.replace(shards, fingerprint=in_tokens_of(vocabulary, fingerprint))


def _damaged(expected: dict[Path, tuple[int, str]], memory: Path) -> list[str]:
    """Return the names of the files that lack the size and sha256 expected; `memory` remembers which need not be read again."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):  # of the ranks that open one text together, one reads it
        known = files.read_or_set_aside(memory) or {}
        found, damaged = {}, []
        for path, (size, digest) in tqdm(expected.items(), "verifying shards", unit="file", leave=False, delay=1):
            place = path.resolve()
            seen = [size, place.stat().st_mtime_ns, digest] if place.is_file() and place.stat().st_size == size else None
            if seen and (known.get(str(place)) == seen or files.digest(place) == digest):
                found[str(place)] = seen
            else:
                damaged.append(path.name)
        if (now := known | found) != known:
            files.write_json(memory, now)
    return damaged
