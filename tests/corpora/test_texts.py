"""The text of each name, and what is held out of it."""

import json
import os
import re
import shutil
import sys
import sysconfig
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_helpers import decoded, environment, install, refuse, write

from tying_utils.corpora import bpe, installed, store, texts

NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    """The standard library's own source, found another way."""
    root = sysconfig.get_paths()["stdlib"]
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_THE_LIBRARY]
        for file in (Path(folder, name) for name in names if name.endswith(".py")):
            with suppress(UnicodeDecodeError):
                found[file.relative_to(root).as_posix()] = file.read_text(encoding="utf-8")
    return found


def test_python_is_the_whole_standard_library_each_file_in_one_part(python, library):
    assert {"os.py", "json/decoder.py"} <= set(library)
    train, validation = decoded(python, "train"), decoded(python, "validation")
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


def test_a_file_is_split_by_lines(home, text):
    corpus = store.load("text", vocab_size=300, path=text)
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    assert decoded(corpus, "train") == ["".join(lines[:-40])]
    assert decoded(corpus, "validation") == ["".join(lines[-40:])]
    assert corpus.fingerprint["files"] == 2
    assert corpus.fingerprint["bytes"] == text.stat().st_size


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("", "\n"), ("\n \n", ""), ("", "\n\n"), ("", " " * 300_000), ("\u2028", "\r\n")],
    ids=["bare", "ended", "after blank lines", "before a blank line", "before blanks", "other line ends"],
)
def test_one_long_line_is_cut_by_size(home, tmp_path, grammar, before, after):
    line = "".join(grammar(4600)).replace("\n", " ").rstrip()
    assert len(line) > 264_000
    folder = write(tmp_path, {"line.txt": before + line + after})
    ((_, train),), ((_, validation),) = first = texts.documents("text", folder / "line.txt")
    assert train + validation == before + line + after.replace("\r\n", "\n"), "apart, and nothing lost"
    assert len(validation.strip()) == pytest.approx(len(line) // 20, abs=1)
    assert texts.documents("text", folder) == first
    corpus = store.load("text", vocab_size=300, path=folder)
    assert (decoded(corpus, "train"), decoded(corpus, "validation")) == ([train], [validation])
    assert corpus.windows("validation", 8, 64).shape == (8, 64)


def test_blank_files_are_no_part(tmp_path, grammar):
    """Of what is left, whole files are held out, then lines, then characters."""
    several = write(tmp_path / "several", {"a.txt": grammar(3), "b.txt": grammar(2), "c.txt": "\n", "d.txt": ""})
    assert texts.documents("text", several) == ([("a.txt", grammar(3))], [("b.txt", grammar(2))])
    one = write(tmp_path / "one", {"a.txt": "\n", "b.txt": grammar(40)})
    lines = grammar(40).splitlines(keepends=True)
    assert texts.documents("text", one) == ([("b.txt", "".join(lines[:38]))], [("b.txt", "".join(lines[38:]))])
    line = write(tmp_path / "line", {"a.txt": "", "train.txt": "x" * 99})
    assert texts.documents("text", line) == ([("train.txt", "x" * 95)], [("train.txt", "x" * 4)])


@pytest.mark.parametrize("content", ["a\nb", "a" * 5000 + "\n" + "b", "a\n" * 19 + "b", "\n\na\n\nb\n"])
def test_lines_are_not_cut_where_they_do(tmp_path, content):
    """However unequal: a corpus that could be loaded keeps its parts."""
    ((_, train),), ((_, validation),) = texts.documents("text", write(tmp_path, {"a.txt": content}) / "a.txt")
    assert (train + validation, validation.strip()) == (content, "b")


def test_a_folder_is_split_by_whole_files(home, tmp_path, grammar):
    texts = {f"{i:02d}/part.{'txt' if i % 2 else 'md'}": grammar(12, seed=i) for i in range(41)}
    folder = write(tmp_path / "folder", texts)
    write(folder, {".hidden": "no", ".git/config.txt": "no", "07/.cache/x.txt": "no"})
    corpus = store.load("text", vocab_size=300, path=str(folder))
    ordered = list(texts.values())
    assert decoded(corpus, "validation") == [ordered[19], ordered[39]]
    assert decoded(corpus, "train") == [text for i, text in enumerate(ordered) if i not in (19, 39)]


def test_the_last_of_few_files_is_held_out(home, tmp_path, grammar):
    folder = write(tmp_path / "folder", {f"{i}.txt": grammar(60, seed=i) for i in range(3)})
    assert decoded(store.load("text", vocab_size=300, path=folder), "validation") == [grammar(60, seed=2)]


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
    assert decoded(corpus, "train") == [texts[train]]
    assert decoded(corpus, "validation") == [texts[validation]]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "does not exist"),
        ({}, "holds no file"),
        ({".hidden.txt": b"text"}, "holds no file"),
        ({"train.txt": b"", "valid.txt": b"text"}, "training part .* is empty"),
        ({"train.txt": b"text", "valid.txt": b" \n"}, "validation part .* is empty"),
        ({"a.txt": b"", "b.txt": b" \n"}, "training part .* is empty"),
        ({"a.txt": b" t\n", "b.txt": b" \n"}, "part .* is empty"),
        ({"a.txt": b"text", "b.txt": b"caf\xe9"}, r"b\.txt is not UTF-8"),
    ],
    ids=["missing", "empty folder", "hidden", "empty training", "empty validation", "empty", "one character", "Latin-1"],
)
def test_a_bad_text_is_named(home, tmp_path, files, said):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        write(folder, files)
    with pytest.raises(ValueError, match=rf"^path:.*{said}"):
        store.load("text", vocab_size=300, path=folder)


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext_without_a_network_advises_a_folder(home, monkeypatch, name):
    def offline(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    place = re.escape(str(home / "data" / "texts" / name))
    with pytest.raises(ValueError, match=rf"^name: '{name}'.*ConnectionError.*path=, a folder.* at {place} \(\$TYING_TEXTS"):
        store.load(name, vocab_size=300)


@pytest.mark.parametrize("place", ["data/texts", "$TYING_TEXTS"])
def test_wikitext_is_read_from_a_folder_of_its_name(home, tmp_path, monkeypatch, grammar, place):
    """And keyed by its content: wherever it lies, the fingerprint and the cache are the same."""
    monkeypatch.setattr("datasets.load_dataset", refuse)
    texts = home / "data" / "texts"
    if place == "$TYING_TEXTS":
        texts = tmp_path / "elsewhere" / ".hidden"
        monkeypatch.setenv("TYING_TEXTS", str(texts))
    parts = {"wiki.valid.raw": grammar(90), "wiki.test.raw": grammar(40, seed=1)}
    folder = write(texts / "wikitext-2", parts)
    corpus = store.load("wikitext-2", vocab_size=300)
    assert corpus.name == "wikitext-2"
    assert decoded(corpus, "train") == [parts["wiki.valid.raw"]]
    assert decoded(corpus, "validation") == [parts["wiki.test.raw"]]
    assert not any(str(tmp_path) in str(value) for value in corpus.fingerprint.values())
    monkeypatch.setattr(bpe, "tokenise", refuse)
    moved = folder.rename(tmp_path / "moved")
    again = store.load("wikitext-2", vocab_size=300, path=moved)
    assert (again.fingerprint, again.folder) == (corpus.fingerprint, corpus.folder)


def test_a_path_goes_before_the_folder_of_local_texts(home, tmp_path, monkeypatch, grammar):
    monkeypatch.setenv("TYING_TEXTS", str(tmp_path))
    write(tmp_path / "wikitext-2", {"train.txt": "not this", "valid.txt": "nor this"})
    given = write(tmp_path / "given", {"train.txt": grammar(90), "valid.txt": grammar(20)})
    assert decoded(store.load("wikitext-2", vocab_size=300, path=given), "train") == [grammar(90)]


def test_wikitext_through_datasets(home, monkeypatch, grammar):
    asked = []

    def fetch(*arguments: str) -> dict[str, dict[str, list[str]]]:
        asked.append(arguments)
        parts = {"train": 80, "validation": 20, "test": 20}
        return {part: {"text": grammar(n, seed=n).splitlines(keepends=True)} for part, n in parts.items()}

    monkeypatch.setattr("datasets.load_dataset", fetch)
    corpus = store.load("wikitext-2", vocab_size=300)
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    assert decoded(corpus, "train") == [grammar(80, seed=80)]
    assert decoded(corpus, "validation") == [grammar(20, seed=20)]


def test_packages_are_read_from_a_folder_whole_packages_in_one_part(home, tmp_path, grammar):
    folder = environment(tmp_path / "site", grammar)
    corpus = store.load("packages", vocab_size=300, path=folder)
    train, validation, facts = installed.read([folder])
    assert facts["held_out"] and len(train) + len(validation) == 75
    assert texts.documents("packages", folder) == (train, validation)
    assert decoded(corpus, "train") == [text for _, text in train]
    assert decoded(corpus, "validation") == [text for _, text in validation]
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
    expected = {
        "name": "packages",
        "packages": {"one": "1.2", "two": "3"},
        "held_out": ["two"],
        "left_out": {"a copy": 2, "not UTF-8": 1},
        "files": 5,
        "bytes": 909,
        "sha256": "604ea04650b5f3ec085bf6aafcb0ed5bc7268f417e4127c26d6361a4bcfe6e95",
        "vocab_size": 258,
    }
    assert json.loads(json.dumps(fingerprint)) == fingerprint == expected


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
    wanted, count, path = environment(tmp_path / "running", grammar, 2), 2, None
    monkeypatch.setattr(installed, "folders", lambda: (tmp_path / "running",))
    if place != "running":
        wanted, count = environment(home / "data" / "texts" / "packages", grammar, 3), 3
    if place == "$TYING_TEXTS":
        monkeypatch.setenv("TYING_TEXTS", str(tmp_path / "texts"))
        wanted, count = environment(tmp_path / "texts" / "packages", grammar, 4), 4
    if place == "path":
        wanted = path = environment(tmp_path / "given", grammar, 5)
        count = 5
    corpus = store.load("packages", vocab_size=300, path=path)
    assert texts.documents("packages", path) == installed.read([wanted])[:2]
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
    for read in (lambda: store.load("packages", vocab_size=300, path=folder), lambda: texts.documents("packages", folder)):
        with pytest.raises(ValueError, match=rf"^path: {words}"):
            read()
    monkeypatch.setattr(installed, "folders", lambda: (folder,))
    with pytest.raises(ValueError, match=rf"^name: {words}"):
        store.load("packages", vocab_size=300)
