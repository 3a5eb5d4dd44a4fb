"""Which tensors of a checkpoint are its token tables, and where they lie: from its configuration, its index and the headers.

A safetensors header is read with own code: safetensors itself needs the whole file on disk; base/hub.py says what is wrong with
huggingface_hub's parser.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tying_utils.base import files
from tying_utils.base.hub import Folder, Source, read_json

# Names of the tables in the checkpoints of transformers' causal language models, by their last parts.
INPUT_NAMES = ("embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings", "embeddings")
OUTPUT_NAMES = ("lm_head", "embed_out", "output", "output_projection", "predictions.decoder")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder_config", "decoder")
_POSITIONS = re.compile(
    r"(^|[._])(wpe|positions?|pos_embed\w*|pos_emb)([._]|$)"
)  # of tables that are no token tables, however many rows they have
_IN_A_BLOCK = re.compile(r"(^|\.)\d+\.\w+\.")  # and not a head that is numbered itself, as in lm_head.0.weight
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_HEADER = 1 << 15  # bytes that a first look takes; most headers are shorter
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored: dtype by its name in safetensors, bytes [start, stop) in a file, or `tensor` of a .bin file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] = (0, 0)
    tensor: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """The tables of a checkpoint: "input" and, where it is stored, "output" -> the tensor's name, and how it is stored.

    `said` is what its configuration says of the tie, if it does.
    """

    held: dict[str, str]
    stored: dict[str, Stored]
    said: bool | None

    @property
    def names(self) -> tuple[str, str]:
        return self.held["input"], self.held.get("output", self.held["input"])


def find(where: Source, names: tuple[str, str] | None = None, rows: int | None = None) -> Layout:
    """Return where the tables of the checkpoint at `where` lie; `names`, `rows`, errors as in `checkpoints.read_tables`."""
    if not where.has("config.json"):
        raise ValueError(f"source: {where} holds no config.json; {_near(where) or 'a transformers checkpoint is needed'}")
    config = read_json(where, "config.json")
    text = _text(config)
    if not isinstance(promised := text.get("vocab_size"), int):
        raise ValueError(f"source: the config.json of {where} gives no vocab_size; it is no language model, or add the number")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    for kind, read in (("model.safetensors", _header), ("pytorch_model.bin", _pickled)):
        if where.has(kind):
            known = {kind: read(where, kind)}
            tensors = dict.fromkeys(known[kind], kind)
        elif where.has(f"{kind}.index.json"):
            known, tensors = {}, _indexed(where, f"{kind}.index.json")
        else:
            continue

        def one_of(name: str, known: Any = known, tensors: Any = tensors, read: Any = read) -> Stored:
            if (file := tensors[name]) not in known:
                known[file] = read(where, file)
            if name not in known[file]:
                raise ValueError(f"source: the index of {where} places {name} in {file}, which does not hold it; copy it anew")
            return known[file][name]

        held = _held(tensors, names, config, where)
        stored = {part: one_of(name) for part, name in held.items()}
        _check(where, held, stored, promised if rows is None else None, rows)
        if names is None and "output" not in held:
            shape = stored["input"].shape
            single = [name for name in _single(tensors) if one_of(name).shape == shape]
            others = {name: one_of(name).shape for name in (*_outside(tensors), *single) if name != held["input"]}
            check_alone(str(where), held["input"], shape, others)
        # Copied out of a .bin file, which is let go.
        copied = {
            p: one if one.tensor is None else replace(one, tensor=one.tensor.detach().clone()) for p, one in stored.items()
        }
        return Layout(held, copied, said if isinstance(said, bool) else None)
    lacking = "neither model.safetensors nor pytorch_model.bin, single or sharded"
    raise ValueError(f"source: {where} holds {lacking}; a folder as save_pretrained writes it is needed")


def _near(where: Source) -> str:
    """Return what in a folder without a checkpoint would do, in words: GGUF files, or the model beside a run's other files."""
    if not isinstance(where, Folder):
        return ""
    found = [path for path in where.folder.iterdir() if path.suffix.lower() == ".gguf" or (path / "config.json").is_file()]
    return f"give {' or '.join(map(str, sorted(found)[:4]))}" if found else ""


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that is the language model's: all of it, where there are no others beside it."""
    beside = [k for k, value in config.items() if isinstance(value, dict) and (k.endswith("_config") or k in _TEXT_PARTS)]
    if not set(beside) - {"quantization_config"}:
        return config
    # What is left out of a part is in its class alone: Gemma 3's number of tokens, for one. Nothing else is run of it.
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(config).get_text_config(decoder=True).to_dict()
    except Exception:  # a model that transformers does not know, or not so: by the most common names
        parts = (config.get(name) for name in _TEXT_PARTS)
        return next((part for part in parts if isinstance(part, dict) and "vocab_size" in part), config)


def check_alone(where: str, name: str, shape: tuple[int, ...], others: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if one of `others`, name -> shape, may be an output table beside the input table `name` of `shape`.

    Absence of the known names must not pass for a tie. A table of as many rows or more (padded) or nearly, of either order;
    packed, it is narrower.
    """
    for other, stored in others.items():
        found = tuple(n for n in stored if n != 1)  # of a convolution over single tokens, (V, d, 1)
        if len(found) != 2 or len(shape) != 2 or _POSITIONS.search(other):
            continue
        (rows, width), turned = shape, found[::-1]
        if any(a == rows or (b == width != a and a >= 0.9 * rows) for a, b in (found, turned)):
            both, tied = f"names=({name!r}, {other!r})", f"names=({name!r}, {name!r})"
            raise ValueError(
                f"source: {where} holds {other} {tuple(stored)} beside the input table {name} {tuple(shape)}, and no output "
                f"table by a known name; if that is the output table say {both}, else {tied}, which is tied"
            )


def _indexed(where: Source, name: str) -> dict[str, str]:
    """Return tensor -> file, as an index says; every file lies beside it."""
    found = read_json(where, name).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"source: {name} of {where} holds no weight_map from tensors to files; copy it anew")
    folder = where.folder if isinstance(where, Folder) else Path(where.repo)
    for file in set(found.values()):
        try:
            files.inside(folder, file)
        except ValueError as error:
            raise ValueError(f"source: {name} of {where} is not to be trusted: {error}") from error
    return found


def _outside(tensors: Mapping[str, str]) -> list[str]:
    """Return the names of the tensors that are outside of any numbered block."""
    return [name for name in tensors if not _IN_A_BLOCK.search(name)]


def _single(tensors: Mapping[str, str]) -> list[str]:
    """Return the weights within numbered blocks that only one block has: a head may be numbered, too, or lie in a last block.

    Of a list with one block only where that is all it holds: a model of one layer has every weight once.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    of_list: dict[str, list[str]] = {}
    for name in tensors:
        if (found := re.match(r"(.*?(?:^|\.))\d+\.(.*weight)$", name)) and _IN_A_BLOCK.search(name):
            alike.setdefault((found[1], found[2]), []).append(name)
            of_list.setdefault(found[1], []).append(name)
    numbers = {place: {name[len(place) :].split(".")[0] for name in names} for place, names in of_list.items()}
    single = [(place, names[0]) for (place, _), names in alike.items() if len(names) == 1]
    return [name for place, name in single if len(numbers[place]) > 1 or len(of_list[place]) == 1]


def _held(
    tensors: Mapping[str, str], names: tuple[str, str] | None, config: Mapping[str, Any], where: Source
) -> dict[str, str]:
    """Return the names of the input and, if it is stored, the output table among `tensors`."""
    outside = _outside(tensors)
    some = ", ".join(outside[:12]) or "none outside of its layers"
    if names is not None:
        for name in names:
            if name not in tensors:
                raise ValueError(f"names: {where} holds no tensor {name!r}; it holds {some}")
        return {"input": names[0], **({"output": names[1]} if names[1] != names[0] else {})}
    inputs, outputs = (
        [t for t in outside if f".{t}".endswith(tuple(f".{name}.weight" for name in known))]
        for known in (INPUT_NAMES, OUTPUT_NAMES)
    )
    if len(inputs) != 1 or len(outputs) > 1:
        found = ", ".join(inputs + outputs) or "none of those known"
        raise ValueError(
            f"source: {where} holds {found} where one input table and at most one output table were looked for; say which with "
            f"names=(input, output) of {some}"
        )
    if outputs:
        return {"input": inputs[0], "output": outputs[0]}
    # Packed weights go by other names than "weight": their absence must not pass for a tie.
    if packed := [t for t in outside if t.split(".")[-2:-1] in [[n] for n in OUTPUT_NAMES] and not t.endswith(".bias")]:
        raise ValueError(f"source: the output table of {where} is quantised ({packed[0]}); use the unquantised checkpoint")
    named = config.get("architectures")
    kinds = [kind for kind in named if isinstance(kind, str)] if isinstance(named, list) else []
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for kind in kinds):
        kind = ", ".join(kinds) or "a model of no stated architecture"
        raise ValueError(f"source: {where} holds no output table ({kind}); a causal language model is needed")
    return {"input": inputs[0]}


def _check(where: Source, held: dict[str, str], stored: dict[str, Stored], promised: int | None, rows: int | None) -> None:
    """Raise ValueError unless the tables are tables of as many rows as promised, or of at least `rows`."""
    for part, one in stored.items():
        if one.dtype not in DTYPES:
            wrong = f"the {part} table {held[part]} of {where} is stored as {one.dtype}"
            known = ", ".join(DTYPES)
            raise ValueError(f"source: {wrong}, quantised or not one of {known}; use the unquantised checkpoint")
    shapes = [one.shape for one in stored.values()]
    tables = " and ".join(f"the {part} table {held[part]} is {one.shape}" for part, one in stored.items())
    if not all(len(shape) == 2 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        raise ValueError(f"source: of {where} {tables}; tables (V, d) of one width are needed, one is of another model")
    least = min(shape[0] for shape in shapes)
    if rows is not None and rows > least:
        raise ValueError(f"rows: of {where} {tables}; at most {least} rows can be kept, got {rows}")
    if promised is not None and any(shape[0] != promised for shape in shapes):
        cut = min(least, promised)
        raise ValueError(
            f"source: of {where} {tables}, its config.json promises {promised} rows; rows={cut} keeps the first {cut} of each "
            "table, where the others pad it or stand for images; or one of them belongs to another model"
        )


def _header(where: Source, name: str) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by its header, which is checked against itself and the file's size."""
    size, head = where.size(name), bytearray()
    where.take(name, 0, min(_HEADER, size), head.extend)
    if head[8:9] != b"{" and (what := files.impostor(head)):
        raise ValueError(f"source: {name} of {where} is {what}")
    length = int.from_bytes(head[:8], "little")
    wrong = f"source: {name} of {where} is damaged"
    if size < 8 or not 2 <= length <= min(size - 8, _LONGEST):
        raise ValueError(f"{wrong}: its header claims {length} bytes of a file of {size}; copy it anew")
    if len(head) < 8 + length:
        where.take(name, len(head), 8 + length, head.extend)
    try:
        entries = json.loads(bytes(head[8 : 8 + length]))
        entries.pop("__metadata__", None)
        found = {}
        for key, entry in entries.items():
            (start, stop), shape = entry["data_offsets"], entry["shape"]
            if not (isinstance(entry["dtype"], str) and all(type(n) is int and n >= 0 for n in (start, stop, *shape))):
                raise ValueError(f"no tensor is described by {entry}")
            found[key] = Stored(name, entry["dtype"], tuple(shape), (8 + length + start, 8 + length + stop))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        short = str(error)[:200]
        raise ValueError(f"{wrong}: its header cannot be read ({type(error).__name__}: {short}); copy it anew") from error
    end = 8 + length
    for key, one in sorted(found.items(), key=lambda item: (item[1].span, item[0])):
        start, stop = one.span
        expected = math.prod(one.shape) * _BYTES[one.dtype] if one.dtype in _BYTES else stop - start
        if start != end or stop < start or stop - start != expected:
            placed = f"{key} ({one.dtype}, {one.shape}) at bytes {start} to {stop}, after {end}"
            raise ValueError(f"{wrong}: its header places {placed}; copy it anew")
        end = stop
    if end != size:
        raise ValueError(f"{wrong}: its header describes {end} bytes, it holds {size}; copy it anew")
    return found


def _pickled(where: Source, name: str) -> dict[str, Stored]:
    """Return the tensors of a .bin file, which is read whole; no code in it is run."""
    size, head = where.size(name), bytearray()
    where.take(name, 0, min(_HEADER, size), head.extend)
    if not head.startswith(files.ZIP) and (what := files.impostor(head)):  # PyTorch's own files are zip archives
        raise ValueError(f"source: {name} of {where} is {what}")
    warnings.warn(f"{where}: it holds no safetensors; all {size / 1e9:.2f} GB of {name} are read", stacklevel=2)
    path = where.whole(name)
    if isinstance(where, Folder):
        where.bytes_read += size
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before PyTorch 1.6: such a file cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {key: _unpickled(name, value) for key, value in loaded.items()}
    except Exception as error:
        short = str(error).splitlines()[0][:200]
        raise ValueError(f"source: {path} is damaged or holds more than tensors ({short}); use another checkpoint") from error


def _unpickled(file: str, value: object) -> Stored:
    if not isinstance(value, Tensor):
        return Stored(file, type(value).__name__, ())
    dtype = next((stored for stored, dtype in DTYPES.items() if dtype == value.dtype), str(value.dtype))
    return Stored(file, dtype, tuple(value.shape), tensor=value)
