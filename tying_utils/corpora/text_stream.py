"""Text of any size as a stream of documents that can be taken up again anywhere: files, URLs and the Hugging Face hub.

What reads is `datasets`: its streaming of files, with its retries, for lines of JSON and plain text, its builders for Parquet
and the hub. No dataset's code is run. (Its JSON builder is left out, which asks all lines for one schema; Dolma has many.)
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tying_utils.base import checks, hub
from tying_utils.corpora import decoding

_KINDS = {".json": "lines", ".jsonl": "lines", ".txt": "text", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_CHUNK = 4 << 20  # bytes that are read at a time
_ROWS = 256  # of Parquet that are read at a time

Position = Sequence[Any]  # number of a part, and the state of that part's own stream, None at its beginning; JSON can hold it
START: Position = (0, None)


class TextStream:
    """The documents of `texts`, in their order; `parts` are the files, URLs and dataset ids that they come from.

    Each text is a file, a pattern of files (data/**/*.jsonl.gz, read by name), a URL, the id of a dataset on the hub
    (ID@REVISION: another revision), or @FILE, a list of these, one per line, where # begins a remark:

    - .json, .jsonl: a JSON object per line, whose `column` is a document; .txt: a document each. UTF-8, or UTF-16 or UTF-32
      that a byte order mark says, also as .gz, .bz2, .xz, and .zst where zstandard is installed.
    - .parquet, and datasets on the hub (their `subset` and `split`): a row's `column` is a document. allenai/dolma is a script,
      which datasets refuses to run: give @FILE with the URLs that it publishes (urls/v1_7.txt).

    Byte order marks are left out of every document. Raises ValueError for a text that is none of these. Nothing is opened yet.
    """

    def __init__(self, texts: Sequence[str], *, column: str = "text", split: str = "train", subset: str | None = None) -> None:
        self.parts = [part for given in texts for part in _parts(given)]
        self.column, self.split, self.subset = column, split, subset
        if not self.parts:
            raise ValueError(f"text: at least one file, URL or dataset is needed, got {list(texts)!r}")

    def documents(self, position: Position = START) -> Iterator[tuple[str, Position]]:
        """Yield each document from `position` on, and the position after it; empty ones are left out.

        Raises ValueError for what cannot be read, is not UTF-8 or no JSON object per line, and rows without text in `column`.
        """
        first, state = position
        for number in range(first, len(self.parts)):
            for row, after in self._rows(self.parts[number], state):
                if text := self._text(self.parts[number], row):
                    yield text, (number, after)
            state = None

    def _rows(self, part: str, state: Any) -> Iterator[tuple[Any, Any]]:
        """Yield a part's rows (bytes of a line or a whole text, else columns) from `state` on, each with the state after it."""
        from datasets import load_dataset
        from datasets.download.streaming_download_manager import StreamingDownloadManager, xopen

        kind = _kind(part)
        try:
            if kind in ("lines", "text"):
                with xopen(StreamingDownloadManager().download_and_extract(part), "rb") as file:
                    pieces = _lines(file) if kind == "lines" else [file.read()]
                    yield from itertools.islice(zip(pieces, itertools.count(1), strict=False), state, None)
                return
            if kind == "parquet":
                options: dict[str, Any] = {"data_files": part, "columns": [self.column], "batch_size": _ROWS, "split": "train"}
                stream = load_dataset(kind, streaming=True, **options)
            else:
                name, _, revision = part.partition("@")
                stream = load_dataset(name, self.subset, split=self.split, revision=revision or None, streaming=True)
            if state is not None:
                stream.load_state_dict(state)
            for row in stream:
                yield row, stream.state_dict()
        except Exception as error:  # whatever the reader, the file system or the network raises
            advice = f"check it, its column {self.column!r} and the network, then go on with the same call"
            raise ValueError(f"text: {part} cannot be read ({type(error).__name__}: {error}); {advice}") from error

    def _text(self, part: str, row: Any) -> str:
        """Return the document in a row, empty if there is none."""
        try:
            if _kind(part) == "text":
                return decoding.decode(row)
            if isinstance(row, bytes):
                line = decoding.unmarked(row.decode(errors="surrogatepass"))
                if not line.strip():
                    return ""
                row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"text: {part} is not UTF-8, or not one JSON object a line ({error}); convert it") from error
        if not isinstance(row, dict) or self.column not in row:
            there = ", ".join(row) if isinstance(row, dict) else f"{row!r:.60}"
            wrong = f"{part} holds a row without {self.column!r}, only {there}"
            raise ValueError(f"column: {wrong}; name the column of the documents")
        value = row[self.column]
        if not isinstance(value, str | None):
            wrong = f"{self.column!r} of {part} holds {value!r:.60}, no text"
            raise ValueError(f"column: {wrong}; name the column of the documents")
        # JSON can spell half a surrogate pair, which is no text.
        return decoding.unmarked(value or "").encode(errors="replace").decode()


def _lines(file: Any) -> Iterator[bytes]:
    """Yield lines in UTF-8, read in large pieces: of a remote file only `read` tries again when the connection drops."""
    pieces = iter(lambda: file.read(_CHUNK), b"")
    head = next(pieces, b"")
    chunks: Iterator[bytes] = itertools.chain([head], pieces)
    if (name := decoding.encoding(head)) != "utf-8":
        chunks = (text.encode() for text in codecs.iterdecode(chunks, name))
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _kind(part: str) -> str:
    suffixes = [suffix for suffix in PurePosixPath(part.partition("?")[0]).suffixes if suffix not in _COMPRESSED]
    return _KINDS.get(suffixes[-1], "hub") if suffixes else "hub"


def _parts(given: str) -> list[str]:
    """Return the files, URLs and ids that `given` names, in order."""
    path = checks.path("text", given)
    if given.startswith("@"):
        try:
            lines = decoding.decode(checks.path("text", given[1:]).read_bytes()).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text: {given[1:]!r} is no list of paths and URLs, one per line ({error})") from error
        return [part for line in map(str.strip, lines) if line and not line.startswith("#") for part in _parts(line)]
    if path.is_dir():
        raise ValueError(f"text: {given!r} is a folder; give a pattern of files, as '{path.as_posix()}/**/*.jsonl.gz'")
    if "://" in given:
        found = [given]
    else:
        # glob's patterns, unlike pathlib's, match no hidden files.
        matching = [str(path)] if path.is_file() else glob.glob(str(path), recursive=True)  # noqa: PTH207
        found = sorted(name for name in matching if Path(name).is_file())
    for part in found:
        if _kind(part) == "hub":
            raise ValueError(f"text: {part!r} is of no known kind; give {', '.join(_KINDS)}, or one of these compressed")
    if found:
        return found
    with suppress(ValueError):
        if _kind(given) == "hub" and hub.checked_id(given.partition("@")[0]):
            return [given]
    raise ValueError(f"text: {given!r} is no file, pattern that files match, URL, dataset id, or @FILE with a list of these")
