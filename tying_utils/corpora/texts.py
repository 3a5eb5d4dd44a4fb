"""Text to tokens: a corpus by name, split by file, byte-level BPE, memory-mapped, cached by content.

The two-role language (see `two_role`) comes as tokens already, and so does what `token_shards.prepare` wrote. The text of
installed packages (see `installed`) is split by package.
"""

import dataclasses
import functools
import hashlib
import json
import platform
import shlex
import sysconfig
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from tying_utils.base import files, paths
from tying_utils.corpora import installed, two_role
from tying_utils.corpora.installed import Documents

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Part of every cache key: raise it when the same text would give other tokens.
FORMAT = 1
SEPARATOR = "<|endoftext|>"
NAMES = ("python", "packages", "two-role", "text", "shards", "wikitext-2", "wikitext-103")
# Library folders that hold tests or other people's packages, not the standard library's own source.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_EVERY = 20  # every 20th file is held out, of the two-role language a twentieth
_AT_ONCE = 32  # files that are tokenised together
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
        """`count` windows of `length` tokens spread evenly over `part` ("train" or "validation"), (count, length), int64.

        Fewer if the part does not hold so many without overlap. Raises ValueError if it is shorter than one window.
        """
        if part not in ("train", "validation"):
            raise ValueError(f"part: {part!r} is unknown; choose 'train' or 'validation'")
        tokens = self.train if part == "train" else self.validation
        return windows(tokens, count, length, of=f"the {part} part of {self.name!r}")


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
      whole packages, is validation; `installed.read` says what is left out. An environment is read once a process.
    - "two-role": two samples of `two_role.Language(vocab_size, language or two_role.Settings())`, whose tokens need no BPE.
    - "text": `path`, a file or a folder of UTF-8 text (.txt, .md, .py and others; hidden files are left out).
    - "shards": `path`, a folder that `token_shards.prepare` wrote. It is opened where it lies, whatever its size, and keyed by
      its tokens. Sizes are checked at every opening; checksums at the first, and again where a file's size or modification
      time has changed since (remembered under data/corpora), so that damage which leaves both as they were is not seen.
    - "wikitext-2", "wikitext-103" (arXiv 1609.07843): from the local folder `path`, else from the folder of that name under
      data/texts or $TYING_TEXTS where there is one, else through `datasets`.

    Files come in a fixed order and are split whole: every 20th (at least the last) is validation. A single file is split by
    lines, the last twentieth held out. A folder with texts named train, valid or test (as in train.txt or wiki.train.raw) is
    split by those names and reads no others: train against valid, or, without a train file, valid against test. Tokens are
    cached under data/corpora by content.

    Raises ValueError for an unknown name, a missing path, text that is empty or not UTF-8, a vocabulary that the text or the
    language does not support or that the shards were not prepared for, shards that are missing, unfinished or damaged (with
    the command that makes them), fewer than two packages or packages that changed since they were read, a language where there
    is text, a vocabulary of another size or of no text, or a cache or shards whose files lie elsewhere.
    """
    check(name, vocab_size, path, language)
    if vocabulary is not None and ("two-role" in (name, vocabulary.name) or vocabulary.vocab_size != vocab_size):
        raise ValueError(
            f"vocabulary: that of a text of {vocab_size} tokens is needed, for a text, got {vocabulary.vocab_size} tokens of "
            f"{vocabulary.name!r} for {name!r}"
        )
    if name == "shards":
        return _in_tokens_of(_shards(Path(path or ""), vocab_size), vocabulary)
    if name == "two-role":
        return _two_role(two_role.Language(vocab_size, language or two_role.Settings()))
    if name == "packages":
        places = _places(path)
        facts, read = _known_packages(places), lambda: _packages_again(places)
    else:
        both = documents(name, path)
        facts = {"name": name, **({"python": platform.python_version()} if name == "python" else {}), **_facts(*both)}
        read = lambda: both  # noqa: E731
    fingerprint = {**facts, "vocab_size": vocab_size}
    if vocabulary is None or vocabulary.fingerprint == fingerprint:
        return _cached(fingerprint, lambda folder: _tokenise(*read(), fingerprint, folder))
    own = _beside(fingerprint, vocabulary)
    corpus = _cached(own, lambda folder: _tokenise(*read(), own, folder, vocabulary))
    return dataclasses.replace(corpus, separator=vocabulary.separator)


def _facts(train: Documents, validation: Documents) -> dict[str, Any]:
    """Of a text: how many files and bytes, and sha256 of names and texts."""
    content, size = hashlib.sha256(), 0
    for file_name, text in (*train, ("", ""), *validation):
        content.update(f"{file_name}\0{len(text)}\0".encode())
        content.update(raw := text.encode())
        size += len(raw)
    return {"files": len(train) + len(validation), "bytes": size, "sha256": content.hexdigest()}


Places = tuple[str, tuple[Path, ...]]  # of the text "packages": the argument that says them, and the folders


def _places(path: str | Path | None) -> Places:
    if path is not None:
        return "path", (Path(path).resolve(),)
    return "name", _local("packages") or installed.folders()


def _packages(places: Places) -> tuple[Documents, Documents, dict[str, Any]]:
    """What `installed.read` finds, both parts of it with a text. Raises ValueError otherwise."""
    argument, folders = places
    train, validation, facts = installed.read(folders)
    if not all(any(text.strip() for _, text in part) for part in (train, validation)):
        raise ValueError(
            f"{argument}: 'packages' needs two installed packages with Python files, one of them to hold out; in "
            f"{', '.join(map(str, folders))} there are {len(facts['packages'])} distributions with {len(train)} files to train "
            f"on and {len(validation)} held out; install more, or give path=, another site-packages folder"
        )
    return train, validation, facts


@functools.cache  # of hundreds of MB, and every run asks for it
def _known_packages(places: Places) -> dict[str, Any]:
    return _facts_of_packages(*_packages(places))


def _facts_of_packages(train: Documents, validation: Documents, facts: dict[str, Any]) -> dict[str, Any]:
    return {"name": "packages", **facts, **_facts(train, validation)}


def _packages_again(places: Places) -> tuple[Documents, Documents]:
    """Both parts, as `_known_packages` has seen them; ValueError if a package has come, gone or changed since."""
    read = _packages(places)
    if _facts_of_packages(*read) != _known_packages(places):
        argument, folders = places
        raise ValueError(
            f"{argument}: the packages in {', '.join(map(str, folders))} have changed since this process read them; start it "
            "again, or give path=, a copy of them"
        )
    return read[:2]


def _local(name: str) -> tuple[Path, ...]:
    """The folder called `name` among the local texts; nothing where there is none."""
    return (folder.resolve(),) if (folder := paths.texts() / name).is_dir() else ()


def _beside(fingerprint: dict[str, Any], vocabulary: Corpus) -> dict[str, Any]:
    """`fingerprint` of a text, with that of the corpus whose tokens it is in."""
    both = hashlib.sha256(f"{fingerprint['sha256']} {vocabulary.fingerprint['sha256']}".encode())
    return {**fingerprint, "sha256": both.hexdigest(), "vocabulary": vocabulary.fingerprint}


def _in_tokens_of(shards: Corpus, vocabulary: Corpus | None) -> Corpus:
    """The `shards`, if they were prepared with the tokenizer of `vocabulary`; ValueError if with another."""
    if vocabulary is None or vocabulary.fingerprint == shards.fingerprint:
        return shards
    if vocabulary.tokenizer.to_str() != shards.tokenizer.to_str():
        raise ValueError(
            f"vocabulary: the shards in {shards.folder} are no tokens of {vocabulary.name!r}; prepare them with "
            f"`--tokenizer {vocabulary.folder / 'tokenizer.json'}`"
        )
    return dataclasses.replace(shards, fingerprint=_beside(shards.fingerprint, vocabulary))


def windows(tokens: np.ndarray | Shards, count: int, length: int, *, of: str = "the text") -> np.ndarray:
    """Up to `count` windows of `length` tokens spread evenly over `tokens` (n,), without overlap: (count, length), int64.

    Raises ValueError if there are fewer tokens than one window; `of` says there whose they are.
    """
    whole = len(tokens) // length
    if whole < 1:
        raise ValueError(
            f"length: {of} holds {len(tokens)} tokens, fewer than one window of {length}; use more text or shorter windows"
        )
    picked = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    return np.stack([tokens[i * length : (i + 1) * length] for i in picked]).astype(np.int64)


def documents(name: str, path: str | Path | None = None) -> tuple[Documents, Documents]:
    """The (file name, text) pairs of a text's training and validation part, as `load` splits them before it tokenises.

    Raises ValueError for a name that is no text's, and for a text that is missing, empty or not UTF-8.
    """
    texts = [known for known in NAMES if known not in ("two-role", "shards")]
    if name not in texts:
        raise ValueError(f"name: {name!r} is no text; choose one of {', '.join(texts)}")
    if path is None and name.startswith("wikitext"):
        path = next(iter(_local(name)), None)
    if name == "packages":
        return _packages(_places(path))[:2]
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


def check(
    name: str, vocab_size: int, path: str | Path | None, language: two_role.Settings | None = None, *, argument: str = "name"
) -> None:
    """Raise the ValueError that `load` raises for arguments that no text could serve; otherwise nothing."""
    if name not in NAMES:
        raise ValueError(f"{argument}: {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if name == "two-role":
        if path is not None:
            raise ValueError("path: 'two-role' is generated; use name='text' for a file or a folder")
        if not isinstance(language, two_role.Settings | None):
            raise ValueError(f"language: two_role.Settings or None is needed, got {language!r}")
        two_role.Language(vocab_size, language or two_role.Settings())  # looks at the vocabulary and makes nothing yet
        return
    if language is not None:
        raise ValueError(f"language: {name!r} is text and takes none, got {language!r}; use 'two-role' or leave it None")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or not 257 <= vocab_size < 2**32:
        raise ValueError(f"vocab_size: an integer of at least 257 (the bytes and a separator) is needed, got {vocab_size!r}")
    if name == "python" and path is not None:
        raise ValueError("path: 'python' is the running interpreter's own library; use name='text' for a folder")
    if name == "shards" and (path is None or not str(path)):
        raise ValueError(f"path: the folder that `tying-utils prepare` wrote is needed, got {path!r}")
    if (name == "text" and path is None) or (path is not None and not str(path)):
        raise ValueError(f"path: the path of a file or a folder of UTF-8 text is needed, got {path!r}")


def _cached(fingerprint: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Corpus:
    """The corpus with `fingerprint`; `make` writes it into a folder and returns its record where it is not there yet, whole."""
    key = hashlib.sha256(json.dumps([FORMAT, fingerprint], sort_keys=True).encode()).hexdigest()[:16]
    folder = paths.corpora() / f"{fingerprint['name']}-{fingerprint['vocab_size']}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        files.sweep(folder)
        record = files.read_or_set_aside(folder / "corpus.json")
        if record is not None:
            held = {files.inside(folder, file_name): expected for file_name, expected in record["files"].items()}
            for file, expected in held.items():
                if not files.intact(file, expected):
                    files.set_aside(file, "it is missing or does not match its checksum")
                    record = None
        if record is None:
            record = make(folder)
    dtype = np.dtype(record["dtype"])
    return Corpus(
        name=fingerprint["name"],
        vocab_size=fingerprint["vocab_size"],
        train=np.memmap(folder / "train.bin", dtype=dtype, mode="r"),
        validation=np.memmap(folder / "validation.bin", dtype=dtype, mode="r"),
        fingerprint=fingerprint,
        folder=folder,
    )


def learn_bpe(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE of `vocab_size` tokens, `SEPARATOR` among them, learned on `texts`, which are read once.

    Raises ValueError if the texts support fewer tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"vocab_size: the text supports {tokenizer.get_vocab_size()} tokens, fewer than {vocab_size}; "
            "ask for that many or give more text"
        )
    return tokenizer


def _tokenise(
    train: Documents, validation: Documents, fingerprint: dict[str, Any], folder: Path, vocabulary: Corpus | None = None
) -> dict[str, Any]:
    name, vocab_size = fingerprint["name"], fingerprint["vocab_size"]
    if vocabulary is None:
        tokenizer = learn_bpe((text for _, text in tqdm(train, f"learning BPE on {name}", leave=False)), vocab_size)
    else:
        tokenizer = vocabulary.tokenizer
    dtype = token_dtype(vocab_size)
    separator: Any = tokenizer.token_to_id(vocabulary.separator if vocabulary else SEPARATOR)
    written = {"tokenizer.json": files.write_with(folder / "tokenizer.json", lambda p: tokenizer.save(str(p)))}
    for file_name, documents in (("train.bin", train), ("validation.bin", validation)):

        def write(path: Path, documents: Documents = documents) -> None:
            # Piece by piece: as Python integers the tokens of a large text would not fit in memory.
            with (
                path.open("wb") as file,
                tqdm(total=len(documents), desc=f"tokenising {name}", unit="file", leave=False) as bar,
            ):
                for start in range(0, len(documents), _AT_ONCE):
                    batch = [text for _, text in documents[start : start + _AT_ONCE]]
                    for encoding in tokenizer.encode_batch_fast(batch):
                        np.asarray([*encoding.ids, separator], dtype=dtype).tofile(file)
                    bar.update(len(batch))

        written[file_name] = files.write_with(folder / file_name, write)
    return _record(fingerprint, dtype, written, folder)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where it holds every token of a vocabulary, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _record(fingerprint: dict[str, Any], dtype: np.dtype[Any], written: dict[str, str], folder: Path) -> dict[str, Any]:
    record = {"fingerprint": fingerprint, "dtype": dtype.name, "files": written}
    files.write_json(folder / "corpus.json", record)
    return record


def _shards(folder: Path, vocab_size: int) -> Corpus:
    record = files.read_json(folder / "corpus.json")
    where = shlex.quote(str(folder))
    if record is None or "arguments" not in record:
        raise ValueError(
            f"path: {folder} holds no prepared text, or its corpus.json is damaged; "
            f"`tying-utils prepare --out {where} --text SOURCE --vocab-size {vocab_size}` makes it"
        )
    command = f"`tying-utils prepare --out {where} {record['arguments']}`"
    if not record["finished"]:
        raise ValueError(f"path: the text in {folder} is not prepared to its end; {command} goes on with it")
    if record["vocab_size"] != vocab_size:
        raise ValueError(
            f"vocab_size: {folder} was prepared for {record['vocab_size']} tokens, got {vocab_size}; ask for "
            f"{record['vocab_size']}, or prepare the text anew"
        )
    held: dict[str, Any] = record["files"]
    for name in held:
        files.inside(folder, name)
    fingerprint = {
        "name": "shards",
        "tokens": record["tokens"]["train"],
        "sha256": hashlib.sha256("".join(entry["sha256"] for entry in held.values()).encode()).hexdigest(),
        "vocab_size": vocab_size,
    }
    dtype = np.dtype(record["dtype"]).newbyteorder("<")
    expected = {name: (entry["tokens"] * dtype.itemsize, entry["sha256"]) for name, entry in held.items()}
    tokenizer = folder / "tokenizer.json", record["tokenizer"]
    damaged = _damaged(folder, expected, fingerprint) or ([] if files.intact(*tokenizer) else ["tokenizer.json"])
    if damaged:
        raise ValueError(
            f"path: {', '.join(damaged)} in {folder}: missing or not as corpus.json says; {command} sets damaged files aside "
            "and makes them again"
        )
    validation, *train = (np.memmap(folder / name, dtype=dtype, mode="r") for name in held)
    return Corpus(
        name="shards",
        vocab_size=vocab_size,
        train=train[0] if len(train) == 1 else Shards(train),
        validation=validation,
        fingerprint=fingerprint,
        folder=folder,
        separator=record["separator"],
    )


def _damaged(folder: Path, expected: dict[str, tuple[int, str]], fingerprint: dict[str, Any]) -> list[str]:
    """The names of files in `folder` that are missing or have not the size and sha256 expected (see `load`)."""
    memory = paths.corpora() / f"shards-{fingerprint['vocab_size']}-{fingerprint['sha256'][:16]}.json"
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):  # of the ranks that open one text together, one reads it
        known = files.read_or_set_aside(memory) or {}
        found = {}
        for name, (size, checksum) in tqdm(expected.items(), "verifying shards", unit="file", leave=False, delay=1):
            path = (folder / name).resolve()
            if not path.is_file() or (status := path.stat()).st_size != size:
                continue
            seen = [size, status.st_mtime_ns, checksum]
            if known.get(str(path)) == seen or files.digest(path) == checksum:
                found[name] = str(path), seen
        now = {**known, **dict(found.values())}
        if now != known:
            files.write_json(memory, now)
    return [name for name in expected if name not in found]


def _two_role(language: two_role.Language) -> Corpus:
    settings = language.settings.as_dict()
    # The settings decide the tokens; the first of them stand witness that numpy draws here as elsewhere.
    content = hashlib.sha256(json.dumps([two_role.FORMAT, language.vocab_size, settings], sort_keys=True).encode())
    content.update(language.sample(1000).astype("<u4").tobytes())
    fingerprint = {
        "name": "two-role",
        **settings,
        "bytes": sum(_lengths(language.settings).values()) * token_dtype(language.vocab_size).itemsize,
        "sha256": content.hexdigest(),
        "vocab_size": language.vocab_size,
    }
    return _cached(fingerprint, lambda folder: _generate(language, fingerprint, folder))


def _lengths(settings: two_role.Settings) -> dict[str, int]:
    return {"train.bin": settings.length, "validation.bin": settings.length // _EVERY}


def _generate(language: two_role.Language, fingerprint: dict[str, Any], folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    roles = zip(language.source.tolist(), language.target.tolist(), strict=True)
    words = {f"s{source:02d}t{target:02d}.{token:04d}": token for token, (source, target) in enumerate(roles)}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    written = {"tokenizer.json": files.write_with(folder / "tokenizer.json", lambda p: tokenizer.save(str(p)))}
    dtype = token_dtype(language.vocab_size)
    for seed, (file_name, length) in enumerate(_lengths(language.settings).items()):
        tokens = language.sample(length, seed).astype(dtype)
        written[file_name] = files.write_with(folder / file_name, tokens.tofile)
    return _record(fingerprint, dtype, written, folder)


@functools.cache  # every run asks for it, and an interpreter's own library does not change under it
def _standard_library(library: Path) -> Documents:
    """The standard library's Python files by relative path, in one order on every machine; undecodable ones left out."""
    documents = []
    for file in sorted(library.rglob("*.py"), key=lambda p: p.relative_to(library).as_posix()):
        relative = file.relative_to(library)
        if _LEFT_OUT.isdisjoint(relative.parts):
            try:
                documents.append((relative.as_posix(), file.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue  # a few files declare another encoding
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
            # A name may hold bytes that are no text; contents may not.
            yield name.encode(errors="backslashreplace").decode(), file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"path: {file} is not UTF-8 ({error.reason} at byte {error.start}); convert or remove it"
            ) from error


def _split(documents: Documents) -> tuple[Documents, Documents]:
    """Whole documents into a training and a validation part (see `load`)."""
    named: dict[str, Documents] = {"train": [], "valid": [], "test": []}
    for name, text in documents:
        pieces = Path(name).name.lower().replace("validation", "valid").split(".")
        for part in named:
            if part in pieces and pieces[-1] != "py":
                named[part].append((name, text))
    parts = [named[part] for part in ("train", "valid", "test") if named[part]]
    if len(parts) >= 2:
        return parts[0], parts[1]
    if len(documents) == 1:
        name, text = documents[0]
        lines = text.splitlines(keepends=True)
        cut = len(lines) - max(1, len(lines) // _EVERY)
        return [(name, "".join(lines[:cut]))], [(name, "".join(lines[cut:]))]
    held_out = {i for i in range(len(documents)) if i % _EVERY == _EVERY - 1} or {len(documents) - 1}
    return (
        [document for i, document in enumerate(documents) if i not in held_out],
        [document for i, document in enumerate(documents) if i in held_out],
    )


def _wikitext(name: str) -> tuple[Documents, Documents]:
    from datasets import load_dataset

    try:
        data = load_dataset("Salesforce/wikitext", f"{name}-raw-v1")
    except Exception as error:  # whatever the hub client raises without a network
        raise ValueError(
            f"name: {name!r} could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            f"give path=, a folder with its train, valid and test text, or put that folder at {paths.texts() / name} "
            "($TYING_TEXTS moves it)"
        ) from error
    return tuple([(part, "".join(data[part]["text"]))] for part in ("train", "validation"))  # type: ignore[return-value]
