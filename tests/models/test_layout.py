"""Which tensors are taken for the tables: unknown names, configurations of several parts, and files that are no weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import multimodal
import pytest
import torch
from local_hub import LocalHub, pointing_at
from safetensors.torch import load_file, save_file

from tying_utils.models import layout
from tying_utils.models.checkpoints import read_tables

V, D = 40, 8


def table(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (V, D)), generator=torch.Generator().manual_seed(seed))


def stored(folder: Path, tensors: dict[str, torch.Tensor], *, shards: bool = False, **config: Any) -> Path:
    """A checkpoint that holds `tensors`, each in a file of its own if it is sharded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": V, "architectures": ["XForCausalLM"], **config}))
    if not shards:
        save_file(tensors, folder / "model.safetensors")
        return folder
    for number, (name, value) in enumerate(tensors.items()):
        save_file({name: value}, folder / f"{number}.safetensors")
    where = {name: f"{number}.safetensors" for number, name in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


ONE = {"wte.weight": table(0)}
BOTH = {**ONE, "lm_head.weight": table(1)}

# Input and output table by the names of phi-2 as first published, of OLMo's own format, of a numbered head, and of others.
NAMED = [
    ("transformer.embd.wte.weight", "lm_head.linear.weight"),
    ("model.transformer.wte.weight", "model.transformer.ff_out.weight"),
    ("model.embed_tokens.weight", "lm_head.0.weight"),
    ("tok_embeddings.weight", "unembed.weight"),
    ("backbone.word_embeddings.weight", "score"),
    ("model.embed_tokens.weight", "lm_head.0.linear.weight"),
    ("model.embed_tokens.weight", "layers.25.linear.weight"),
    ("model.embed_tokens.weight", "composition_head.weight"),
]


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize(("one", "other"), NAMED)
def test_a_second_table_by_an_unknown_name_is_no_tie(one, other, shards, tmp_path):
    block = {f"layers.{layer}.mlp.up.weight": table(3) for layer in (0, 1)} | {"model.norm.weight": table(4, D)}
    folder = stored(tmp_path / "m", {one: table(0), other: table(1), **block}, shards=shards)
    with pytest.raises(
        ValueError, match=rf"^source: .* holds {other} \(40, 8\) beside the input table {one} \(40, 8\)"
    ) as said:
        read_tables(folder)
    assert f"names=({one!r}, {other!r})" in str(said.value) and f"names=({one!r}, {one!r}), which is tied" in str(said.value)
    untied = read_tables(folder, names=(one, other))
    assert not untied.tied and torch.equal(untied.output, table(1)) and untied.names == (one, other)
    assert read_tables(folder, names=(one, one)).tied


@pytest.mark.parametrize("shape", [(V + 8, D), (V - 2, D), (D, V), (V, D // 4), (V, 2 * D), (V, D, 1), (1, V, D)])
def test_a_second_table_need_not_have_the_same_shape(shape, tmp_path):
    folder = stored(tmp_path / "m", {**ONE, "head.weight": table(1, *shape)})
    with pytest.raises(ValueError, match=r"^source: .* holds head.weight .* beside the input table wte.weight"):
        read_tables(folder)


def test_what_is_no_second_table_leaves_a_tie_a_tie(tmp_path):
    beside = {"wpe.weight": table(1), "embed_positions.weight": table(1, V + 2, D), "norm.weight": table(2, D)}
    beside |= {
        "h.0.mlp.weight": table(3),
        "h.1.mlp.weight": table(3),
        "h.1.last.weight": table(3, V - 1),
        "projector.weight": table(4, D, D + 3),
        "head.bias": table(5, V),
    }
    assert read_tables(stored(tmp_path / "m", {**ONE, **beside})).tied
    one_layer = {"h.0.mlp.up.weight": table(3), "h.0.mlp.down.weight": table(3, D, V), "h.0.norm.weight": table(2, D)}
    assert read_tables(stored(tmp_path / "n", {**ONE, **one_layer})).tied


@pytest.mark.filterwarnings("ignore:.*no safetensors")
def test_a_second_table_of_a_bin_file_is_no_tie(tmp_path):
    folder = stored(tmp_path / "m", ONE)
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": table(0), "head.linear.weight": table(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds head.linear.weight"):
        read_tables(folder)


def test_a_second_table_on_the_hub_is_no_tie(tmp_path):
    folder = stored(tmp_path / "m", {**ONE, "head.weight": table(1)})
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", folder)
        with pytest.raises(ValueError, match=r"^source: org/model holds head.weight"):
            read_tables("org/model")
        assert not read_tables("org/model", names=("wte.weight", "head.weight")).tied


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", multimodal.KINDS)
def test_tables_of_a_multimodal_model(kind, tied, tmp_path, recwarn):
    model = multimodal.multimodal(kind, tied=tied)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))  # stale, at the top
    rows: int = multimodal.VOCAB
    if kind == "Mllama":
        both = (
            r"is \(68, 16\) and the output table language_model.lm_head.weight is \(60, 16\), its config.json promises 60 rows"
        )
        with pytest.raises(ValueError, match=rf"^source: .* {both}; rows=60 keeps the first 60 of each"):
            read_tables(tmp_path)
    tables = read_tables(tmp_path, rows=rows if kind == "Mllama" else None)
    head = model.get_output_embeddings().weight.detach()
    assert torch.equal(tables.input, model.get_input_embeddings().weight.detach()[:rows]) and torch.equal(tables.output, head)
    assert tables.tied == (tied and kind != "Mllama")
    assert kind == "Mllama" or not [one for one in recwarn.list if "config.json says" in str(one.message)]


def test_a_number_of_tokens_that_only_the_class_gives(tmp_path):
    """As Gemma 3 is published: its text configuration leaves out what is as usual."""
    text = {"model_type": "gemma3_text", "hidden_size": D}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"model_type": "siglip_vision_model"}}
    folder = stored(tmp_path / "m", {"embed_tokens.weight": table(0)}, **config, vocab_size=None)
    with pytest.raises(ValueError, match=r"is \(40, 8\), its config.json promises 262208 rows"):
        read_tables(folder)


@pytest.mark.parametrize("part", ["text_config", "language_config", "llm_config", "decoder"])
@pytest.mark.parametrize("stale", [7, None])
def test_the_text_of_a_model_that_transformers_does_not_know(part, stale, tmp_path):
    config = {"model_type": "unheard-of", "vocab_size": stale, part: {"vocab_size": V}, "vision_config": {}}
    assert read_tables(stored(tmp_path / "m", ONE, **config)).input.shape == (V, D)


@pytest.mark.parametrize(("one", "other"), [(V + 8, V), (V, V + 8), (V + 8, V + 8), (V + 3, None)])
def test_rows_beyond_the_tokens_are_said_and_can_be_left_out(one, other, tmp_path):
    tensors = {"wte.weight": table(0, one, D)} | ({} if other is None else {"lm_head.weight": table(1, other, D)})
    folder = stored(tmp_path / "m", tensors)
    with pytest.raises(ValueError, match=rf"\({one}, 8\)[^;]* promises {V} rows; rows={V} keeps the first {V} of each"):
        read_tables(folder)
    for rows in (V, 3):
        tables = read_tables(folder, rows=rows)
        assert torch.equal(tables.input, tensors["wte.weight"][:rows]) and tables.tied == (other is None)
        assert torch.equal(tables.output, list(tensors.values())[-1][:rows])
    least = min(one, other or one)
    with pytest.raises(ValueError, match=rf"^rows: .* at most {least} rows can be kept, got {least + 1}$"):
        read_tables(folder, rows=least + 1)
    with pytest.raises(ValueError, match="^rows: "):
        read_tables(folder, rows=0)


def test_rows_of_a_hubs_tables_are_cut_each_time_alike(tmp_path):
    both = {"wte.weight": table(0, V + 8, D), "lm_head.weight": table(0, V + 8, D)[:V].clone()}
    with LocalHub() as hub, pointing_at(hub, tmp_path / "cache"):
        hub.add("org/model", stored(tmp_path / "m", both))
        for _ in range(2):
            tables = read_tables("org/model", rows=V)
            assert tables.tied and tables.input.shape == (V, D)
        assert read_tables("org/model", rows=5).input.shape == (5, D)
        with pytest.raises(ValueError, match="rows=40 keeps"):
            read_tables("org/model")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"
IMPOSTORS = {
    "a git-lfs pointer": (POINTER, "a git-lfs pointer, which stands for the file; run `git lfs pull` in its folder"),
    "an old pointer": (b"version https://hawser.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
    "a word": (b"Entry not found", "a text that begins 'Entry not found'"),
    "a page": (b"\n <!DOCTYPE html><html><title>Sign in</title>" + b" " * 300, "an HTML page, of a hub or a proxy"),
    "a page with a mark": (b"\xef\xbb\xbf<HTML lang='en'>" + b" " * 300, "an HTML page"),
    "an empty file": (b"", "empty, as a download leaves it that was cut off"),
    "an answer": (b'{"error": "Invalid username or password."}', "JSON, as a server answers that refuses"),
    "a store's answer": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
    "a zip": (b"PK\x03\x04" + b"\0" * 300, "a zip archive; unpack it, or where torch.save wrote it name it pytorch_model.bin"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\0" * 300, "a gzip archive; unpack it"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\xff" * 300, "a GGUF file; give its own path, which ends in .gguf"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "1.safetensors", "pytorch_model.bin", "model.gguf"])
@pytest.mark.parametrize("what", IMPOSTORS)
def test_what_lies_in_place_of_the_weights_is_named(what, name, tmp_path):
    content, said = IMPOSTORS[what]
    folder = stored(tmp_path / "m", BOTH, shards=name == "1.safetensors")
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    source = folder / name if name == "model.gguf" else folder
    if (name, what) in [("pytorch_model.bin", "a zip"), ("model.gguf", "gguf")]:
        said = "damaged"  # it begins as it should
    if (name, what) == ("model.gguf", "gguf"):
        pytest.importorskip("gguf")
    with pytest.raises(ValueError, match=f"^source: .*{name}.* is {said}"):
        read_tables(source)


@pytest.mark.parametrize("what", ["a git-lfs pointer", "a page", "an empty file"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_what_lies_in_place_of_the_configuration_is_named(what, name, tmp_path):
    folder = stored(tmp_path / "m", BOTH, shards=True)
    (folder / name).write_bytes(IMPOSTORS[what][0])
    with pytest.raises(ValueError, match=f"^source: {name} of .* is {IMPOSTORS[what][1]}"):
        read_tables(folder)


@pytest.mark.parametrize("length", [ord("{"), 0x8B1F], ids=["begins like JSON", "begins like gzip"])
def test_a_sound_file_whose_length_reads_like_another_kind_is_read(length, tmp_path):
    folder = stored(tmp_path / "m", ONE)
    content = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({key: value for key, value in json.loads(content[8:end]).items() if key != "__metadata__"})
    header = header.replace(" ", "").ljust(length)
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header.encode() + content[end:])
    assert torch.equal(read_tables(folder).input, table(0))


def test_names_that_are_known_are_those_of_the_models_that_transformers_writes(tmp_path):
    """Absence of a name is refused, so that each addition is a convenience and none is needed for a right answer."""
    folder = stored(tmp_path / "m", BOTH)
    for names in (layout.INPUT_NAMES, layout.OUTPUT_NAMES):
        for name in names:
            again = shutil.copytree(folder, tmp_path / name)
            tensors = load_file(folder / "model.safetensors")
            old = "wte.weight" if names is layout.INPUT_NAMES else "lm_head.weight"
            tensors[f"model.{name}.weight"] = tensors.pop(old)
            save_file(tensors, again / "model.safetensors")
            assert not read_tables(again).tied
