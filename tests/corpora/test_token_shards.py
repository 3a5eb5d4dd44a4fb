"""A text prepared once into token files: the tokens of a text corpus, whatever is killed or damaged on the way."""

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
from corpora_helpers import FILES, SIZES, contents, load_shards, shard_tokens, sizes

from tying_utils import __main__ as command_line
from tying_utils.base import files
from tying_utils.corpora import bpe, store, texts, token_shards
from tying_utils.corpora.corpus import SEPARATOR, Shards
from tying_utils.corpora.text_stream import TextStream
from tying_utils.corpora.token_shards import prepare

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("places_of_its_own")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the token files, as they are written."""
    names, write = [], token_shards._write
    monkeypatch.setattr(token_shards, "_write", lambda folder, name, *rest: names.append(name) or write(folder, name, *rest))
    return names


def equal(a: Path, b: Path, dtype: str = "<u2") -> bool:
    return all(np.array_equal(one, other) for one, other in zip(shard_tokens(a, dtype), shard_tokens(b), strict=True))


def test_documents_are_whole_and_each_in_one_file(whole, documents):
    assert set(contents(whole)) == {"corpus.json", "tokenizer.json", *FILES}
    tokenizer = load_shards(whole).tokenizer
    read = []
    for number, part in enumerate(shard_tokens(whole)):
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
    for entry, name, part in zip(record["files"].values(), FILES, shard_tokens(whole), strict=True):
        assert (entry["sha256"], entry["tokens"]) == (files.digest(whole / name), len(part))
    assert sum(entry["documents"] for entry in record["files"].values()) == len(documents)
    assert record["tokens"] == {"train": sum(map(len, shard_tokens(whole)[1:])), "validation": len(shard_tokens(whole)[0])}
    assert record["tokenizer"] == files.digest(whole / "tokenizer.json")
    assert record["learned_on"] == {"documents": 90, "characters": sum(map(len, documents))}
    options = " --column text --split train --vocab-size 300 --shard-tokens 4500 --validation-tokens 1000"
    assert record["arguments"].endswith(options)


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
    shards = load_shards(tmp_path / "out")
    assert isinstance(shards.train, Shards) and np.array_equal(shards.train, text.train)
    assert np.array_equal(shards.validation, text.validation)
    assert np.array_equal(shards.counts, text.counts)
    assert np.array_equal(shards.windows("train", 40, 100), text.windows("train", 40, 100))
    assert shards.tokenizer.to_str() == text.tokenizer.to_str() and shards.separator == text.separator


def test_a_tokenizer_is_learned_on_the_head_of_the_stream(tmp_path, documents, source, monkeypatch):
    length = sum(map(len, documents[:60]))
    monkeypatch.setattr(token_shards, "LEARNED_ON", length - 5)
    record = prepare(tmp_path / "out", source, **SIZES)
    assert record["learned_on"] == {"documents": 60, "characters": length}
    bpe.learn(iter(documents[:60]), 300).save(str(tmp_path / "learned.json"))
    assert (tmp_path / "learned.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()


def test_training_tokens_are_as_many_as_asked_for(tmp_path, whole, source):
    record = prepare(tmp_path / "out", source, tokens=8000, **SIZES)
    parts, every = shard_tokens(tmp_path / "out"), np.concatenate(shard_tokens(whole))
    assert list(record["files"]) == FILES[:3] and 8000 <= record["tokens"]["train"] < 8000 + 300
    assert np.array_equal(np.concatenate(parts), every[: sum(map(len, parts))])


def test_large_vocabularies_take_four_bytes(tmp_path, whole, source):
    prepare(tmp_path / "out", source, tokenizer=whole, **sizes(vocab_size=2**16 + 1))
    corpus = load_shards(tmp_path / "out", 2**16 + 1)
    assert corpus.train.dtype == corpus.validation.dtype == np.uint32
    assert np.array_equal(corpus.train, load_shards(whole).train)
    assert equal(tmp_path / "out", whole, "<u4")


def test_a_given_tokenizer_neither_cuts_nor_pads_nor_begins_documents(tmp_path, whole, source):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(whole / "tokenizer.json"))
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=700)
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(tmp_path / "mine.json"))
    prepare(tmp_path / "out", source, tokenizer=tmp_path / "mine.json", **SIZES)
    assert equal(tmp_path / "out", whole)


@pytest.mark.parametrize("named", ["</s>", {"content": "</s>"}])
def test_documents_end_with_the_tokenizers_own_token(tmp_path, whole, source, named):
    text = (whole / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "</s>")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^tokenizer: .*own has no <\|endoftext\|> to end documents with"):
        prepare(tmp_path / "out", source, tokenizer=tmp_path / "own", **SIZES)
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps({"eos_token": named}), encoding="utf-8")
    prepare(tmp_path / "out", source, tokenizer=tmp_path / "own", **SIZES)
    assert load_shards(tmp_path / "out").separator == "</s>"
    assert equal(tmp_path / "out", whole)


@pytest.mark.parametrize("stop", range(1, 9))
def test_an_interrupted_preparation_ends_as_an_uninterrupted_one(tmp_path, whole, source, monkeypatch, written, stop):
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
    written.clear()
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
        load_shards(out)
    (finishing,) = re.findall("`tying-utils (.*)`", str(told.value))
    assert command_line.main(shlex.split(finishing)) == 0
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("before", [0, 3], ids=["the only one", "the last one"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_last_document_that_would_leave_nothing_is_cut(tmp_path, grammar, monkeypatch, kind, before):
    """As a text of one long line; whatever interrupts it, and read again where a file is damaged."""
    texts = [grammar(2, seed=seed) for seed in range(before)] + [grammar(500).replace("\n", " ")]
    for number, text in enumerate(texts):
        content = text if kind == "txt" else json.dumps({"text": text})
        (tmp_path / f"{number}.{kind}").write_text(content, encoding="utf-8")
    once, again = tmp_path / "once", tmp_path / "again"
    record = prepare(once, f"{tmp_path}/*.{kind}", **SIZES)
    corpus = load_shards(once)
    assert [len(part) for part in shard_tokens(once)] == [1000, record["tokens"]["train"]]
    tokens = np.concatenate(shard_tokens(once)).tolist()
    assert corpus.tokenizer.decode(tokens, skip_special_tokens=False) == "".join(text + SEPARATOR for text in texts)

    own = files.write_json
    for stop in range(1, 5):
        calls = []

        def stopping(path: Path, value: dict[str, Any], calls: list[Path] = calls, stop: int = stop) -> None:
            calls.append(path)
            if len(calls) == stop:
                raise KeyboardInterrupt
            own(path, value)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, "write_json", stopping)
            prepare(again / str(stop), f"{tmp_path}/*.{kind}", **SIZES)
        prepare(again / str(stop), f"{tmp_path}/*.{kind}", **SIZES)
        assert contents(again / str(stop)) == contents(once)

    kept = {name: (once / name).read_bytes() for name in FILES[:2]}
    for name in FILES[:2]:
        (once / name).write_bytes(b"damaged")
        with pytest.warns(UserWarning, match=name):
            prepare(once, f"{tmp_path}/*.{kind}", **SIZES)
        assert {name: (once / name).read_bytes() for name in FILES[:2]} == kept


def test_documents_are_cut_only_where_the_rest_is_needed(tmp_path, grammar):
    """Not where another follows, nor where the documents end with validation."""
    texts = [grammar(60), grammar(1)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    prepare(tmp_path / "two", f"{tmp_path}/*.txt", **SIZES)
    tokenizer = load_shards(tmp_path / "two").tokenizer
    own = [[*tokenizer.encode(text).ids, tokenizer.token_to_id(SEPARATOR)] for text in texts]
    assert [part.tolist() for part in shard_tokens(tmp_path / "two")] == own and len(own[0]) > 1000
    given = {"tokenizer": tmp_path / "two"}
    with pytest.raises(ValueError, match=f"^validation_tokens: {len(own[0])} take all of the text, which holds {len(own[0])} "):
        prepare(tmp_path / "one", f"{tmp_path}/0.txt", **sizes(validation_tokens=len(own[0]), **given))
    prepare(tmp_path / "fewer", f"{tmp_path}/0.txt", **sizes(validation_tokens=len(own[0]) - 1, **given))
    assert [part.tolist() for part in shard_tokens(tmp_path / "fewer")] == [own[0][:-1], own[0][-1:]]


def test_a_finished_text_is_kept_and_not_read_again(whole, source, monkeypatch):
    monkeypatch.setattr(TextStream, "documents", lambda *_: pytest.fail("it was read again"))
    before = contents(whole)
    prepare(whole, source, **SIZES)
    assert contents(whole) == before


def test_two_preparations_at_once_write_each_file_once(tmp_path, whole, source, written):
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
        said = rf"^text: it gives another {name} than when"
        with pytest.warns(UserWarning, match=name), pytest.raises(ValueError, match=said):
            prepare(out, str(file), **SIZES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard_tokens": 0}, r"^shard_tokens: an integer of at least 1 is needed, got 0"),
        ({"validation_tokens": 1.5}, r"^validation_tokens: an integer"),
        ({"tokens": 0}, r"^tokens: an integer of at least 1 is needed, got 0"),
        ({"vocab_size": 256}, r"^vocab_size: an integer of at least 257"),
        ({"vocab_size": 5000}, r"^vocab_size: the text supports \d+ tokens, fewer than 5000"),
        ({"text": "no-such.jsonl"}, r"^text: 'no-such.jsonl' is no file"),
        *(({"text": text}, r"^text: a string, or a sequence of them, is needed") for text in (None, 5, [5], b"x")),
        *(({name: 5}, rf"^{name}: a string is needed, got 5") for name in ("column", "split", "subset")),
        *(({"tokenizer": given}, r"^tokenizer: ") for given in (5, b"x", "x" * 300)),
        ({"column": "content"}, r"^column: .*a\.json\.gz holds a row without 'content', only text"),
        ({"tokenizer": "no such/folder"}, r"^tokenizer: 'no such/folder' is neither a folder nor a model id"),
        ({"tokenizer": "whole", "vocab_size": 299}, r"^vocab_size: .* has 300 tokens, more than 299; ask for 300"),
        ({"validation_tokens": 10**6}, r"^validation_tokens: 1000000 take all of the text, which holds \d+ tokens"),
    ],
)
def test_an_argument_that_cannot_be_is_named(tmp_path, whole, source, changes, said):
    changes = {name: whole if value == "whole" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "out", **{"text": source, **SIZES, **changes})


@pytest.mark.parametrize("out", ["", 5, None, "x" * 300, "a.txt"])
def test_an_out_that_is_no_folder_is_named(tmp_path, monkeypatch, source, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a text of its own")
    with pytest.raises(ValueError, match="^out: "):
        prepare(out, source, **SIZES)
    assert (tmp_path / "a.txt").read_text() == "a text of its own"


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
    counts = [f"{sum(map(len, parts)):,}" for parts in (shard_tokens(tmp_path / "out")[1:], shard_tokens(tmp_path / "out")[:1])]
    assert capsys.readouterr().out == f"{out}: {counts[0]} tokens in 2 shards, {counts[1]} for validation\n"
    for count in ("many", "1.5", "inf"):
        assert command_line.main(["prepare", "--out", out, "--text", source, "--tokens", count]) == 2
        assert capsys.readouterr().err.startswith("tying-utils: tokens: an integer of at least 1 is needed, got ")
