"""A tokenised corpus: its tokens, memory-mapped, with their counts, windows and tokenizer."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SEPARATOR = "<|endoftext|>"
_COUNTED = 1 << 24  # tokens that are counted at a time


class Shards:
    """Memory-mapped token arrays (n_i,) of one dtype that read as one array (n,): len, dtype, tokens[i] and tokens[start:stop].

    A slice within one part is a view of it, one across parts a copy. Raises ValueError for a slice with a step, IndexError for
    an index beyond the ends.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.dtype = parts[0].dtype
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            index = range(len(self))[at]
            return self[index : index + 1][0]
        start, stop, step = at.indices(len(self))
        if step != 1:
            raise ValueError(f"step: tokens are read in steps of 1, got {step}; take the slice first")
        pieces = []
        for number in range(bisect_right(self._ends, start), bisect_left(self._ends, stop) + 1 if start < stop else 0):
            begin = self._ends[number] - len(self._parts[number])
            pieces.append(self._parts[number][max(start - begin, 0) : stop - begin])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self._parts[0][:0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)  # all of it in memory


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. `train` and `validation` are memory-mapped token arrays (n,), uint16 or uint32.

    `fingerprint` says what the text was: name, files, bytes, sha256 of names and texts, and vocabulary size; for "python" the
    Python version, for "packages" their versions, which are held out and what is left out; of "two-role" its settings, the
    bytes of its tokens, sha256 of what decides them, and vocabulary size; of "shards" the training tokens, sha256 of the token
    files' sha256s, and vocabulary size. A text in the tokens of another corpus has that one's fingerprint as "vocabulary", and
    a sha256 of both. Every run records it.
    """

    name: str
    vocab_size: int
    train: np.ndarray | Shards
    validation: np.ndarray
    fingerprint: dict[str, Any]
    folder: Path
    separator: str = SEPARATOR  # the token that ends every document of a text

    @cached_property
    def tokenizer(self) -> Any:
        """The byte-level BPE tokenizer (`tokenizers.Tokenizer`); of "two-role" words that say the roles, as in s03t11.0007."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def counts(self) -> np.ndarray:
        """Occurrences of each token in the training part, (vocab_size,), int64. A part of the text is held at a time."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(self.train), _COUNTED):
            counts += np.bincount(self.train[start : start + _COUNTED], minlength=self.vocab_size)
        return counts

    def windows(self, part: str, count: int, length: int) -> np.ndarray:
        """Return `count` windows of `length` tokens, evenly over `part` ("train" or "validation"): (count, length), int64.

        Fewer if the part does not hold so many without overlap. Raises ValueError if it is shorter than one window.
        """
        if part not in ("train", "validation"):
            raise ValueError(f"part: {part!r} is unknown; choose 'train' or 'validation'")
        tokens = self.train if part == "train" else self.validation
        return windows(tokens, count, length, of=f"the {part} part of {self.name!r}")


def windows(tokens: np.ndarray | Shards, count: int, length: int, *, of: str = "the text") -> np.ndarray:
    """Return up to `count` windows of `length` tokens, evenly over `tokens` (n,) and without overlap: (count, length), int64.

    Raises ValueError if there are fewer tokens than one window; `of` says there whose they are.
    """
    whole = len(tokens) // length
    if whole < 1:
        raise ValueError(
            f"length: {of} holds {len(tokens)} tokens, fewer than one window of {length}; use more text or shorter windows"
        )
    picked = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    return np.stack([tokens[i * length : (i + 1) * length] for i in picked]).astype(np.int64)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return uint16 where it holds every token of a vocabulary, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def in_tokens_of(vocabulary: Corpus, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return the `fingerprint` of a text that is in the tokens of the corpus `vocabulary`."""
    both = hashlib.sha256(f"{fingerprint['sha256']} {vocabulary.fingerprint['sha256']}".encode())
    return {**fingerprint, "sha256": both.hexdigest(), "vocabulary": vocabulary.fingerprint}
