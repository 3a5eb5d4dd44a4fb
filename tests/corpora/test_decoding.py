"""Byte order marks say an encoding, and are in no document that is read: at the beginning, in the middle, in any reader."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora_helpers import contents, decoded, shard_tokens, write

from tying_utils.corpora import decoding, store, texts
from tying_utils.corpora.text_stream import TextStream
from tying_utils.corpora.token_shards import prepare

MARK = "\ufeff"
# Each says its encoding in its first bytes.
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
ORDERS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
pytestmark = pytest.mark.usefixtures("places_of_its_own")


def test_a_mark_says_the_encoding_and_goes():
    text = "naïve 𝒳\r\n日本\n"
    for name in ENCODINGS:
        assert decoding.decode(text.encode(name)) == text
    for name in ORDERS:
        assert decoding.decode((MARK + text).encode(name)) == text
        assert decoding.decode((MARK + text + MARK + MARK + text).encode(name)) == text + text, "two files, one marked twice"
    assert decoding.decode(f"{MARK}{text}{MARK}{text}".encode()) == text + text
    assert decoding.decode(b"") == decoding.decode(MARK.encode()) == decoding.decode(MARK.encode("utf-16-be")) == ""


@pytest.mark.parametrize(
    ("raw", "at"),
    [
        ((MARK + "ab").encode("utf-16-le") + (MARK + "c").encode("utf-16-be"), 6),
        ((MARK + "a𝒳").encode("utf-16-be") + (MARK + "c").encode("utf-16-le"), 8),
        ("ä".encode() + "c".encode("utf-16"), 2),
        ("a".encode("utf-16") + b"b", 4),
    ],
    ids=["little then big", "big then little", "UTF-8 then UTF-16", "half a character"],
)
def test_two_encodings_in_one_text_are_refused(tmp_path, raw, at):
    with pytest.raises(UnicodeDecodeError) as refused:
        decoding.decode(raw)
    assert refused.value.start == at
    write(tmp_path, {"a.txt": "text", "b.txt": raw})
    with pytest.raises(ValueError, match=rf"^path: .*b\.txt is not UTF-(8|16)[-LBE]* \(.* at byte {at}\); convert"):
        texts.documents("text", tmp_path)
    with pytest.raises(ValueError, match=rf"^text: .*b\.txt .*{refused.value.reason}"):
        list(TextStream([f"{tmp_path}/b.txt"]).documents())


def forms(grammar) -> dict[str, bytes]:
    """One text by the encoding and the marks that it has."""
    plain, lines = grammar(400), grammar(400).splitlines(keepends=True)
    halves = ["".join(lines[:200]), "".join(lines[200:])]
    by_encoding = {name: plain.encode(name) for name in ENCODINGS}
    return {**by_encoding, "two files": b"".join((MARK + half).encode() for half in halves)}


@pytest.mark.parametrize("name", ["text", "wikitext-2"])
def test_a_corpus_is_the_same_whatever_marks_its_files_have(home, tmp_path, grammar, name):
    held_out, found = grammar(90, seed=1), {}
    for form, raw in forms(grammar).items():
        folder = write(tmp_path / form, {"train.txt": raw, "valid.txt": MARK.encode() + held_out.encode()})
        found[form] = store.load(name, vocab_size=300, path=folder)
    assert len({corpus.folder for corpus in found.values()}) == 1, "one fingerprint, one cache"
    plain = found["utf-8"]
    assert (decoded(plain, "train"), decoded(plain, "validation")) == ([grammar(400)], [held_out])


def test_line_ends_are_those_of_plain_text(tmp_path):
    for name in ENCODINGS:
        write(tmp_path / name, {"a.txt": "a\r\nb\rc\n\r\n".encode(name), "b.txt": "b"})
        assert texts.documents("text", tmp_path / name)[0] == [("a.txt", "a\nb\nc\n\n")]


def test_a_file_of_marks_alone_is_empty(home, tmp_path):
    folder = write(tmp_path / "folder", {"train.txt": "text", "valid.txt": (MARK * 2).encode("utf-16")})
    with pytest.raises(ValueError, match="validation part .* is empty"):
        store.load("text", vocab_size=257, path=folder)


def test_the_standard_library_loses_the_mark_that_begins_a_file_alone(tmp_path):
    write(tmp_path, {"a.py": f"{MARK}mark = '{MARK}'\n"})
    assert texts._standard_library(tmp_path) == [("a.py", f"mark = '{MARK}'\n")]


def test_prepared_texts_are_the_same_whatever_marks_they_have(tmp_path, grammar):
    sizes = {"vocab_size": 300, "validation_tokens": 500, "progress": False}
    write(tmp_path, {"b.txt": grammar(90, seed=1)})
    kept = []
    for form, raw in forms(grammar).items():
        file = write(tmp_path / form, {"a.txt": raw, "a.txt.gz": gzip.compress(raw)})
        for name in ("a.txt", "a.txt.gz"):
            prepare(tmp_path / "out" / form / name, [f"{tmp_path}/b.txt", f"{file}/{name}"], **sizes)
            kept.append(contents(tmp_path / "out" / form / name))
    for name in ("validation.bin", "train-00000.bin", "tokenizer.json"):
        assert len({files[name] for files in kept}) == 1
    assert len(shard_tokens(tmp_path / "out" / "utf-16" / "a.txt")) == 2


@pytest.mark.parametrize("encoding", [*ENCODINGS, "two files"])
def test_marks_of_rows_go(tmp_path, monkeypatch, encoding):
    """Of a JSON file, of two put together, and of a document within a row."""
    monkeypatch.setattr("tying_utils.corpora.text_stream._CHUNK", 50)
    documents = ["ä" * number + "\U0001d4b3 text" for number in range(9)]
    marked = (MARK * (number % 3) + text for number, text in enumerate(documents))
    rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in marked]
    if encoding == "two files":
        rows = [MARK, *rows[:4], MARK, *rows[4:], MARK, "\n"]
    name = "utf-8" if encoding == "two files" else encoding
    file = write(tmp_path, {"a.jsonl": "".join(rows).encode(name)}) / "a.jsonl"
    stream = TextStream([str(file)])
    found = list(stream.documents())
    assert [text for text, _ in found] == documents
    assert [text for text, _ in stream.documents(found[3][1])] == documents[4:], "a position is that of a line"


def test_marks_in_columns_go(tmp_path):
    pq.write_table(pa.table({"text": [f"{MARK}a{MARK}b", MARK, "c"]}), tmp_path / "a.parquet")
    assert [text for text, _ in TextStream([f"{tmp_path}/a.parquet"]).documents()] == ["ab", "c"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_list_of_texts_may_have_a_mark(tmp_path, encoding):
    """As Windows' shells write what is redirected into a file."""
    write(tmp_path, {"ä.txt": "a", "b.txt": "b"})
    write(tmp_path, {"list": f"{tmp_path}/ä.txt\r\n# a remark\r\n{tmp_path}/b.txt\r\n".encode(encoding)})
    assert [Path(part).name for part in TextStream([f"@{tmp_path}/list"]).parts] == ["ä.txt", "b.txt"]
