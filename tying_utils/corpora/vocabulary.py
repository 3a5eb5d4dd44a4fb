"""Tokens of a checkpoint's tokenizer: their strings, which rows of a table are theirs, and which ones two tokenizers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tying_utils.base import checks, hub

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vocabulary = dict[str, int]  # token string, as its tokenizer writes it -> row
_SPACES = {"Ġ": "byte-level BPE", "▁": "SentencePiece", "##": "WordPiece"}


def read(source: str | Path, revision: str | None = None) -> Vocabulary:
    """Read the tokens of the tokenizer at `source`, added ones included, by row; rows of no token are not in it.

    source and revision as in `checkpoints.read_tables`, from huggingface_hub's cache where it is there. Reads
    tokenizer.json, or else vocab.json. Raises ValueError if neither is there or cannot be read, and otherwise as `hub.at`.
    """
    where = hub.at(source, revision)
    if where.has("tokenizer.json"):
        return _tokenizer(where.whole("tokenizer.json")).get_vocab(with_added_tokens=True)
    if where.has("vocab.json"):
        names = ["vocab.json", *(["added_tokens.json"] if where.has("added_tokens.json") else [])]
        found = {token: row for name in names for token, row in hub.read_json(where, name).items()}
        if bad := [token for token, row in found.items() if type(row) is not int]:
            raise ValueError(f"source: vocab.json of {where} gives {bad[0]!r} no row; copy it anew")
        return found
    raise ValueError(f"source: {where} holds neither tokenizer.json nor vocab.json; which rows are tokens cannot be told")


def tokenizer(source: str | Path, revision: str | None = None) -> Tokenizer:
    """Read the tokenizer in the tokenizer.json at `source`, or in the file `source`. Arguments and errors as in `read`."""
    if (file := checks.path("source", source)).is_file():
        return _tokenizer(file)
    where = hub.at(source, revision)
    if not where.has("tokenizer.json"):
        raise ValueError(f"source: {where} holds no tokenizer.json; save it with tokenizer.save_pretrained")
    return _tokenizer(where.whole("tokenizer.json"))


def eos_token(source: str | Path) -> str | None:
    """Read the eos_token that tokenizer_config.json names, at `source` or beside the file `source`; None where none does."""
    file = checks.path("source", source)
    where = hub.Folder(file.parent) if file.is_file() else hub.at(source)
    if not where.has("tokenizer_config.json"):
        return None
    named = hub.read_json(where, "tokenizer_config.json").get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other kind
        raise ValueError(f"source: {path} is no tokenizer ({error}); copy it anew") from error


def real_rows(vocabulary: Mapping[str, int], rows: int) -> np.ndarray:
    """Return the rows of a table of `rows` that are a token's, in order, int64: the others only pad it and were never trained.

    Raises ValueError if a token has no row.
    """
    found = np.unique(np.fromiter(vocabulary.values(), np.int64, len(vocabulary)))
    if len(found) and (found[0] < 0 or found[-1] >= rows):
        raise ValueError(f"vocabulary: token {found[-1]} has no row in a table of {rows}; it belongs to another model")
    return found


def join(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the tokens that both vocabularies have, by token string: two int64 arrays, in the order of `a`.

    Raises ValueError if they write a space differently (as "Ġ" and "▁"), where equal strings are not equal tokens, and if they
    share no token.
    """
    kinds = [_kind(vocabulary) for vocabulary in (a, b)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise ValueError(f"b: the tokenizers are {kinds[0]} and {kinds[1]}, whose strings do not compare; use one kind")
    shared = sorted(a.keys() & b.keys(), key=lambda token: a[token])
    if not shared:
        raise ValueError(f"b: of {len(a)} and {len(b)} tokens none is in both; use models of one kind of tokenizer")
    return np.array([a[token] for token in shared]), np.array([b[token] for token in shared])


def _kind(vocabulary: Mapping[str, int]) -> str | None:
    """Tell what kind of tokenizer writes such tokens, by the mark that most of them start with; None where none has one."""
    counts = {kind: sum(token.startswith(mark) for token in vocabulary) for mark, kind in _SPACES.items()}
    kind = max(counts, key=counts.__getitem__)
    return kind if counts[kind] else None


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Return the tokens of `texts`, one after another without marks between them, int64."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    return np.fromiter((token for part in ids for token in part), np.int64)
