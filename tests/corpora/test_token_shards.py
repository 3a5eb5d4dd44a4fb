"""A text prepared once into token files: the tokens of a text corpus, whatever is killed or damaged on the way."""

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils import __main__ as command_line
from tying_utils import training
from tying_utils.base import files
from tying_utils.corpora import bpe, corpus, store, texts, token_shards
from tying_utils.corpora.corpus import SEPARATOR, Corpus, Shards
from tying_utils.corpora.text_stream import TextStream
from tying_utils.corpora.token_shards import prepare
from tying_utils.study.plan import plan
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = ["validation.bin", *(f"train-{number:05d}.bin" for number in range(5))]
# Of the text below: five shards, the last one shorter.
SIZES: dict[str, Any] = {"vocab_size": 300, "shard_tokens": 4500, "validation_tokens": 1000, "progress": False}


def sizes(**changes: Any) -> dict[str, Any]:
    return {**SIZES, **changes}


@pytest.fixture(autouse=True)
def places_of_its_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def documents(grammar) -> list[str]:
    return [grammar(3 + number % 7, seed=number) for number in range(90)]


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The documents in two files."""
    folder = tmp_path_factory.mktemp("source")
    for name, part in (("a", documents[:50]), ("b", documents[50:])):
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in part)
    return f"{folder}/*.json.gz"


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text prepared without an interruption. Not to be written to."""
    folder = tmp_path_factory.mktemp("whole") / "shards"
    prepare(folder, source, **SIZES)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def load(folder: Path, vocab_size: int = 300) -> Corpus:
    return store.load("shards", vocab_size=vocab_size, path=folder)


def tokens(folder: Path, dtype: str = "<u2") -> list[np.ndarray]:
    """Of each file, read plainly."""
    return [
        np.frombuffer((folder / name).read_bytes(), dtype) for name in json.loads((folder / "corpus.json").read_text())["files"]
    ]


# What is written


def test_documents_are_whole_and_each_in_one_file(whole, documents):
    assert set(contents(whole)) == {"corpus.json", "tokenizer.json", *FILES}
    tokenizer = load(whole).tokenizer
    read = []
    for number, part in enumerate(tokens(whole)):
        ends = np.flatnonzero(part == tokenizer.token_to_id(SEPARATOR))
        assert ends[-1] == len(part) - 1
        wanted = 1000 if number == 0 else 4500
        assert len(part) >= wanted > ends[-2] or number == 5, "it ends with the document that fills it"
        pieces = [piece[:-1].tolist() for piece in np.split(part, ends + 1)[:-1]]
        read += tokenizer.decode_batch(pieces, skip_special_tokens=False)
    assert read == documents


def test_the_record_says_what_there_is(whole, documents):
    record = files.read_json(whole / "corpus.json")
    assert record is not None and record["finished"] is True
    assert list(record["files"]) == FILES and record["dtype"] == "uint16"
    for entry, name, part in zip(record["files"].values(), FILES, tokens(whole), strict=True):
        assert (entry["sha256"], entry["tokens"]) == (files.digest(whole / name), len(part))
    assert sum(entry["documents"] for entry in record["files"].values()) == len(documents)
    assert record["tokens"] == {"train": sum(map(len, tokens(whole)[1:])), "validation": len(tokens(whole)[0])}
    assert record["tokenizer"] == files.digest(whole / "tokenizer.json")
    assert record["learned_on"] == {"documents": 90, "characters": sum(map(len, documents))}
    assert record["arguments"].endswith(
        " --column text --split train --vocab-size 300 --shard-tokens 4500 --validation-tokens 1000"
    )


def test_the_tokens_are_those_of_a_text_corpus(tmp_path, documents):
    """The same documents, held out in the same way, with the text corpus's own tokenizer."""
    (tmp_path / "text").mkdir()
    for number, text in enumerate(documents):
        (tmp_path / "text" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    text = store.load("text", vocab_size=300, path=tmp_path / "text")
    train, validation = texts.documents("text", tmp_path / "text")
    order = [f"{tmp_path}/text/{name}" for name, _ in (*validation, *train)]
    held_out = len(text.validation)
    prepare(tmp_path / "out", order, tokenizer=text.folder / "tokenizer.json", **sizes(validation_tokens=held_out))
    shards = load(tmp_path / "out")
    assert isinstance(shards.train, Shards) and np.array_equal(shards.train, text.train)
    assert np.array_equal(shards.validation, text.validation)
    assert np.array_equal(shards.counts, text.counts)
    assert np.array_equal(shards.windows("train", 40, 100), text.windows("train", 40, 100))
    learned = shards.tokenizer.to_str(), text.tokenizer.to_str()
    assert learned[0] == learned[1] and shards.separator == text.separator


def test_a_tokenizer_is_learned_on_the_head_of_the_stream(tmp_path, documents, source, monkeypatch):
    length = sum(map(len, documents[:60]))
    monkeypatch.setattr(token_shards, "LEARNED_ON", length - 5)
    record = prepare(tmp_path / "out", source, **SIZES)
    assert record["learned_on"] == {"documents": 60, "characters": length}
    bpe.learn(iter(documents[:60]), 300).save(str(tmp_path / "learned.json"))
    assert (tmp_path / "learned.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_training_tokens_are_as_many_as_asked_for(tmp_path, whole, source):
    record = prepare(tmp_path / "out", source, tokens=8000, **SIZES)
    parts, every = tokens(tmp_path / "out"), np.concatenate(tokens(whole))
    assert list(record["files"]) == FILES[:3] and 8000 <= record["tokens"]["train"] < 8000 + 300
    assert np.array_equal(np.concatenate(parts), every[: sum(map(len, parts))])


def test_large_vocabularies_take_four_bytes(tmp_path, whole, source):
    prepare(tmp_path / "out", source, tokenizer=whole, **sizes(vocab_size=2**16 + 1))
    corpus = load(tmp_path / "out", 2**16 + 1)
    assert corpus.train.dtype == corpus.validation.dtype == np.uint32
    assert np.array_equal(corpus.train, load(whole).train)
    assert all(np.array_equal(a, b) for a, b in zip(tokens(tmp_path / "out", "<u4"), tokens(whole), strict=True))


def test_a_given_tokenizer_neither_cuts_nor_pads_nor_begins_documents(tmp_path, whole, source):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(whole / "tokenizer.json"))
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=700)
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(tmp_path / "mine.json"))
    prepare(tmp_path / "out", source, tokenizer=tmp_path / "mine.json", **SIZES)
    assert all(np.array_equal(a, b) for a, b in zip(tokens(tmp_path / "out"), tokens(whole), strict=True))


@pytest.mark.parametrize("named", ["</s>", {"content": "</s>"}])
def test_documents_end_with_the_tokenizers_own_token(tmp_path, whole, source, named):
    text = (whole / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "</s>")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^tokenizer: .*own has no <\|endoftext\|> to end documents with"):
        prepare(tmp_path / "out", source, tokenizer=tmp_path / "own", **SIZES)
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}), encoding="utf-8")
    prepare(tmp_path / "out", source, tokenizer=tmp_path / "own", **SIZES)
    assert load(tmp_path / "out").separator == "</s>"
    assert all(np.array_equal(a, b) for a, b in zip(tokens(tmp_path / "out"), tokens(whole), strict=True))


# Killed, damaged, at once


@pytest.mark.parametrize("stop", range(1, 9))
def test_an_interrupted_preparation_ends_as_an_uninterrupted_one(tmp_path, whole, source, monkeypatch, stop):
    """Before each of the files is in the record: the tokenizer, six token files, the end."""
    own, calls = files.write_json, []

    def stopping(path: Path, value: dict[str, Any]) -> None:
        calls.append(path)
        if len(calls) == stop:
            raise KeyboardInterrupt
        own(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "out", source, **SIZES)
    written = []
    write = token_shards._write
    monkeypatch.setattr(token_shards, "_write", lambda folder, name, *rest: written.append(name) or write(folder, name, *rest))
    prepare(tmp_path / "out", source, **SIZES)
    assert written == FILES[max(0, stop - 2) :]
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_preparation_ends_as_an_uninterrupted_one(tmp_path, whole, source):
    """Killed in the middle of a shard, whose half is swept away."""
    slow = (
        "import sys, time\n"
        "from tying_utils import __main__\nfrom tying_utils.corpora import token_shards; own = token_shards._encoded\n"
        "def slowly(*arguments):\n"
        "    for encoded in own(*arguments):\n"
        "        time.sleep(0.02)\n"
        "        yield encoded\n"
        "token_shards._encoded = slowly; sys.exit(__main__.main())"
    )
    options = ["--vocab-size", "300", "--shard-tokens", "4.5e3", "--validation-tokens", "1_000"]
    out = tmp_path / "out"
    command = [sys.executable, "-c", slow, "prepare", "--out", str(out), "--text", source, *options]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as child:
        while not (out / FILES[2]).exists() or not list(out.glob(".train*.tmp")):
            assert child.poll() is None and child.stderr is not None, "it ended before its second shard"
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    record = files.read_json(out / "corpus.json")
    assert record is not None and not record["finished"] and list(record["files"]) == FILES[:3]
    assert list(out.glob(".*.tmp"))
    with pytest.raises(ValueError, match=r"^path: the text in .* is not prepared to its end; `tying-utils prepare") as told:
        load(out)
    (finishing,) = re.findall("`tying-utils (.*)`", str(told.value))
    assert command_line.main(shlex.split(finishing)) == 0
    assert contents(out) == contents(whole)


def test_a_finished_text_is_kept_and_not_read_again(whole, source, monkeypatch):
    monkeypatch.setattr(TextStream, "documents", lambda *_: pytest.fail("it was read again"))
    before = contents(whole)
    prepare(whole, source, **SIZES)
    assert contents(whole) == before


def test_two_preparations_at_once_write_each_file_once(tmp_path, whole, source, monkeypatch):
    written, write = [], token_shards._write
    monkeypatch.setattr(token_shards, "_write", lambda folder, name, *rest: written.append(name) or write(folder, name, *rest))
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(lambda _: prepare(tmp_path / "out", source, **SIZES), range(2)))
    assert records[0] == records[1] and written == FILES
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("name", ["tokenizer.json", FILES[2]])
def test_a_source_that_has_changed_is_not_mixed_in(tmp_path, documents, name):
    file, out = tmp_path / "a.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    prepare(out, str(file), **SIZES)
    file.write_text("".join(json.dumps({"text": f"no {text}"}) + "\n" for text in documents), encoding="utf-8")
    (out / name).unlink()
    for _ in range(2):
        with (
            pytest.warns(UserWarning, match=name),
            pytest.raises(ValueError, match=rf"^text: it gives another {name} than when"),
        ):
            prepare(out, str(file), **SIZES)


# What is asked for


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard_tokens": 0}, r"^shard_tokens: an integer of at least 1 is needed, got 0"),
        ({"validation_tokens": 1.5}, r"^validation_tokens: an integer"),
        ({"tokens": 0}, r"^tokens: an integer of at least 1 is needed, got 0"),
        ({"vocab_size": 256}, r"^vocab_size: an integer of at least 257"),
        ({"vocab_size": 5000}, r"^vocab_size: the text supports \d+ tokens, fewer than 5000"),
        ({"text": "no-such.jsonl"}, r"^text: 'no-such.jsonl' is no file"),
        ({"column": "content"}, r"^column: .*a\.json\.gz holds a row without 'content', only text"),
        ({"tokenizer": "no such/folder"}, r"^tokenizer: 'no such/folder' is neither a folder nor a model id"),
        ({"validation_tokens": 10**6}, r"^validation_tokens: 1000000 take all of the text, which holds \d+ tokens"),
    ],
)
def test_an_argument_that_cannot_be_is_named(tmp_path, source, changes, said):
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "out", **{"text": source, **SIZES, **changes})


def test_a_tokenizer_larger_than_the_vocabulary_is_named(tmp_path, whole, source):
    with pytest.raises(ValueError, match=r"^vocab_size: .* has 300 tokens, more than 299; ask for 300"):
        prepare(tmp_path / "out", source, tokenizer=whole, **sizes(vocab_size=299))


def test_a_folder_begun_otherwise_is_not_gone_on_with(tmp_path, whole, source, documents):
    before = contents(whole)
    with pytest.raises(ValueError, match=r"^out: .* was begun with .*--shard-tokens 4500 .*, now it is .*--shard-tokens 4000 "):
        prepare(whole, source, **sizes(shard_tokens=4000))
    assert contents(whole) == before
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(documents), encoding="utf-8")
        said = r"^text: it names other files than when .* was begun"
        with pytest.raises(ValueError, match=said if name == "b" else "take all of the text"):
            prepare(tmp_path / "out", f"{tmp_path}/*.txt", **sizes(validation_tokens=10**6))


def test_the_command_prints_what_it_made(tmp_path, whole, source, capsys):
    options = ["--vocab-size", "300", "--tokens", "8e3", "--shard-tokens", "4_500", "--validation-tokens", "1000"]
    out = str(tmp_path / "out")
    assert command_line.main(["prepare", "--out", out, "--text", source, *options]) == 0
    counts = [f"{sum(map(len, parts)):,}" for parts in (tokens(tmp_path / "out")[1:], tokens(tmp_path / "out")[:1])]
    assert capsys.readouterr().out == f"{out}: {counts[0]} tokens in 2 shards, {counts[1]} for validation\n"
    for count in ("many", "1.5", "inf"):
        assert command_line.main(["prepare", "--out", out, "--text", source, "--tokens", count]) == 2
        assert capsys.readouterr().err.startswith("tying-utils: tokens: an integer of at least 1 is needed, got ")


# The corpus


@given(parts=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6), data=st.data())
def test_shards_read_as_one_array(parts, data):
    arrays = [np.array(part, np.uint16) for part in parts]
    one, shards = np.concatenate(arrays), Shards(arrays)
    assert len(shards) == len(one) and shards.dtype == one.dtype
    bound = st.none() | st.integers(-len(one) - 3, len(one) + 3)
    at = slice(data.draw(bound), data.draw(bound))
    assert shards[at].dtype == one.dtype and shards[at].tolist() == one[at].tolist()
    assert np.asarray(shards).tolist() == one.tolist()
    for index in range(-len(one), len(one)):
        assert shards[index] == one[index]
    for beyond in (len(one), -len(one) - 1):
        with pytest.raises(IndexError):
            shards[beyond]
    with pytest.raises(ValueError, match=r"^step: .* got 2"):
        shards[::2]


def test_shards_are_mapped_not_read(whole):
    corpus = load(whole)
    assert isinstance(corpus.train, Shards) and all(isinstance(part, np.memmap) for part in corpus.train._parts)
    assert isinstance(corpus.validation, np.memmap) and not corpus.validation.flags.writeable
    assert corpus.train.dtype == corpus.validation.dtype == np.uint16
    assert np.array_equal(corpus.train, np.concatenate(tokens(whole)[1:]))


def test_counts_are_taken_piece_by_piece(whole, monkeypatch):
    monkeypatch.setattr(corpus, "_COUNTED", 777)
    counts = load(whole).counts
    assert (
        counts.dtype == np.int64 and counts.tolist() == np.bincount(np.concatenate(tokens(whole)[1:]), minlength=300).tolist()
    )


def test_the_fingerprint_is_of_the_tokens_not_of_their_place(tmp_path, whole, source):
    fingerprint = load(whole).fingerprint
    assert set(fingerprint) == {"name", "tokens", "sha256", "vocab_size"}
    assert (fingerprint["name"], fingerprint["vocab_size"]) == ("shards", 300)
    assert fingerprint["tokens"] == len(load(whole).train)
    prepare(tmp_path / "there", source, **SIZES)
    assert load(tmp_path / "there").fingerprint == fingerprint
    here, there = (TrainConfig(corpus="shards", path=str(path), vocab_size=300) for path in (whole, tmp_path / "there"))
    assert run_store.run_key(here, fingerprint) == run_store.run_key(there, fingerprint)
    prepare(tmp_path / "fewer", source, tokens=8000, **SIZES)
    assert load(tmp_path / "fewer").fingerprint["sha256"] != fingerprint["sha256"]


def test_checksums_are_verified_once_and_after_a_change(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    prepare(out, source, **SIZES)
    read, digest = [], files.digest

    def counting(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(files, "digest", counting)
    for expected in (FILES, []):
        load(out)
        assert [name for name in read if name != "tokenizer.json"] == expected
        read.clear()
    os.utime(out / FILES[3], ns=(0, 0))
    load(out)
    assert [name for name in read if name != "tokenizer.json"] == [FILES[3]]
    content = (out / FILES[3]).read_bytes()
    (out / FILES[3]).write_bytes(content[:-1] + b"\xff")
    with pytest.raises(
        ValueError, match=rf"^path: {FILES[3]} in .*out: missing or not as corpus.json says; `tying-utils prepare"
    ):
        load(out)


def test_a_folder_that_does_not_serve_is_named_with_the_command(tmp_path, whole, text):
    with pytest.raises(
        ValueError, match=r"^path: .*none holds no prepared text.*`tying-utils prepare --out .*none --text SOURCE"
    ):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"^path: .* holds no prepared text"):
        load(store.load("text", vocab_size=300, path=text).folder)
    with pytest.raises(ValueError, match=r"^vocab_size: .* was prepared for 300 tokens, got 301; ask for 300"):
        load(whole, 301)
    for path in (None, ""):
        with pytest.raises(ValueError, match=r"^path: the folder that `tying-utils prepare` wrote is needed, got"):
            store.load("shards", vocab_size=300, path=path)
    with pytest.raises(ValueError, match=r"^name: 'shards' is no text"):
        texts.documents("shards", whole)


def test_shards_are_read_in_the_tokens_that_they_were_prepared_with(whole, source, text, tmp_path):
    other = store.load("text", vocab_size=300, path=text)
    with pytest.raises(ValueError, match=r"^vocabulary: the shards in .* are no tokens of 'text'; prepare them with `--tok"):
        store.load("shards", vocab_size=300, path=whole, vocabulary=other)
    assert store.load("shards", vocab_size=300, path=whole, vocabulary=load(whole)).fingerprint == load(whole).fingerprint
    prepare(tmp_path / "known", source, **sizes(tokenizer=other.folder / "tokenizer.json"))
    known = store.load("shards", vocab_size=300, path=tmp_path / "known", vocabulary=other)
    assert known.fingerprint["vocabulary"] == other.fingerprint
    assert known.fingerprint["sha256"] != load(tmp_path / "known").fingerprint["sha256"]


# Training


def test_a_run_on_shards_resumes_to_the_same_bytes(whole, tiny, tmp_path, monkeypatch, interrupted):
    config: TrainConfig = tiny(corpus="shards", path=str(whole), steps=12)
    assert plan(config, probe_steps=1).fits
    interrupted(config, 7)
    run = training.train(config, progress=False)
    monkeypatch.setenv("TYING_HOME", str(tmp_path / "other"))
    plain = training.train(config, progress=False)
    assert plain.folder != run.folder and plain.record["files"] == run.record["files"]
    assert run.fingerprint == load(whole).fingerprint


def test_a_run_is_the_same_in_one_shard_and_in_many(whole, source, tiny, tmp_path):
    prepare(tmp_path / "one", source, **sizes(shard_tokens=10**6))
    assert isinstance(load(tmp_path / "one").train, np.memmap)
    runs = [training.train(tiny(corpus="shards", path=str(path)), progress=False) for path in (whole, tmp_path / "one")]
    assert runs[0].record["files"] == runs[1].record["files"] and runs[0].key != runs[1].key
