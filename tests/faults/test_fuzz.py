"""Readers given what nobody would write: whatever comes, it is read or refused in words, and nothing else happens.

Inputs are mutations of valid ones, which get further than noise does: bits, bytes, pieces and numbers changed, moved, repeated
and left out. The same seed gives the same inputs; a failing one is printed whole.
"""

import contextlib
import gzip
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tying_utils import __main__ as command
from tying_utils.base import files
from tying_utils.base.hub import Hub
from tying_utils.corpora import store, texts, vocabulary
from tying_utils.corpora.text_stream import TextStream
from tying_utils.models import checkpoints
from tying_utils.training.config import TrainConfig

NUMBERS = (b"0", b"-1", b"1", b"2", b"1e308", b"-0.0", b"NaN", b"Infinity", b"4294967296", b"18446744073709551615", b"9" * 30)
PIECES = (b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"\xff", b"\0", b"[" * 50, b'{"a":' * 20, b'"F32"', b'"dtype":')


def long_form(short: int, long: int) -> Any:
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.slow)])


def mutated(draw: random.Random, content: bytes) -> bytes:
    """`content` with one to four changes."""
    held = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        size = len(held)
        at, to = sorted((draw.randrange(size + 1), min(size, draw.randrange(size + 1))))
        kind = draw.randrange(8)
        if kind == 0 and size:
            held[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            held[at:to] = b""
        elif kind == 2:
            held[at:at] = held[at : min(to, at + 64)]
        elif kind == 3:
            held[at:at] = draw.choice(PIECES)
        elif kind == 4:
            held[at : at + 1] = draw.randbytes(draw.randrange(4))
        elif kind == 5:
            held = held[:at]
        else:  # a number for a number
            digits = [i for i in range(size) if held[i : i + 1].isdigit() and not held[max(0, i - 1) : i].isdigit()]
            if digits:
                first = last = draw.choice(digits)
                while last < len(held) and held[last : last + 1].isdigit():
                    last += 1
                held[first:last] = draw.choice(NUMBERS)
    return bytes(held)


@contextlib.contextmanager
def clean(given: object) -> Iterator[None]:
    """Any ValueError with words is a refusal; whatever else is raised is an error, told with what brought it about."""
    try:
        yield
    except ValueError as error:
        assert str(error), "a refusal says why"
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\nof {given!r}") from error


# The header of a safetensors file


def checkpoint(folder: Path, *, tied: bool) -> bytes:
    tensors = {"model.embed_tokens.weight": torch.arange(12.0).view(6, 2), "model.norm.weight": torch.ones(2)}
    if not tied:
        tensors["lm_head.weight"] = torch.arange(12.0).view(6, 2).bfloat16().float() + 1
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 6, "architectures": ["LlamaForCausalLM"]}))
    content = save(tensors, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)
    return content


@long_form(3_000, 100_000)
def test_a_safetensors_file_of_any_content_is_read_or_refused(tmp_path, count, tally):
    draw = random.Random(count)
    contents = {tied: checkpoint(tmp_path / str(tied), tied=tied) for tied in (True, False)}
    read = 0
    for number in range(count):
        tied = number % 2 == 0
        folder, content = tmp_path / str(tied), contents[tied]
        length = struct.unpack("<Q", content[:8])[0]
        if draw.random() < 0.7:  # a header of the length that it says
            header = mutated(draw, content[8 : 8 + length])
            content = struct.pack("<Q", len(header)) + header + content[8 + length :]
        else:
            content = mutated(draw, content)
        (folder / "model.safetensors").write_bytes(content)
        with clean(content):
            tables = checkpoints.read_tables(folder)
            assert tables.input.shape[0] == tables.output.shape[0] == 6 and tables.input.element_size() in (2, 4)
            read += 1
    assert 0 < read < count, "some are read, some refused"
    tally["inputs to the safetensors header"] += count


@settings(max_examples=200)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_noise_is_no_safetensors_file(tmp_path_factory, content, length):
    folder = tmp_path_factory.mktemp("noise")
    checkpoint(folder, tied=True)
    (folder / "model.safetensors").write_bytes((b"" if length is None else struct.pack("<Q", length)) + content)
    with pytest.raises(ValueError, match=r"^source: "):
        checkpoints.read_tables(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": ["F32"], "shape": [6, 2], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [6, 2], "data_offsets": [0, float("inf")]},
        {"dtype": "F32", "shape": [6, 2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [6, 2], "data_offsets": [0, 24, 48]},
        {"dtype": "F32", "shape": [-6, -2], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [6.0, 2], "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": 12, "data_offsets": [0, 48]},
        {"dtype": "F32", "shape": [True, 12], "data_offsets": [0, 48]},
        [],
        None,
    ],
    ids=repr,
)
def test_an_entry_that_describes_no_tensor_is_refused(tmp_path, entry):
    checkpoint(tmp_path, tied=True)
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(48))
    with pytest.raises(ValueError, match=r"^source: model.safetensors of .* is damaged: its header cannot be read"):
        checkpoints.read_tables(tmp_path)


@long_form(500, 20_000)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_configuration_or_index_of_any_content_is_read_or_refused(tmp_path, name, count, tally):
    content = checkpoint(tmp_path, tied=False)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "one.safetensors").write_bytes(content)
    where = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"), "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    valid, draw = (tmp_path / name).read_bytes(), random.Random(count)
    for _ in range(count):
        given = mutated(draw, valid)
        (tmp_path / name).write_bytes(given)
        with clean(given), contextlib.suppress(UserWarning):
            checkpoints.read_tables(tmp_path)
    tally["inputs to a checkpoint's configuration and index"] += count


# What a server answers to a range


class Answer:
    """A response as httpx gives it, made up."""

    def __init__(self, status: int, headers: dict[str, str], chunks: list[bytes]) -> None:
        self.status_code, self.headers, self.chunks = status, headers, chunks

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def raise_for_status(self) -> None:
        pass

    def iter_bytes(self) -> Iterator[bytes]:
        yield from self.chunks


CONTENT = bytes(range(256)) * 4


def answer(draw: random.Random, start: int, stop: int) -> Answer:
    """An answer to [start, stop) of `CONTENT`, honest three times in ten."""
    honest = draw.random() < 0.3
    first = start if honest or draw.random() < 0.7 else draw.randrange(len(CONTENT))
    last = stop - 1 if honest or draw.random() < 0.5 else draw.randrange(len(CONTENT))
    body = CONTENT[first : last + 1]
    if not honest:
        body = draw.choice([body, body[: draw.randrange(len(body) + 1)], body + b"more", b""])
    cut = sorted(draw.randrange(len(body) + 1) for _ in range(draw.randrange(4)))
    chunks = [body[a:b] for a, b in zip([0, *cut], [*cut, len(body)], strict=True)]
    said = f"bytes {first}-{last}/{len(CONTENT)}"
    if not honest:
        said = draw.choice(
            [said, said, mutated(draw, said.encode()).decode("latin1"), f"bytes {first}-{last}/*", "", "bytes */7"]
        )
    return Answer(206 if honest or draw.random() < 0.9 else 200, {"Content-Range": said} if said else {}, chunks)


@long_form(3_000, 100_000)
def test_a_range_is_handed_on_exactly_or_refused_whatever_the_server_answers(tmp_path, monkeypatch, count, tally):
    import huggingface_hub.utils

    draw, asked = random.Random(count), SimpleNamespace()
    monkeypatch.setattr("tying_utils.base.hub.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(huggingface_hub.utils, "hf_raise_for_status", lambda response: None)
    monkeypatch.setattr(huggingface_hub.utils, "build_hf_headers", lambda: {})

    def stream(method: str, url: str, *, headers: dict[str, str], **_: Any) -> Answer:
        start, stop = (int(n) for n in headers["Range"].removeprefix("bytes=").split("-"))
        asked.count += 1
        return answer(draw, start, stop + 1)

    monkeypatch.setattr(huggingface_hub.utils, "http_stream_backoff", stream)
    whole = tmp_path / "whole"
    whole.write_bytes(CONTENT)
    hub = object.__new__(Hub)
    hub.repo, hub.revision, hub.commit, hub.bytes_read, hub.reachable = "org/model", "main", "c" * 40, 0, True
    monkeypatch.setattr(Hub, "local", lambda self, name: None)
    monkeypatch.setattr(Hub, "size", lambda self, name: len(CONTENT))
    monkeypatch.setattr(Hub, "whole", lambda self, name: whole)
    monkeypatch.setattr("tying_utils.base.hub.warnings.warn", lambda *_, **__: None)
    done = 0
    for _ in range(count):
        start, stop = sorted((draw.randrange(len(CONTENT)), draw.randrange(len(CONTENT) + 1)))
        got, asked.count = bytearray(), 0
        with clean((start, stop)):
            hub.take("weights", start, stop, got.extend)
            assert bytes(got) == CONTENT[start:stop]
            done += 1
        assert CONTENT[start:stop].startswith(bytes(got)), "what is handed on is what was asked for, as far as it goes"
        assert asked.count <= stop - start + 10
    assert 0 < done < count
    tally["inputs to the range reader"] += count


# The configuration of a run

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**63,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
]
VALUES += [
    "",
    "x",
    "auto",
    "cuda:99999999999999999999",
    "é\ud800",
    "a" * 1000,
    [],
    [1],
    {},
    {"name": "scale"},
    {"a": {"b": []}},
]
VALUES += [{"name": "norm-match", "target": "x"}, {"classes": 10**12}, {"length": 2**70}, {"name": []}, ["name"]]


@long_form(5_000, 100_000)
def test_a_configuration_of_any_values_is_taken_or_refused(count, tally):
    draw = random.Random(count)
    valid = [
        TrainConfig().as_dict(),
        TrainConfig(corpus="two-role", vocab_size=64).as_dict(),
        TrainConfig.from_dict({"corpus": "text", "path": "a.txt", "tied": False, "remedy": "table-rates"}).as_dict(),
        TrainConfig.from_dict({"remedy": {"name": "norm-match", "smoothing": 0.5}}).as_dict(),
        TrainConfig(corpus="two-role", vocab_size=64, start=TrainConfig(corpus="two-role", vocab_size=64)).as_dict(),
    ]
    taken = 0
    for _ in range(count):
        values = json.loads(json.dumps(draw.choice(valid)))
        for name in draw.sample(sorted(values), draw.randint(1, 3)):
            inner = values[name]
            if isinstance(inner, dict) and inner and draw.random() < 0.7:
                inner[draw.choice(sorted(inner))] = draw.choice(VALUES)
            else:
                values[name] = draw.choice(VALUES)
        if draw.random() < 0.1:
            values[draw.choice(["", "steps ", "__class__", "é"])] = draw.choice(VALUES)
        with clean(values):
            config = TrainConfig.from_dict(values)
            assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
            taken += 1
    assert 0 < taken < count
    tally["inputs to a run's configuration"] += count


@long_form(500, 20_000)
def test_a_configuration_in_text_of_any_content_is_taken_or_refused(count, tally):
    draw = random.Random(count)
    valid = json.dumps({"tied": True, "steps": 3, "remedy": {"name": "shrink", "alpha": 0.5}, "learning_rate": 1e-3}).encode()
    for _ in range(count):
        text = mutated(draw, valid).decode("utf-8", "surrogateescape")
        with clean(text):
            command._config(text)
    tally["inputs to a run's configuration"] += count


# Text, tokenizers and records


@long_form(300, 10_000)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.gz"])
def test_a_text_of_any_bytes_is_read_or_refused(tmp_path, name, count, tally):
    draw, path = random.Random(f"{name}{count}"), tmp_path / name
    lines = "".join(json.dumps({"text": f"line {i} é 日本", "id": i}) + "\n" for i in range(9)).encode()
    valid = gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines
    read = 0
    for _ in range(count):
        given = mutated(draw, valid) if draw.random() < 0.8 else gzip.compress(mutated(draw, lines), mtime=0)
        path.write_bytes(given)
        with clean(given):
            for text, position in TextStream([str(path)]).documents():
                assert text and isinstance(text, str) and text.encode() and json.dumps(position)
            read += 1
    assert read
    tally["inputs to the readers of text"] += count


@long_form(300, 20_000)
def test_a_folder_of_any_files_is_split_or_refused(tmp_path, count, tally):
    draw = random.Random(count)
    names = [
        "a.txt",
        "b\n.txt",
        "train.txt",
        "valid.txt",
        "é.txt",
        ".hidden",
        "c",
        b"\xff\xfe.txt".decode("utf-8", "surrogateescape"),
    ]
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in draw.sample(names, draw.randint(0, 4)):
            (folder / name).write_bytes(
                draw.choice([b"", b"\xef\xbb\xbf", b"text\r\n\x85\xe2\x80\xa8more\n" * 3, draw.randbytes(20), b"\0" * 9])
            )
        with clean([(path.name, path.read_bytes()) for path in folder.iterdir()]):
            train, validation = texts.documents("text", folder)
            assert train and validation and all(name.encode() is not None for name, _ in (*train, *validation))
    tally["inputs to the readers of text"] += count


def test_a_text_with_names_and_letters_of_every_kind_is_tokenised(tmp_path, home):
    folder = tmp_path / "text"
    folder.mkdir()
    every = "".join(chr(code) for code in range(0x500) if code not in range(0xD800, 0xE000)) + "<|endoftext|>\0\u2028🙂"
    for name in ("one.txt", b"\xff.txt".decode("utf-8", "surrogateescape")):
        (folder / name).write_text(every * 4, encoding="utf-8")
    corpus = store.load("text", vocab_size=300, path=folder)
    read = (every * 4).replace("\r", "\n")
    assert corpus.tokenizer.decode(list(corpus.validation[:-1]), skip_special_tokens=False) == read


@long_form(300, 10_000)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a_tokenizer_of_any_content_is_read_or_refused(tmp_path, text, home, name, count, tally):
    corpus = store.load("text", vocab_size=300, path=text)
    valid = {
        "tokenizer.json": (corpus.folder / "tokenizer.json").read_bytes(),
        "vocab.json": json.dumps({"a": 0, "b": 1, "Ġc": 2}).encode(),
        "tokenizer_config.json": json.dumps({"eos_token": {"content": "<|endoftext|>"}, "a": [1]}).encode(),
    }[name]
    draw, path = random.Random(f"{name}{count}"), tmp_path / name
    for _ in range(count):
        given = mutated(draw, valid)
        path.write_bytes(given)
        with clean(given):
            if name == "tokenizer_config.json":
                assert isinstance(vocabulary.eos_token(tmp_path), str | None)
            else:
                assert all(isinstance(row, int) for row in vocabulary.read(tmp_path).values())
    tally["inputs to the readers of tokenizers"] += count


@long_form(1_000, 100_000)
def test_a_record_of_any_content_is_what_was_written_or_nothing(tmp_path, count, tally):
    value = {"format": 1, "files": {"a": "b" * 64}, "step": 12, "made": {"seconds": 1.5}}
    path, draw = tmp_path / "record.json", random.Random(count)
    files.write_json(path, value)
    valid = path.read_bytes()
    for _ in range(count):
        given = mutated(draw, valid)
        path.write_bytes(given)
        assert files.read_json(path) in (None, value), given
    tally["inputs to the reader of records"] += count


def test_brackets_without_end_are_refused(tmp_path, home):
    """Which a parser that calls itself for each of them does not survive."""
    deep = '{"a":' * 100_000
    (tmp_path / "record.json").write_text(deep)
    assert files.read_json(tmp_path / "record.json") is None
    content = checkpoint(tmp_path, tied=True)
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(ValueError, match=r"^source: config.json of .* is not JSON"):
        checkpoints.read_tables(tmp_path)
    checkpoint(tmp_path, tied=True)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep.encode() + content)
    with pytest.raises(ValueError, match="its header cannot be read"):
        checkpoints.read_tables(tmp_path)
    for name, read in (("vocab.json", vocabulary.read), ("tokenizer_config.json", vocabulary.eos_token)):
        (tmp_path / name).write_text(deep)
        with pytest.raises(ValueError, match=r"^source: .* is not JSON"):
            read(tmp_path)
    (tmp_path / "a.jsonl").write_text(deep)
    with pytest.raises(ValueError, match="not one JSON object a line"):
        list(TextStream([str(tmp_path / "a.jsonl")]).documents())
    with pytest.raises(ValueError, match=r"^--config: a JSON object"):
        command._config(deep)
