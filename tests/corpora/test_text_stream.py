"""Documents from files, lists, URLs and the hub: each once, in order, and from any position on."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import LocalHub

from tying_utils.corpora.text_stream import Position, TextStream

DOCUMENTS = [f"Document {number}\r\n“naïve” {'ß' * number}\u2028\n\nends here" for number in range(12)]
pytestmark = pytest.mark.usefixtures("places_of_its_own")
PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def lines(documents: list[Any], **more: Any) -> bytes:
    rows = [{"id": number, "text": document, **more} for number, document in enumerate(documents)]
    return "".join(json.dumps(row, ensure_ascii=bool(number % 2)) + "\n" for number, row in enumerate(rows)).encode()


def write(file: Path, documents: list[Any]) -> str:
    """The documents in one file of the kind that its name says."""
    kind, packed = (file.suffixes[-2], file.suffix) if file.suffix in PACKED else (file.suffix, "")
    if kind == ".parquet":
        table = pa.table({"text": pa.array(documents, pa.string()), "id": list(range(len(documents)))})
        pq.write_table(table, file, row_group_size=5)
    else:
        (text,) = documents if kind == ".txt" else [None]
        file.write_bytes(PACKED[packed](lines(documents) if text is None else text.encode()))
    return str(file)


def read(stream: TextStream) -> list[str]:
    """Its documents; those after each position are read again from there."""
    found = list(stream.documents())
    for number, (_, position) in enumerate(found, 1):
        kept: Position = json.loads(json.dumps(position))
        assert [text for text, _ in stream.documents(kept)] == [text for text, _ in found[number:]]
    return [text for text, _ in found]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.jsonl.bz2", "a.json.xz", "a.parquet"])
def test_a_document_a_row(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tying_utils.corpora.text_stream._CHUNK", 50)
    monkeypatch.setattr("tying_utils.corpora.text_stream._ROWS", 3)
    assert read(TextStream([write(tmp_path / name, DOCUMENTS)])) == DOCUMENTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_a_document(tmp_path, name):
    files = [write(tmp_path / f"{number}{name}", [DOCUMENTS[number]]) for number in range(3)]
    assert read(TextStream(files)) == DOCUMENTS[:3]


def test_texts_are_read_in_their_order_and_patterns_by_name(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(["deep/b.json", "deep/er/a.json", "deep/a.txt", ".hidden.json", "z.parquet"]):
        write(tmp_path / name, DOCUMENTS[number : number + 1])
    remarks = f"# the first\n\n  {tmp_path}/z.parquet \n{tmp_path}/deep/**/*.json\r\n"
    (tmp_path / "list").write_text(remarks, encoding="utf-8")
    stream = TextStream([f"@{tmp_path}/list", f"{tmp_path}/deep/a.txt", f"{tmp_path}/z.parquet"])
    assert [Path(part).name for part in stream.parts] == ["z.parquet", "b.json", "a.json", "a.txt", "z.parquet"]
    assert read(stream) == [DOCUMENTS[number] for number in (4, 0, 1, 2, 4)]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (
            '{"text": "a", "meta": null, "id": 1}\n{"id": "2", "text": "b", "meta": {"url": "c"}}\n{"text": "c", "meta": 5}',
            "abc",
        ),
        ('\n{"text": "c"}\n\n   \n{"text": "d"}', "cd"),
        (r'{"text": "a \ud83d b \ud83d\ude00"}', ["a ? b \U0001f600"]),
    ],
    ids=["no common schema, as Dolma's", "blank lines", "half a surrogate pair"],
)
def test_odd_lines(tmp_path, content, documents):
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    assert read(TextStream([f"{tmp_path}/a.jsonl"])) == [*documents]


def test_what_is_empty_is_left_out(tmp_path):
    files = [write(tmp_path / name, ["", "a", None, "b", ""]) for name in ("a.jsonl", "b.parquet")]
    assert read(TextStream(files)) == [*"abab"]


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "c", "text": "t"}', encoding="utf-8")
    pq.write_table(pa.table({"text": ["t"], "content": ["d"]}), tmp_path / "b.parquet")
    assert read(TextStream([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.parquet"], column="content")) == ["c", "d"]


def test_a_dataset_on_the_hub_is_streamed(monkeypatch):
    asked = []

    def load(name: str, subset: str | None, **options: Any) -> Any:
        asked.append((name, subset, options))
        rows = {"text": [f"{name} {number}" for number in range(7)], "id": list(range(7))}
        return datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=3)

    monkeypatch.setattr("datasets.load_dataset", load)
    stream = TextStream(["allenai/c4", "org/web@v2"], split="validation", subset="en")
    assert [text for text, _ in stream.documents()] == [f"{name} {i}" for name in ("allenai/c4", "org/web") for i in range(7)]
    options = {"split": "validation", "streaming": True}
    assert asked == [("allenai/c4", "en", options | {"revision": None}), ("org/web", "en", options | {"revision": "v2"})]
    assert len(read(stream)) == 14


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"^text: at least one file, URL or dataset is needed, got \[\]"),
        ("no-such-file.jsonl", r"^text: '.*no-such-file.jsonl' is no file, pattern"),
        ("*.json", r"^text: '.*\*\.json' is no file, pattern"),
        ("", r"^text: '.*' is a folder; give a pattern of files, as '.*/\*\*/\*\.jsonl\.gz'"),
        ("a.csv", r"^text: '.*a\.csv' is of no known kind; give \.json, \.jsonl, \.txt, \.parquet"),
        ("https://example.org/a.tar", r"^text: 'https://example.org/a.tar' is of no known kind"),
        ("not an id/at all", r"^text: 'not an id/at all' is no file"),
        ("@no-list", r"^text: '.*no-list' is no list of paths and URLs"),
        ("@empty", r"^text: at least one"),
        ("@lists", r"^text: 'nothing.json' is no file"),
    ],
)
def test_a_text_that_is_none_is_named(tmp_path, given, said):
    (tmp_path / "a.csv").write_text("text\n", encoding="utf-8")
    (tmp_path / "empty").write_text("# nothing\n", encoding="utf-8")
    (tmp_path / "lists").write_text("nothing.json\n", encoding="utf-8")
    if isinstance(given, str):
        at = "@" if given.startswith("@") else ""
        given = [given if " " in given or "://" in given else f"{at}{tmp_path}/{given.removeprefix('@')}"]
    with pytest.raises(ValueError, match=said):
        TextStream(given)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"id": 1, "url": 2}\n', r"^column: .*a\.jsonl holds a row without 'text', only id, url"),
        ("a.jsonl", b'["a"]\n', r"^column: .*a\.jsonl holds a row without 'text', only \['a'\]"),
        ("a.jsonl", b'{"text": ["a"]}\n', r"^column: 'text' of .*a\.jsonl holds \['a'\], no text"),
        ("a.json", b'{\n "text": "a"\n}\n', r"^text: .*a\.json is not UTF-8, or not one JSON object a line"),
        ("a.json", '{"text": "café"}'.encode("latin-1"), r"^text: .*a\.json is not UTF-8"),
        ("a.txt", b"caf\xe9", r"^text: .*a\.txt is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(lines(DOCUMENTS))[:-9], r"^text: .*a\.jsonl\.gz cannot be read \(EOFError"),
        ("a.jsonl.gz", lines(DOCUMENTS), r"^text: .*a\.jsonl\.gz cannot be read \(BadGzipFile"),
        ("a.parquet", b"PAR1", r"^text: .*a\.parquet cannot be read \("),
    ],
)
def test_text_that_is_damaged_or_of_another_form_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(TextStream([f"{tmp_path}/{name}"]).documents())


def test_parquet_without_the_column_is_named(tmp_path):
    stream = TextStream([write(tmp_path / "a.parquet", DOCUMENTS)], column="content")
    with pytest.raises(ValueError, match=r"(?s)^text: .*a\.parquet cannot be read \(.*check it, its column 'content'"):
        list(stream.documents())


def test_what_the_hub_refuses_is_told(monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Dataset scripts are no longer supported, but found dolma.py")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match=r"^text: allenai/dolma cannot be read \(RuntimeError: Dataset scripts are no longer"):
        list(TextStream(["allenai/dolma"]).documents())


def test_a_list_of_urls_is_streamed(tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec[http] reads URLs")
    names = ["a.json.gz", "b.jsonl", "c.parquet", "d.txt"]
    for number, name in enumerate(names):
        write(tmp_path / name, DOCUMENTS[3 * number : 3 * number + (1 if name == "d.txt" else 3)])
    with LocalHub() as hub:
        hub.add("org/data", tmp_path)
        urls = [f"{hub.url}/org/data/resolve/main/{name}" for name in names]
        (tmp_path / "urls.txt").write_text("\n".join([*urls[:3], f"{urls[3]}?download=true"]), encoding="utf-8")
        assert read(TextStream([f"@{tmp_path}/urls.txt"])) == DOCUMENTS[:10]
        none = urls[1].replace("b.jsonl", "none.jsonl")
        with pytest.raises(ValueError, match=rf"^text: {none} cannot be read \(FileNotFoundError"):
            list(TextStream([none]).documents())
