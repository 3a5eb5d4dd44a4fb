"""A corpus by name: its text is found, tokenised once and cached by content.

The two-role language (see `two_role`) comes as tokens already, and so does what `token_shards.prepare` wrote (see `prepared`).
"""

import hashlib
import json
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from tying_utils.base import checks, paths
from tying_utils.base.folder import VerifiedFolder
from tying_utils.corpora import bpe, prepared, texts, two_role
from tying_utils.corpora.corpus import SEPARATOR, Corpus, in_tokens_of, token_dtype

# Part of every cache key: raise it when the same text would give other tokens.
FORMAT = 1
NAMES = ("python", "packages", "two-role", "text", "shards", "wikitext-2", "wikitext-103")


def load(
    name: str,
    *,
    vocab_size: int,
    path: str | Path | None = None,
    language: two_role.Settings | None = None,
    vocabulary: Corpus | None = None,
) -> Corpus:
    """Load a corpus by name, tokenised with a byte-level BPE of `vocab_size` tokens that is trained on its training part.

    With a `vocabulary`, another text, it is tokenised with that one's tokenizer instead, so that a model of that text can read
    it; shards have to be prepared with it.

    - "python": the standard library's own source of the running interpreter, tests and site-packages left out. Nothing is
      downloaded.
    - "packages": the Python source of everything installed beside this package, or in the site-packages folder `path` (else in
      the folder "packages" under data/texts or $TYING_TEXTS, where there is one: with it runs keep their text when a package
      comes or goes). About 300 MB, 100 million tokens at V 2048, of the environment that the tests run in. A twentieth of it,
      whole packages, is validation; `installed.read` says what is left out. An environment is read once per process.
    - "two-role": two samples of `two_role.Language(vocab_size, language or two_role.Settings())`, whose tokens need no BPE.
    - "text": `path`, a file or a folder of text (.txt, .md, .py and others; hidden files are left out): UTF-8, or UTF-16 or
      UTF-32 that a byte order mark says. Marks are left out of the text.
    - "shards": `path`, a folder that `token_shards.prepare` wrote. It is opened where it lies, whatever its size, and keyed by
      its tokens. Sizes are checked at every opening; checksums at the first, and again where a file's size or modification
      time has changed since (remembered under data/corpora), so that damage which leaves both as they were is not seen.
    - "wikitext-2", "wikitext-103" (arXiv 1609.07843): from the local folder `path`, else from the folder of that name under
      data/texts or $TYING_TEXTS where there is one, else through `datasets`.

    Files come in a fixed order and are split whole: every 20th (at least the last) is validation. A single file is split by
    lines, the last twentieth held out, or by characters where that leaves a part empty, as with one long line. A folder with
    texts named train, valid or test (as in train.txt or wiki.train.raw) is split by those names and reads no others: train
    against valid, or, without a train file, valid against test. Tokens are cached under data/corpora by content.

    Raises ValueError for an unknown name, a missing path, text that is empty or not UTF-8, a vocabulary that the text or the
    language does not support or that the shards were not prepared for, shards that are missing, unfinished or damaged (with
    the command that makes them), fewer than two packages or packages that changed since they were read, a language where there
    is text, a vocabulary of another size or of no text, or a cache or shards whose files lie elsewhere.
    """
    check(name, vocab_size, path, language)
    vocab_size = int(vocab_size)  # numpy's has the same key
    path = None if path is None else checks.path("path", path)
    if not isinstance(vocabulary, Corpus | None):
        raise ValueError(f"vocabulary: a Corpus, as load returns it, or None is needed, got {vocabulary!r:.80}")
    if vocabulary is not None and ("two-role" in (name, vocabulary.name) or vocabulary.vocab_size != vocab_size):
        got = f"{vocabulary.vocab_size} tokens of {vocabulary.name!r} for {name!r}"
        raise ValueError(f"vocabulary: that of a text of {vocab_size} tokens is needed, for a text, got {got}")
    if name == "shards":
        return prepared.load(Path(path or ""), vocab_size, vocabulary)
    if name == "two-role":
        return _two_role(two_role.Language(vocab_size, language or two_role.Settings()))
    facts, read = texts.found(name, path)
    fingerprint = {**facts, "vocab_size": vocab_size}
    if vocabulary is None or vocabulary.fingerprint == fingerprint:
        return _cached(fingerprint, lambda folder: bpe.tokenise(folder, name, read(), vocab_size, None))
    fingerprint = in_tokens_of(vocabulary, fingerprint)
    return _cached(fingerprint, lambda folder: bpe.tokenise(folder, name, read(), vocab_size, vocabulary), vocabulary.separator)


def check(
    name: str, vocab_size: int, path: str | Path | None, language: two_role.Settings | None = None, *, argument: str = "name"
) -> None:
    """Raise the ValueError that `load` raises for arguments that no text could serve."""
    if name not in NAMES:
        raise ValueError(f"{argument}: {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if path is not None:
        checks.path("path", path)
    if name == "two-role":
        if path is not None:
            raise ValueError("path: 'two-role' is generated; use name='text' for a file or a folder")
        if not isinstance(language, two_role.Settings | None):
            raise ValueError(f"language: two_role.Settings or None is needed, got {language!r}")
        two_role.Language(vocab_size, language or two_role.Settings())  # looks at the vocabulary and makes nothing yet
        return
    if language is not None:
        raise ValueError(f"language: {name!r} is text and takes none, got {language!r}; use 'two-role' or leave it None")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, Integral) or not 257 <= vocab_size < 2**32:
        raise ValueError(f"vocab_size: an integer of at least 257 (the bytes and a separator) is needed, got {vocab_size!r}")
    if name == "python" and path is not None:
        raise ValueError("path: 'python' is the running interpreter's own library; use name='text' for a folder")
    if name == "shards" and (path is None or not str(path)):
        raise ValueError(f"path: the folder that `tying-utils prepare` wrote is needed, got {path!r}")
    if (name == "text" and path is None) or (path is not None and not str(path)):
        raise ValueError(f"path: the path of a file or a folder of UTF-8 text is needed, got {path!r}")


def _cached(
    fingerprint: dict[str, Any], make: Callable[[VerifiedFolder], dict[str, str]], separator: str = SEPARATOR
) -> Corpus:
    name, vocab_size = fingerprint["name"], fingerprint["vocab_size"]
    key = hashlib.sha256(json.dumps([FORMAT, fingerprint], sort_keys=True).encode()).hexdigest()[:16]
    folder = VerifiedFolder(paths.corpora() / f"{name}-{vocab_size}-{key}", "corpus.json")
    record = folder.read()
    if record is None or folder.damaged(record["files"]):  # else nothing is written: it may lie on a disk that is only read
        with folder.alone():
            record = folder.read(repair=True)
            if record is None or folder.damaged(record["files"], repair=True):
                record = {"fingerprint": fingerprint, "dtype": token_dtype(vocab_size).name, "files": make(folder)}
                folder.commit(record)
    dtype = np.dtype(record["dtype"])
    train, validation = (np.memmap(folder.path / f"{part}.bin", dtype, mode="r") for part in ("train", "validation"))
    return Corpus(name, vocab_size, train, validation, fingerprint, folder.path, separator)


def _two_role(language: two_role.Language) -> Corpus:
    settings, length = language.settings.as_dict(), language.settings.length
    lengths = {"train.bin": length, "validation.bin": length // 20}
    # The settings decide the tokens; the first of them show that numpy draws here as elsewhere.
    content = hashlib.sha256(json.dumps([two_role.FORMAT, language.vocab_size, settings], sort_keys=True).encode())
    content.update(language.sample(1000).astype("<u4").tobytes())
    fingerprint = {
        "name": "two-role",
        **settings,
        "bytes": sum(lengths.values()) * token_dtype(language.vocab_size).itemsize,
        "sha256": content.hexdigest(),
        "vocab_size": language.vocab_size,
    }
    return _cached(fingerprint, lambda folder: _generate(language, lengths, folder))


def _generate(language: two_role.Language, lengths: dict[str, int], folder: VerifiedFolder) -> dict[str, str]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    roles = zip(language.source.tolist(), language.target.tolist(), strict=True)
    words = {f"s{source:02d}t{target:02d}.{token:04d}": token for token, (source, target) in enumerate(roles)}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    written = {"tokenizer.json": folder.write("tokenizer.json", lambda path: tokenizer.save(str(path)))}
    for seed, (name, length) in enumerate(lengths.items()):
        written[name] = folder.write(name, language.sample(length, seed).astype(token_dtype(language.vocab_size)).tofile)
    return written
