"""Text of any size to token files, prepared once: documents stream into shards that `corpora.load("shards")` opens.

    FOLDER/
      corpus.json          what was asked for; of each file its sha256, tokens, documents, and where in the stream it ends
      tokenizer.json
      validation.bin       the documents' tokens, each document with a separator: little-endian uint16, or uint32 above V 65,536
      train-00000.bin ...

corpus.json is the commit point: what it does not name does not count. A preparation that was killed goes on where the last file
that it names ends, and leaves the same files as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tying_utils.base import checks
from tying_utils.base.checks import positive
from tying_utils.base.console import tqdm
from tying_utils.base.folder import VerifiedFolder
from tying_utils.corpora import bpe, store, vocabulary
from tying_utils.corpora.corpus import SEPARATOR, token_dtype
from tying_utils.corpora.text_stream import START, Position, TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LEARNED_ON = 200_000_000  # characters at the head of the stream that a tokenizer is learned on
_AT_ONCE = 256  # documents that are tokenised together

Encoded = Iterator[tuple[np.ndarray, Position]]  # a document's tokens (n,) with the separator, and where it ends


def prepare(
    out: str | Path,
    text: str | Sequence[str],
    *,
    column: str = "text",
    split: str = "train",
    subset: str | None = None,
    vocab_size: int = 50_280,
    tokenizer: str | Path | None = None,
    tokens: int | None = None,
    shard_tokens: int = 100_000_000,
    validation_tokens: int = 10_000_000,
    progress: bool = True,
) -> dict[str, Any]:
    """Tokenise `text` into the folder `out`, for `TrainConfig(corpus="shards", path=out)`. Returns what its corpus.json holds.

    `text`, `column`, `split` and `subset` are those of `text_stream.TextStream`, which says what can be read. The first
    documents go to validation until it holds `validation_tokens`, all others to training up to `tokens` (default: all there
    are), in shards of `shard_tokens`. Each of these is reached with a whole document, so that every document is whole and in
    one file; only where the text's last document would leave nothing to train on, as where it is the only one, it is cut after
    `validation_tokens`. Memory holds some hundred documents at a time.

    `tokenizer` is a tokenizer.json, a folder with one or a model's id. Documents end with its <|endoftext|>, else with the
    eos_token of the tokenizer_config.json beside. None: a byte-level BPE of `vocab_size` tokens is learned on the documents
    that hold the stream's first `LEARNED_ON` characters, those of validation among them.

    Called again, it keeps what is finished, goes on, and makes damaged files again, which are named and set aside. A second
    process waits for the first. Raises ValueError for an argument that cannot be; for text that cannot be read or is too small
    for the vocabulary or for validation; for a tokenizer without a separator or with more tokens than `vocab_size`; and for an
    `out` that was begun with other arguments or another text.
    """
    place = checks.path("out", out)
    if out == "" or (place.exists() and not place.is_dir()):
        raise ValueError(f"out: the folder to write is needed, a new one or one begun before, got {str(out)!r:.80}")
    store.check("shards", vocab_size, out)
    vocab_size, tokens = int(vocab_size), None if tokens is None else positive("tokens", tokens)
    shard_tokens, validation_tokens = positive("shard_tokens", shard_tokens), positive("validation_tokens", validation_tokens)
    wanted = {"tokens": tokens or math.inf, "shard_tokens": shard_tokens, "validation_tokens": validation_tokens}
    if not isinstance(text, str | Sequence) or not all(isinstance(given, str) for given in text):
        raise ValueError(f"text: a string, or a sequence of them, is needed, got {text!r:.80}")
    texts = [text] if isinstance(text, str) else list(text)
    for name, given in {"column": column, "split": split, "subset": subset or ""}.items():
        checks.text(name, given)
    if tokenizer is not None:
        checks.path("tokenizer", tokenizer)
    stream = TextStream(texts, column=column, split=split, subset=subset)
    options = {"column": column, "split": split, "subset": subset, "vocab_size": vocab_size, "tokenizer": tokenizer}
    options |= {"tokens": tokens, "shard_tokens": shard_tokens, "validation_tokens": validation_tokens}
    words = [("text", given) for given in texts] + [(name, value) for name, value in options.items() if value is not None]
    asked = {
        "arguments": shlex.join(word for name, value in words for word in (f"--{name.replace('_', '-')}", str(value))),
        "parts": hashlib.sha256("\n".join(stream.parts).encode()).hexdigest(),
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
    }
    folder = VerifiedFolder(place, "corpus.json")
    with folder.alone():
        record = _begun(folder, asked)
        own = _tokenizer(folder, record, tokenizer, stream)
        total = None if tokens is None else tokens + validation_tokens
        with tqdm(total=total, desc="preparing", unit="token", unit_scale=True, disable=not progress) as bar:
            _fill(folder, record, lambda position: _encoded(stream, position, own, record), wanted, bar)
    return record


def _begun(folder: VerifiedFolder, asked: dict[str, Any]) -> dict[str, Any]:
    record = folder.read(repair=True)
    if record is None:
        return {**asked, "tokenizer": None, "separator": None, "learned_on": None, "files": {}, "tokens": {}, "finished": False}
    if (began := record.get("arguments")) != (now := asked["arguments"]):
        raise ValueError(f"out: {folder.path} was begun with {began}, now it is {now}; give another folder, or those")
    if record["parts"] != asked["parts"]:
        raise ValueError(f"text: it names other files than when {folder.path} was begun; give another folder, or restore them")
    return record


def _tokenizer(folder: VerifiedFolder, record: dict[str, Any], given: str | Path | None, stream: TextStream) -> Tokenizer:
    """Return the folder's tokenizer, made where it is not there yet or damaged."""
    from tokenizers import Tokenizer

    path, before, vocab_size = folder.path / "tokenizer.json", record["tokenizer"], record["vocab_size"]
    if before is None or folder.damaged({path.name: before}, repair=True):
        if given is None:
            learned = {"documents": 0, "characters": 0}
            tokenizer = bpe.learn(_head(stream, learned), vocab_size)
            about = {"separator": SEPARATOR, "learned_on": learned}
        else:
            tokenizer = _given(given, vocab_size)
            about = {"separator": _separator(given, tokenizer), "learned_on": None}
        checksum = folder.write(path.name, lambda temporary: tokenizer.save(str(temporary)))
        if before not in (None, checksum):
            raise _changed(path)
        record.update(about, tokenizer=checksum)
        folder.commit(record)
    return Tokenizer.from_file(str(path))


def _head(stream: TextStream, learned: dict[str, int]) -> Iterator[str]:
    """Yield the first documents of the stream, which `learned` counts."""
    with tqdm(desc="learning BPE", total=LEARNED_ON, unit="character", unit_scale=True, leave=False) as bar:
        for text, _ in stream.documents():
            learned["documents"] += 1
            learned["characters"] += len(text)
            bar.update(len(text))
            yield text
            if learned["characters"] >= LEARNED_ON:
                return


def _given(source: str | Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = vocabulary.tokenizer(source)
    except ValueError as error:
        raise ValueError(f"tokenizer: {str(error).removeprefix('source: ')}") from error
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if size > vocab_size:
        advice = f"ask for {size}, or give another tokenizer"
        raise ValueError(f"vocab_size: {source} has {size} tokens, more than {vocab_size}; {advice}")
    tokenizer.no_truncation()  # documents stay whole
    tokenizer.no_padding()
    return tokenizer


def _separator(source: str | Path, tokenizer: Tokenizer) -> str:
    for token in (SEPARATOR, vocabulary.eos_token(source)):
        if token is not None and tokenizer.token_to_id(token) is not None:
            return token
    raise ValueError(
        f"tokenizer: {source} has no {SEPARATOR} to end documents with, nor does a tokenizer_config.json beside name "
        "an eos_token that it has; name one there"
    )


def _encoded(stream: TextStream, position: Position, tokenizer: Tokenizer, record: dict[str, Any]) -> Encoded:
    first, state, *taken = position  # `taken`: tokens of the document there that an earlier file holds
    documents = stream.documents((first, state))
    dtype = np.dtype(record["dtype"]).newbyteorder("<")
    separator: Any = tokenizer.token_to_id(record["separator"])
    while batch := list(itertools.islice(documents, _AT_ONCE)):
        encodings = tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
        for encoding, (_, end) in zip(encodings, batch, strict=True):
            yield np.array([*encoding.ids, separator], dtype)[taken.pop() if taken else 0 :], end


def _leaving_some(encoded: Encoded, size: int) -> Encoded:
    """Yield all documents; the one that reaches `size` tokens and goes beyond is cut there, if no other comes after it."""
    begin, left = START, size
    for tokens, end in encoded:
        if (left := left - len(tokens)) > 0:
            yield tokens, end
            begin = end
            continue
        following = next(encoded, None)
        if following is None and left < 0:
            yield tokens[:left], [*begin, len(tokens) + left]
            yield tokens[left:], end
        else:
            yield tokens, end
            yield from [following] if following else []
        break
    yield from encoded


def _fill(
    folder: VerifiedFolder,
    record: dict[str, Any],
    encoded: Callable[[Position], Encoded],
    wanted: dict[str, float],
    bar: tqdm[Any],
) -> None:
    """Write the token files that are missing or damaged, and each into the record once it is whole."""
    held, position, stream, left = record["files"], START, None, wanted["tokens"]
    for number in itertools.count(-1):
        name = "validation.bin" if number < 0 else f"train-{number:05d}.bin"
        known = held.get(name)
        if left <= 0 or (record["finished"] and known is None):
            break
        if known is not None and not folder.damaged({name: known["sha256"]}, repair=True):
            stream = None  # it goes on behind this file
            bar.update(known["tokens"])
        else:
            stream = stream or encoded(position)
            size = wanted["validation_tokens"] if number < 0 else min(wanted["shard_tokens"], left)
            if number < 0:
                stream = _leaving_some(stream, int(size))
            if (first := next(stream, None)) is None and known is None:
                break
            made = _write(folder, name, itertools.chain([first] if first else [], stream), size, bar)
            if known not in (None, made):
                raise _changed(folder.path / name)
            held[name] = made
            folder.commit(record)
        position = held[name]["end"]
        left -= held[name]["tokens"] if number >= 0 else 0
    counts = [entry["tokens"] for entry in held.values()]
    if len(counts) < 2:
        wrong = f"{wanted['validation_tokens']} take all of the text, which holds {sum(counts)} tokens"
        raise ValueError(f"validation_tokens: {wrong}; ask for fewer, in another folder")
    if not record["finished"]:
        record.update(tokens={"train": sum(counts[1:]), "validation": counts[0]}, finished=True)
        folder.commit(record)


def _write(folder: VerifiedFolder, name: str, encoded: Encoded, size: float, bar: tqdm[Any]) -> dict[str, Any]:
    """Write documents until there are `size` tokens or no more documents; return the file's entry in the record."""
    made: dict[str, Any] = {"sha256": None, "tokens": 0, "documents": 0, "end": None}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for tokens, end in encoded:
                file.write(tokens.tobytes())
                made.update(tokens=made["tokens"] + len(tokens), documents=made["documents"] + 1, end=list(end))
                bar.update(len(tokens))
                if made["tokens"] >= size:
                    break

    made["sha256"] = folder.write(name, write)
    return made


def _changed(path: Path) -> ValueError:
    """Remove what was made again and is not what it was, and return the error that ends the preparation."""
    path.unlink()
    changed = f"it gives another {path.name} than when {path.parent} was begun, so it has changed since"
    return ValueError(f"text: {changed}; restore it, or give another folder")
