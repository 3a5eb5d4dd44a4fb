"""A corpus by name: keyed by its content, in the tokens of another, the two-role language, arguments that cannot be."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from corpora_helpers import contents, decoded, refuse

from tying_utils.corpora import Corpus, bpe, store, two_role


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
        assert decoded(known, part) == decoded(own, part)
        assert "".join(decoded(corpus, part)) in file.read_text(encoding="utf-8")
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
    ("name", "vocab_size", "said"),
    [
        ("text", 301, "that of a text of 301 tokens is needed, .* got 300 tokens of 'python'"),
        ("two-role", 300, ".* for 'two-role'"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(text, python, name, vocab_size, said):
    others: dict[str, Any] = {"path": text} if name == "text" else {"language": two_role.Settings(classes=4)}
    with pytest.raises(ValueError, match=f"^vocabulary: {said}"):
        store.load(name, vocab_size=vocab_size, vocabulary=python, **others)


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
        *((name, {}, "name:.*python.*wikitext-103") for name in ("pile", "", "Python")),
        *(("text", {"path": "a/file", "vocab_size": v}, "vocab_size:") for v in (0, -1, 300.0, True, "300", None, 2**32)),
        *((name, {"path": "a/file", "vocab_size": 256}, "vocab_size: .*at least 257") for name in ("text", "packages")),
        ("text", {}, "path: .* is needed, got None"),
        ("packages", {"path": ""}, "path: .* is needed, got ''"),
        ("python", {"path": "a/file"}, "path:.*name='text'"),
        ("two-role", {"path": "a/folder"}, "path: 'two-role' is generated"),
        ("two-role", {"language": {"seed": 1}}, r"language: two_role.Settings or None is needed, got \{"),
        ("two-role", {"vocab_size": 300}, "vocab_size: 16 equal classes .* try 288 or 304 tokens"),
        ("two-role", {"vocab_size": 64.0}, "vocab_size: an integer"),
        ("python", {"language": LANGUAGE}, "language: 'python' is text and takes none, got Settings"),
        ("packages", {"language": LANGUAGE}, "language: 'packages' is text and takes none"),
        ("text", {"language": LANGUAGE, "path": "a/folder"}, "language: 'text' is text"),
    ],
)
def test_bad_arguments_are_named(home, name, arguments, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        store.load(name, **{"vocab_size": 320, **arguments})


@pytest.mark.parametrize("path", [5, b"x", ["x"], "x" * 300, "~nobody-of-that-name/x"])
@pytest.mark.parametrize("name", ["text", "shards", "packages", "wikitext-2", "python", "two-role"])
def test_what_can_be_no_path_is_named(home, name, path):
    with pytest.raises(ValueError, match="^path: "):
        store.load(name, vocab_size=300, path=path)


def test_a_vocabulary_that_is_no_corpus_is_named(home):
    with pytest.raises(ValueError, match="^vocabulary: a Corpus, as load returns it, or None is needed, got 5"):
        store.load("python", vocab_size=300, vocabulary=5)  # type: ignore[arg-type]
