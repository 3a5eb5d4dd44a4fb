import dataclasses
import json
import os
import re
import shutil
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_installed import install

from tying_utils.corpora import Corpus, bpe, installed, store, texts, two_role

NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def documents(corpus: Corpus, part: str) -> list[str]:
    """The documents of a part, decoded from its tokens."""
    tokens = getattr(corpus, part)
    separator = corpus.tokenizer.token_to_id(corpus.separator)
    ends = np.flatnonzero(tokens == separator)
    assert ends[-1] == len(tokens) - 1, "the last document has no end"
    pieces = np.split(np.asarray(tokens), ends + 1)[:-1]
    return corpus.tokenizer.decode_batch([piece[:-1].tolist() for piece in pieces], skip_special_tokens=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def write(folder: Path, texts: dict[str, str]) -> Path:
    for name, content in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def refuse(*arguments: Any) -> Any:
    pytest.fail("the text was tokenised again")


@pytest.fixture(autouse=True)
def without_local_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TYING_TEXTS", raising=False)


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    """The standard library's own source, found another way."""
    root = sysconfig.get_paths()["stdlib"]
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        for name in names:
            if name.endswith(".py"):
                file = Path(folder, name)
                try:
                    found[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(tmp_path_factory.mktemp("home")))
        return store.load("python", vocab_size=300)


def test_python_is_the_whole_standard_library_each_file_in_one_part(python, library):
    assert {"os.py", "json/decoder.py"} <= set(library)
    train, validation = documents(python, "train"), documents(python, "validation")
    assert Counter(train) + Counter(validation) == Counter(library.values())
    assert len(validation) == len(library) // 20


def test_python_fingerprint_says_what_the_text_was(python, library):
    fingerprint = python.fingerprint
    assert set(fingerprint) == {"name", "python", "files", "bytes", "sha256", "vocab_size"}
    assert fingerprint["name"] == python.name == "python"
    assert fingerprint["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert fingerprint["files"] == len(library)
    assert fingerprint["bytes"] == sum(len(text.encode()) for text in library.values())
    assert re.fullmatch("[0-9a-f]{64}", fingerprint["sha256"])
    assert fingerprint["vocab_size"] == python.vocab_size == 300


def test_tokens_are_mapped_not_read(python):
    assert isinstance(python.train, np.memmap) and isinstance(python.validation, np.memmap)
    assert python.train.dtype == python.validation.dtype == np.uint16
    assert not python.train.flags.writeable


def test_counts_are_of_the_training_part(python):
    assert python.counts.shape == (300,)
    assert python.counts.dtype == np.int64
    assert python.counts.sum() == len(python.train)
    for token in (0, 50, 299):
        assert python.counts[token] == (python.train == token).sum()


def test_python_takes_no_path(home, text):
    with pytest.raises(ValueError, match=r"^path:.*name='text'"):
        store.load("python", vocab_size=300, path=text)


def test_a_file_is_split_by_lines(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    assert documents(corpus, "train") == ["".join(lines[:-40])]
    assert documents(corpus, "validation") == ["".join(lines[-40:])]
    assert corpus.fingerprint["files"] == 2
    assert corpus.fingerprint["bytes"] == text.stat().st_size


def test_a_folder_is_split_by_whole_files(home, tmp_path, grammar):
    texts = {f"{i:02d}/part.{'txt' if i % 2 else 'md'}": grammar(12, seed=i) for i in range(41)}
    folder = write(tmp_path / "folder", texts)
    write(folder, {".hidden": "no", ".git/config.txt": "no", "07/.cache/x.txt": "no"})
    corpus = store.load("text", vocab_size=300, path=str(folder))
    ordered = list(texts.values())
    assert documents(corpus, "validation") == [ordered[19], ordered[39]]
    assert documents(corpus, "train") == [text for i, text in enumerate(ordered) if i not in (19, 39)]


def test_the_last_of_few_files_is_held_out(home, tmp_path, grammar):
    folder = write(tmp_path / "folder", {f"{i}.txt": grammar(60, seed=i) for i in range(3)})
    assert documents(store.load("text", vocab_size=300, path=folder), "validation") == [grammar(60, seed=2)]


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (("train.txt", "valid.txt", "test.txt"), "train.txt", "valid.txt"),
        (("Train.md", "validation.md", "test.md"), "Train.md", "validation.md"),
        (("train.txt", "test.txt"), "train.txt", "test.txt"),
        (("valid.txt", "test.txt"), "valid.txt", "test.txt"),
        (("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"), "wiki.train.raw", "wiki.valid.raw"),  # as it is published
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("name", ["text", "wikitext-2"])
def test_a_folder_is_split_by_the_names_of_its_files(home, tmp_path, grammar, name, names, train, validation):
    texts = {file: grammar(90, seed=seed) for seed, file in enumerate(names)}
    corpus = store.load(name, vocab_size=300, path=write(tmp_path / "folder", texts))
    assert corpus.name == corpus.fingerprint["name"] == name
    assert documents(corpus, "train") == [texts[train]]
    assert documents(corpus, "validation") == [texts[validation]]


def test_two_homes_give_equal_bytes(text, tmp_path, monkeypatch):
    folders = []
    for name in ("one", "two"):
        monkeypatch.setenv("TYING_HOME", str(tmp_path / name))
        folders.append(store.load("text", vocab_size=300, path=text).folder)
    assert folders[0] != folders[1] and folders[0].name == folders[1].name
    assert contents(folders[0]) == contents(folders[1])
    assert set(contents(folders[0])) == {"corpus.json", "tokenizer.json", "train.bin", "validation.bin"}


def test_the_cache_is_keyed_by_content(home, tmp_path, grammar, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text(grammar(100), encoding="utf-8")
    first = store.load("text", vocab_size=300, path=file)
    assert store.load("text", vocab_size=301, path=file).folder != first.folder
    file.write_text(grammar(100, seed=1), encoding="utf-8")
    other = store.load("text", vocab_size=300, path=file)
    assert other.folder != first.folder
    assert other.fingerprint["sha256"] != first.fingerprint["sha256"]
    monkeypatch.setattr(bpe, "tokenise", refuse)
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "a.txt")
    again = store.load("text", vocab_size=300, path=moved)
    assert again.folder == other.folder
    assert np.array_equal(again.train, other.train) and np.array_equal(again.validation, other.validation)
    assert again.fingerprint == other.fingerprint


def test_a_text_in_the_tokens_of_another_is_the_same_text(home, text, tmp_path, python):
    file = tmp_path / "other.txt"
    file.write_text("def of a mañana, 東京 and 🦊.\n" * 99, encoding="utf-8")
    own, known = (store.load("text", vocab_size=300, path=text, vocabulary=other) for other in (None, python))
    for corpus in (known, store.load("text", vocab_size=300, path=file, vocabulary=python)):
        assert corpus.tokenizer.to_str() == python.tokenizer.to_str() != own.tokenizer.to_str()
        assert corpus.fingerprint["vocabulary"] == python.fingerprint and corpus.folder.name.startswith("text-300-")
    for part in ("train", "validation"):
        assert documents(known, part) == documents(own, part)
        assert "".join(documents(corpus, part)) in file.read_text(encoding="utf-8")
    assert len(known.train) > len(own.train), "words of sentences are rare in Python source"
    plain = {name: value for name, value in known.fingerprint.items() if name not in ("sha256", "vocabulary")}
    assert plain == {name: value for name, value in own.fingerprint.items() if name != "sha256"}


def test_both_texts_are_in_the_key(home, text, python, monkeypatch):
    def load(vocabulary: Corpus | None) -> Corpus:
        return store.load("text", vocab_size=300, path=text, vocabulary=vocabulary)

    own, known = load(None), load(python)
    other = dataclasses.replace(python, fingerprint={**python.fingerprint, "sha256": "another text"})
    shas = {corpus.fingerprint["sha256"] for corpus in (own, known, load(other))}
    assert len(shas) == len({corpus.folder for corpus in (own, known, load(other))}) == 3
    monkeypatch.setattr(bpe, "tokenise", refuse)
    assert load(own).fingerprint == own.fingerprint, "a text in its own tokens is itself"
    assert np.array_equal(load(python).train, known.train)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "text",
            {"vocab_size": 301},
            r"^vocabulary: that of a text of 301 tokens is needed, .* got 300 tokens of 'python'",
        ),
        ("two-role", {"vocab_size": 300, "path": None}, r"^vocabulary: .* got 300 tokens of 'python' for 'two-role'"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(home, text, python, name, changes, said):
    language = two_role.Settings(classes=4) if name == "two-role" else None
    with pytest.raises(ValueError, match=said):
        store.load(name, **{"path": text, "language": language, "vocabulary": python, **changes})


def test_windows_are_spread_and_do_not_overlap(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    for part, tokens in (("train", corpus.train), ("validation", corpus.validation)):
        windows = corpus.windows(part, 5, 17)
        assert windows.shape == (5, 17) and windows.dtype == np.int64
        whole = len(tokens) // 17
        starts = [round(i * (whole - 1) / 4) * 17 for i in range(5)]
        assert [row.tolist() for row in windows] == [tokens[s : s + 17].tolist() for s in starts]
        every = corpus.windows(part, 10**6, 17)
        assert every.flatten().tolist() == tokens[: whole * 17].tolist()


def test_windows_name_what_is_wrong(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    with pytest.raises(ValueError, match=r"^part:"):
        corpus.windows("test", 1, 1)
    with pytest.raises(ValueError, match=rf"^length:.*{len(corpus.validation)} tokens"):
        corpus.windows("validation", 1, len(corpus.validation) + 1)
    assert corpus.windows("validation", 9, len(corpus.validation)).shape == (1, len(corpus.validation))


@pytest.mark.parametrize("value", [256, 0, -1, 300.0, True, "300", None, 2**32])
def test_bad_vocabulary_size_is_named(home, text, value):
    with pytest.raises(ValueError, match=r"^vocab_size:"):
        store.load("text", vocab_size=value, path=text)


def test_a_vocabulary_beyond_the_text_is_named_and_the_advice_does(home, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("a short text\nof very few words\n" * 30, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^vocab_size:.*fewer than 2048") as raised:
        store.load("text", vocab_size=2048, path=file)
    supported = re.search(r"supports (\d+)", str(raised.value))
    assert supported
    corpus = store.load("text", vocab_size=int(supported[1]), path=file)
    assert corpus.tokenizer.get_vocab_size() == corpus.vocab_size


@pytest.mark.parametrize("name", ["pile", "", "Python"])
def test_unknown_name_is_named_with_the_known_ones(home, name):
    with pytest.raises(ValueError, match=r"^name:.*python.*wikitext-103"):
        store.load(name, vocab_size=300)


def test_local_text_needs_a_path(home):
    with pytest.raises(ValueError, match=r"^path:"):
        store.load("text", vocab_size=300)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "does not exist"),
        ({}, "holds no file"),
        ({".hidden.txt": b"text"}, "holds no file"),
        ({"a.txt": b"", "b.txt": b"text"}, "training part .* is empty"),
        ({"a.txt": b"text", "b.txt": b" \n"}, "validation part .* is empty"),
        ({"a.txt": b"one line"}, "training part .* is empty"),
        ({"a.txt": b"text", "b.txt": b"caf\xe9"}, r"b\.txt is not UTF-8"),
    ],
    ids=["missing", "empty folder", "hidden", "empty training", "empty validation", "one line", "Latin-1"],
)
def test_a_bad_text_is_named(home, tmp_path, files, said):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^path:.*{said}"):
        store.load("text", vocab_size=300, path=folder)


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext_without_a_network_advises_a_folder(home, monkeypatch, name):
    import datasets

    def offline(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    place = re.escape(str(home / "data" / "texts" / name))
    with pytest.raises(ValueError, match=rf"^name: '{name}'.*ConnectionError.*path=, a folder.* at {place} \(\$TYING_TEXTS"):
        store.load(name, vocab_size=300)


@pytest.mark.parametrize("place", ["data/texts", "$TYING_TEXTS"])
def test_wikitext_is_read_from_a_folder_of_its_name(home, tmp_path, monkeypatch, grammar, place):
    """And keyed by its content: wherever it lies, the fingerprint and the cache are the same."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    texts = home / "data" / "texts"
    if place == "$TYING_TEXTS":
        texts = tmp_path / "elsewhere" / ".hidden"
        monkeypatch.setenv("TYING_TEXTS", str(texts))
    parts = {"wiki.valid.raw": grammar(90), "wiki.test.raw": grammar(40, seed=1)}
    folder = write(texts / "wikitext-2", parts)
    corpus = store.load("wikitext-2", vocab_size=300)
    assert corpus.name == "wikitext-2"
    assert documents(corpus, "train") == [parts["wiki.valid.raw"]]
    assert documents(corpus, "validation") == [parts["wiki.test.raw"]]
    assert not any(str(tmp_path) in str(value) for value in corpus.fingerprint.values())
    monkeypatch.setattr(bpe, "tokenise", refuse)
    moved = folder.rename(tmp_path / "moved")
    again = store.load("wikitext-2", vocab_size=300, path=moved)
    assert (again.fingerprint, again.folder) == (corpus.fingerprint, corpus.folder)


def test_a_path_goes_before_the_folder_of_local_texts(home, tmp_path, monkeypatch, grammar):
    monkeypatch.setenv("TYING_TEXTS", str(tmp_path))
    write(tmp_path / "wikitext-2", {"train.txt": "not this", "valid.txt": "nor this"})
    given = write(tmp_path / "given", {"train.txt": grammar(90), "valid.txt": grammar(20)})
    assert documents(store.load("wikitext-2", vocab_size=300, path=given), "train") == [grammar(90)]


def test_wikitext_through_datasets(home, monkeypatch, grammar):
    import datasets

    asked = []

    def fetch(*arguments: str) -> dict[str, dict[str, list[str]]]:
        asked.append(arguments)
        parts = {"train": 80, "validation": 20, "test": 20}
        return {part: {"text": grammar(n, seed=n).splitlines(keepends=True)} for part, n in parts.items()}

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    corpus = store.load("wikitext-2", vocab_size=300)
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    assert documents(corpus, "train") == [grammar(80, seed=80)]
    assert documents(corpus, "validation") == [grammar(20, seed=20)]


def environment(folder: Path, grammar: Any, count: int = 25) -> Path:
    """A site-packages folder with so many packages of three files each."""
    for number in range(count):
        texts = {f"p{number}/{name}.py": grammar(9, seed=3 * number + at) for at, name in enumerate(("__init__", "a", "b"))}
        install(folder, f"p{number}", texts, version=f"1.{number}")
    return folder


def test_packages_are_read_from_a_folder_whole_packages_in_one_part(home, tmp_path, grammar):
    folder = environment(tmp_path / "site", grammar)
    corpus = store.load("packages", vocab_size=300, path=folder)
    train, validation, facts = installed.read([folder])
    assert facts["held_out"] and len(train) + len(validation) == 75
    assert texts.documents("packages", folder) == (train, validation)
    assert documents(corpus, "train") == [text for _, text in train]
    assert documents(corpus, "validation") == [text for _, text in validation]
    for tokens in (corpus.train, corpus.validation):
        assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
    assert corpus.name == "packages" and corpus.folder.name.startswith("packages-300-")
    assert corpus.counts.sum() == len(corpus.train)


def test_packages_have_the_fingerprint_that_they_always_had(home, tmp_path):
    """Runs of days are keyed by it."""
    texts = {"b/z.py": "z = 'é'\r\n", "b/__init__.py": "\ufeff", "b/a.py": "a = 1\n" * 50, "a.py": "b = 2\n" * 60}
    install(tmp_path, "one", {**texts, "b/latin.py": b"# \xe9", "b/sub/copy.py": "a = 1\r\n" * 50}, version="1.2")
    install(tmp_path, "two", {"two.py": "two = 2\n" * 30, "two_more.py": ""}, version="3")
    fingerprint = store.load("packages", vocab_size=258, path=tmp_path).fingerprint
    assert (
        json.loads(json.dumps(fingerprint))
        == fingerprint
        == {
            "name": "packages",
            "packages": {"one": "1.2", "two": "3"},
            "held_out": ["two"],
            "left_out": {"a copy": 2, "not UTF-8": 1},
            "files": 5,
            "bytes": 909,
            "sha256": "604ea04650b5f3ec085bf6aafcb0ed5bc7268f417e4127c26d6361a4bcfe6e95",
            "vocab_size": 258,
        }
    )


def test_packages_are_keyed_by_content_wherever_they_lie(home, tmp_path, grammar, monkeypatch):
    folder = environment(tmp_path / "site", grammar, 4)
    first = store.load("packages", vocab_size=300, path=folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(bpe, "tokenise", refuse)
        patch.chdir(tmp_path)
        for path in (str(folder), "copy", Path("copy/../site")):
            again = store.load("packages", vocab_size=300, path=path)
            assert (again.fingerprint, again.folder) == (first.fingerprint, first.folder)
        patch.chdir(folder)
        with pytest.raises(ValueError, match="^path: "):  # the same words, another place
            store.load("packages", vocab_size=300, path="copy")

    (copy / "p1" / "a.py").write_text("a = 1\n", encoding="utf-8")
    renamed = Path(shutil.copytree(folder, tmp_path / "renamed"))
    (renamed / "p1-1.1.dist-info" / "METADATA").write_text("Name: p1\nVersion: 1.2\n", encoding="utf-8")
    texts._known_packages.cache_clear()
    changed, updated = (store.load("packages", vocab_size=300, path=path) for path in (copy, renamed))
    assert len({first.folder, changed.folder, updated.folder}) == 3
    assert changed.fingerprint["sha256"] != first.fingerprint["sha256"]
    assert updated.fingerprint == first.fingerprint | {"packages": {**first.fingerprint["packages"], "p1": "1.2"}}


def test_packages_are_read_once_a_process_and_never_under_another_fingerprint(home, tmp_path, grammar, monkeypatch):
    folder = environment(tmp_path / "site", grammar, 4)
    first = store.load("packages", vocab_size=300, path=folder)
    (folder / "p1" / "a.py").write_text("a = 1\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(installed, "read", refuse)
        again = store.load("packages", vocab_size=300, path=folder)
        assert (again.fingerprint, again.folder) == (first.fingerprint, first.folder)
    with pytest.raises(ValueError, match=rf"^path: the packages in {re.escape(str(folder))} have changed .* start it again"):
        store.load("packages", vocab_size=301, path=folder)
    texts._known_packages.cache_clear()
    assert store.load("packages", vocab_size=301, path=folder).fingerprint["sha256"] != first.fingerprint["sha256"]


@pytest.mark.parametrize("place", ["path", "data/texts", "$TYING_TEXTS", "running"])
def test_a_folder_of_packages_goes_before_the_running_environment(home, tmp_path, monkeypatch, grammar, place):
    wanted, path = tmp_path / "running", None
    monkeypatch.setattr(installed, "folders", lambda: (environment(tmp_path / "running", grammar, 2),))
    if place != "running":
        wanted = environment(home / "data" / "texts" / "packages", grammar, 3)
    if place == "$TYING_TEXTS":
        monkeypatch.setenv("TYING_TEXTS", str(tmp_path / "texts"))
        wanted = environment(tmp_path / "texts" / "packages", grammar, 4)
    if place == "path":
        wanted = path = environment(tmp_path / "given", grammar, 5)
    corpus = store.load("packages", vocab_size=300, path=path)
    assert texts.documents("packages", path) == installed.read([wanted])[:2]
    count = {"path": 5, "data/texts": 3, "$TYING_TEXTS": 4, "running": 2}[place]
    assert len(corpus.fingerprint["packages"]) == count
    assert not any(str(tmp_path) in str(value) for value in corpus.fingerprint.values())


NOT_ENOUGH: dict[str, tuple[dict[str, dict[str, str | bytes]], str]] = {
    "missing": ({}, "0 distributions with 0 files to train on and 0 held out"),
    "empty": ({}, "0 distributions with 0 files"),
    "a file": ({}, "0 distributions with 0 files"),
    "one": ({"a": {"a.py": "a = 1\n"}}, "1 distributions with 1 files to train on and 0 held out"),
    "no Python": ({"a": {"a.py": "a = 1\n"}, "b": {"b.json": "{}"}}, "2 distributions with 1 files to train on and 0 held out"),
    "blank": ({"a": {"a.py": "a = 1\n"}, "b": {"b.py": "\n"}}, "2 distributions with 1 files to train on and 1 held out"),
    "all empty": ({"a": {"a.py": ""}, "b": {"b.py": ""}}, "2 distributions with 1 files to train on and 0 held out"),
    "copies": ({"a": {"a.py": "a = 1\n"}, "b": {"b.py": "a = 1\n"}}, "2 distributions with 1 files to train on and 0 held out"),
    "own": ({"a": {"a.py": "a = 1\n"}, "weight-tying": {"tying_utils/b.py": "b"}}, "1 distributions with 1 files"),
}


@pytest.mark.parametrize(("packages", "said"), NOT_ENOUGH.values(), ids=NOT_ENOUGH)
def test_too_few_packages_are_named(home, tmp_path, monkeypatch, request, packages, said):
    folder = tmp_path / "site"
    kind = request.node.callspec.id
    if kind == "a file":
        folder.write_text("no folder", encoding="utf-8")
    elif kind != "missing":
        folder.mkdir()
    for name, content in packages.items():
        install(folder, name, content)
    words = rf"'packages' needs two installed packages .* {re.escape(str(folder))} .*{said}.*; install more, or give path="
    with pytest.raises(ValueError, match=rf"^path: {words}"):
        store.load("packages", vocab_size=300, path=folder)
    with pytest.raises(ValueError, match=rf"^path: {words}"):
        texts.documents("packages", folder)
    monkeypatch.setattr(installed, "folders", lambda: (folder,))
    with pytest.raises(ValueError, match=rf"^name: {words}"):
        store.load("packages", vocab_size=300)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"vocab_size": 2048}, r"^vocab_size: the text supports \d+ tokens, fewer than 2048"),
        ({"vocab_size": 256}, "^vocab_size: an integer of at least 257"),
        ({"path": ""}, "^path: .* is needed, got ''"),
        ({"language": two_role.Settings()}, "^language: 'packages' is text and takes none"),
    ],
)
def test_bad_arguments_for_packages_are_named(home, tmp_path, grammar, arguments, said):
    with pytest.raises(ValueError, match=said):
        store.load("packages", **{"vocab_size": 300, "path": environment(tmp_path, grammar, 2), **arguments})


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_every_token_fits_its_dtype(home, text, monkeypatch, vocab_size, dtype):
    import tokenizers

    class Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    class Large:
        """Stands for a tokenizer with as many tokens as asked for, which takes much text to train."""

        pre_tokenizer = decoder = None

        def __init__(self, model: Any) -> None: ...

        def train_from_iterator(self, texts: Any, trainer: Any) -> None: ...

        def get_vocab_size(self) -> int:
            return vocab_size

        def token_to_id(self, token: str) -> int:
            return 0

        def save(self, path: str) -> None:
            Path(path).write_text("{}", encoding="utf-8")

        def encode_batch_fast(self, texts: list[str]) -> list[Encoding]:
            return [Encoding([1, vocab_size - 1]) for _ in texts]

    monkeypatch.setattr(tokenizers, "Tokenizer", Large)
    for _ in range(2):  # made, then read from the cache
        corpus = store.load("text", vocab_size=vocab_size, path=text)
        assert corpus.train.dtype == dtype
        assert np.asarray(corpus.train).tolist() == [1, vocab_size - 1, 0]


LANGUAGE = two_role.Settings(length=2000, seed=5)


def two_roles(**changes: Any) -> Corpus:
    return store.load("two-role", vocab_size=64, language=dataclasses.replace(LANGUAGE, **changes))


def test_two_role_tokens_are_samples_of_its_language(home):
    corpus, language = two_roles(), two_role.Language(64, LANGUAGE)
    assert (corpus.name, corpus.vocab_size) == ("two-role", 64)
    assert set(contents(corpus.folder)) == {"corpus.json", "tokenizer.json", "train.bin", "validation.bin"}
    for tokens, length in ((corpus.train, 2000), (corpus.validation, 100)):
        assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and len(tokens) == length
    assert np.array_equal(corpus.train, language.sample(2000, 0))
    assert np.array_equal(corpus.validation, language.sample(100, 1))
    assert corpus.counts.sum() == 2000
    assert corpus.windows("validation", 3, 33).shape == (3, 33)


def test_two_role_words_say_the_roles(home):
    corpus, language = two_roles(), two_role.Language(64, LANGUAGE)
    tokens = corpus.train[:20].tolist()
    words = corpus.tokenizer.decode(tokens)
    assert corpus.tokenizer.encode(words).ids == tokens
    assert corpus.tokenizer.get_vocab_size() == 64
    for token, word in zip(tokens, words.split(), strict=True):
        assert word == f"s{language.source[token]:02d}t{language.target[token]:02d}.{token:04d}"


def test_two_role_fingerprint_says_what_decides_the_tokens(home):
    fingerprint = two_roles().fingerprint
    assert re.fullmatch("[0-9a-f]{64}", fingerprint["sha256"])
    expected = {"name": "two-role", **LANGUAGE.as_dict(), "bytes": 4200, "vocab_size": 64}
    assert set(LANGUAGE.as_dict()) == {field.name for field in dataclasses.fields(LANGUAGE)} - {"permuted"}
    assert {name: value for name, value in fingerprint.items() if name != "sha256"} == expected
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert two_roles().fingerprint == fingerprint


def test_every_setting_is_in_the_two_role_fingerprint(home, monkeypatch):
    changes = {"classes": 8, "temperature": 1.0, "zipf": 0.5, "agreement": 1.0, "length": 2001, "seed": 6, "permuted": "source"}
    assert set(changes) == {field.name for field in dataclasses.fields(two_role.Settings)}
    found = [two_roles(), store.load("two-role", vocab_size=128, language=LANGUAGE)]
    found += [two_roles(**{name: value}) for name, value in changes.items()]
    monkeypatch.setattr(two_role, "FORMAT", two_role.FORMAT + 1)
    found.append(two_roles())
    assert len({corpus.folder for corpus in found}) == len({corpus.fingerprint["sha256"] for corpus in found}) == 10


def test_two_role_has_a_default_language(home):
    corpus = store.load("two-role", vocab_size=64)
    assert corpus.folder == store.load("two-role", vocab_size=64, language=two_role.Settings()).folder
    assert len(corpus.train) == two_role.Settings().length


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("two-role", {"path": "a/folder"}, r"^path: 'two-role' is generated"),
        ("two-role", {"language": {"seed": 1}}, r"^language: two_role.Settings or None is needed, got \{"),
        ("two-role", {"vocab_size": 300}, r"^vocab_size: 16 equal classes .* try 288 or 304 tokens"),
        ("two-role", {"vocab_size": 64.0}, r"^vocab_size: an integer"),
        ("python", {"language": LANGUAGE}, r"^language: 'python' is text and takes none, got Settings"),
        ("text", {"language": LANGUAGE, "path": "a/folder"}, r"^language: 'text' is text"),
    ],
)
def test_a_bad_language_is_named(home, name, arguments, said):
    with pytest.raises(ValueError, match=said):
        store.load(name, **{"vocab_size": 320, **arguments})
