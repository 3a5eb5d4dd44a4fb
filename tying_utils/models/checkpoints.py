"""Public checkpoints: read the two token tables and nothing else.

    tables = read_tables("allenai/OLMo-1B-hf")    # a hub id or a local folder
    tables.tied, tables.output.shape, tables.bytes_read

A safetensors file says in its header where each tensor lies; the header is read, then each table in one ranged read, straight
to a cache that is kept by commit with a sha256. The whole of OLMo-7B is 28 GB, its tables are 1.6 GB.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from tying_utils.base import files, sources
from tying_utils.base.sources import Folder, Hub
from tying_utils.measures.integrity import same_bytes
from tying_utils.models.architectures import Tables
from tying_utils.models.families import Family, Model, families

__all__ = ["CheckpointTables", "Family", "Model", "families", "read_tables", "steps"]

# Names of the tables in the checkpoints of transformers' causal language models, by their last parts.
INPUT_NAMES = ("embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings")
OUTPUT_NAMES = ("lm_head", "embed_out", "output")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# Part of every cached record: raise it when the same checkpoint would give other tables.
FORMAT = 1
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_HEADER = 1 << 15  # bytes that a first look takes; most headers are shorter
_STEP = re.compile(r"step(\d+)(?:-tokens\d+B)?")


@dataclass(frozen=True)
class CheckpointTables(Tables):
    """The tables of a checkpoint, (V, d) each, in its own dtype, memory-mapped from disk: bit for bit what is stored.

    - source, revision: as asked for; commit: that it was, None for a local folder.
    - names: of the input and output tensor in the checkpoint; the same one twice where it holds one table.
    - bytes_read: of the checkpoint's files: over the network with headers and configuration, 0 from the cache; from disk
      those of headers and tables.
    """

    source: str
    revision: str | None
    commit: str | None
    names: tuple[str, str]
    bytes_read: int


def read_tables(
    source: str | Path,
    revision: str | None = None,
    *,
    names: tuple[str, str] | None = None,
    refresh: bool = False,
    progress: bool = True,
) -> CheckpointTables:
    """The input and output tables of a causal language model, from the hub or a local folder, and nothing else of it.

    source: a hub id, or a folder as transformers saves it; float32, float16 or bfloat16 safetensors, single or sharded. A
    checkpoint that has only PyTorch's .bin files is read whole (with weights_only=True, memory-mapped), with a warning.
    revision: branch, tag or commit on the hub; of a local folder a folder in it. names: of the two tensors, for a model whose
    tables are called otherwise than `INPUT_NAMES` and `OUTPUT_NAMES` say.

    The tie is read from the checkpoint: one table, or two that are equal byte for byte, is tied; a configuration that says
    otherwise is warned of. What came from the hub lies by commit, with a sha256, in huggingface_hub's assets cache: a second
    call, of the same branch too, reads no network. `refresh` asks anew where the branch stands.

    Raises ValueError for a source, revision or file that is not there, a gated model, a configuration without a vocabulary, a
    model without an output table (an encoder), quantised tables, and a file whose header contradicts itself or its size;
    `sources.Unreachable`, a ValueError and an OSError, where the hub cannot be reached or read.
    """
    if (where := sources.local(source, revision)) is not None:
        layout = _layout(where, names)
        return _tied_or_not(where, layout, _read_whole(where, layout), source, revision)
    cache = _Cache(sources.checked_id(source), revision or "main", names)
    if not refresh and (held := cache.tables(mend=False)) is not None:
        return held
    with FileLock(cache.lock):
        if not refresh and (held := cache.tables(mend=True)) is not None:  # another process was faster
            return held
        return cache.fill(Hub(cache.repo, revision), progress)


def steps(source: str | Path) -> dict[int, str]:
    """Training step -> revision, in order, of a model whose revisions are called as in step1000 or step1000-tokens2B.

    source as in `read_tables`. Raises ValueError if it has none, else as there.
    """
    found = {int(m[1]): name for name in sources.branches(source) if (m := _STEP.fullmatch(name))}
    if not found:
        raise ValueError(f"source: {source} has no revision called step0, step1000 or the like; its checkpoints are not public")
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _Layout:
    """Where the tables of a checkpoint lie: `held` names each tensor that is stored, "input" and perhaps "output"."""

    held: dict[str, str]
    file: dict[str, str]  # tensor -> file
    config: dict[str, Any]
    pickled: bool
    read: dict[str, dict[str, Any]]  # file -> what it holds, where that was looked at already: tensors, or a header's entries

    @property
    def names(self) -> tuple[str, str]:
        return self.held["input"], self.held.get("output", self.held["input"])

    @property
    def files(self) -> set[str]:
        """Those that hold the tables."""
        return {self.file[name] for name in self.held.values()}


def _layout(where: Folder | Hub, names: tuple[str, str] | None) -> _Layout:
    config = _config(where)
    for kind, pickled in (("model.safetensors", False), ("pytorch_model.bin", True)):
        read: dict[str, dict[str, Any]] = {}
        if where.has(kind):
            read[kind] = _pickled(where, kind) if pickled else _header(where, kind)
            tensors = dict.fromkeys(read[kind], kind)
        elif where.has(f"{kind}.index.json"):
            tensors = _indexed(where, f"{kind}.index.json")
        else:
            continue
        return _Layout(_held(tensors, names, config, where), tensors, config, pickled, read)
    raise ValueError(
        f"source: {where} holds neither model.safetensors nor pytorch_model.bin, single or sharded; a folder as transformers' "
        "save_pretrained writes it is needed"
    )


def _indexed(where: Folder | Hub, name: str) -> dict[str, str]:
    """tensor -> file, as an index says; every file lies beside it."""
    found = _json(where, name).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"source: {name} of {where} holds no weight_map from tensors to files; copy it anew")
    folder = where.folder if isinstance(where, Folder) else Path(where.repo)
    for file in set(found.values()):
        try:
            files.inside(folder, file)
        except ValueError as error:
            raise ValueError(f"source: {name} of {where} is not to be trusted: {error}") from error
    return found


def _config(where: Folder | Hub) -> dict[str, Any]:
    if not where.has("config.json"):
        raise ValueError(f"source: {where} holds no config.json; a transformers checkpoint is needed")
    config = _json(where, "config.json")
    if not isinstance(_vocabulary(config), int):
        raise ValueError(f"source: the config.json of {where} gives no vocab_size; it is no language model, or add the number")
    return config


def _vocabulary(config: Mapping[str, Any]) -> Any:
    return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")


def _json(where: Folder | Hub, name: str) -> dict[str, Any]:
    content = where.whole(name).read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: {name} of {where} is not JSON ({error}); copy it anew") from error
    if not isinstance(value, dict):
        raise ValueError(f"source: {name} of {where} is no JSON object; copy it anew")
    return value


def _held(
    tensors: Mapping[str, str], names: tuple[str, str] | None, config: Mapping[str, Any], where: Folder | Hub
) -> dict[str, str]:
    """Names of the input and, if it is stored, the output table among `tensors`."""
    if names is not None:
        for name in names:
            if name not in tensors:
                raise ValueError(f"names: {where} holds no tensor {name!r}; it holds {_some(tensors)}")
        return {"input": names[0], **({"output": names[1]} if names[1] != names[0] else {})}
    inputs, outputs = _called(tensors, INPUT_NAMES), _called(tensors, OUTPUT_NAMES)
    if len(inputs) != 1 or len(outputs) > 1:
        found = ", ".join(inputs + outputs) or "none of those known"
        raise ValueError(
            f"source: {where} holds {found} where one input table and at most one output table were looked for; say which with "
            f"names=(input, output) of {_some(tensors)}"
        )
    if outputs:
        return {"input": inputs[0], "output": outputs[0]}
    # Packed weights go by other names than "weight": their absence must not pass for a tie.
    if packed := [
        t for t in _outside(tensors) if t.split(".")[-2:-1] in [[n] for n in OUTPUT_NAMES] and not t.endswith(".bias")
    ]:
        raise ValueError(
            f"source: the output table of {where} is quantised ({packed[0]}); use the model's unquantised checkpoint"
        )
    kinds = config.get("architectures") or []
    if not any(kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for kind in kinds):
        kind = ", ".join(kinds) or "a model of no stated architecture"
        raise ValueError(f"source: {where} holds no output table ({kind}); a causal language model is needed")
    return {"input": inputs[0]}


def _called(tensors: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    """The tensors called NAME.weight outside of any numbered layer."""
    endings = tuple(f".{name}.weight" for name in names)
    return [t for t in _outside(tensors) if f".{t}".endswith(endings)]


def _outside(tensors: Mapping[str, str]) -> list[str]:
    return [t for t in tensors if not any(part.isdigit() for part in t.split("."))]


def _some(tensors: Mapping[str, str]) -> str:
    return ", ".join(_outside(tensors)[:12]) or "none outside of its layers"


def _header(where: Folder | Hub, name: str) -> dict[str, dict[str, Any]]:
    """tensor -> dtype, shape and [start, stop) in a safetensors file; the header is checked against itself and the size."""
    size, head = where.size(name), bytearray()
    where.take(name, 0, min(_HEADER, size), head.extend)
    length = int.from_bytes(head[:8], "little")
    wrong = f"source: {name} of {where} is damaged"
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError(f"{wrong}: its header claims {length} bytes of a file of {size}; copy it anew")
    if len(head) < 8 + length:
        where.take(name, len(head), 8 + length, head.extend)
    try:
        header = json.loads(bytes(head[8 : 8 + length]))
        header.pop("__metadata__", None)
        for entry in header.values():
            start, stop = entry["data_offsets"]
            if not (isinstance(entry["dtype"], str) and all(type(n) is int and n >= 0 for n in (start, stop, *entry["shape"]))):
                raise ValueError(f"no tensor is described by {entry}")
        spans = sorted((*entry["data_offsets"], key) for key, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        short = str(error)[:200]
        raise ValueError(f"{wrong}: its header cannot be read ({type(error).__name__}: {short}); copy it anew") from error
    end = 0
    for start, stop, key in spans:
        entry = header[key]
        expected = math.prod(entry["shape"]) * _BYTES.get(entry["dtype"], 1)
        known = entry["dtype"] in _BYTES
        if start != end or stop < start or (known and stop - start != expected):
            raise ValueError(
                f"{wrong}: its header places {key} ({entry['dtype']}, {entry['shape']}) at bytes {start} to {stop}, "
                f"after {end}; copy it anew"
            )
        entry["span"] = start + 8 + length, stop + 8 + length
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"{wrong}: its header describes {end} bytes of tensors, it holds {size - 8 - length}; copy it anew")
    return header


def _entries(where: Folder | Hub, layout: _Layout) -> dict[str, dict[str, Any]]:
    """ "input" and perhaps "output" -> the header's entry of that table, checked to be one."""
    headers = {file: layout.read.get(file) or _header(where, file) for file in layout.files}
    found = {}
    for part, name in layout.held.items():
        file = layout.file[name]
        if name not in headers[file]:
            raise ValueError(f"source: the index of {where} places {name} in {file}, which does not hold it; copy it anew")
        entry = found[part] = {**headers[file][name], "file": file}
        _checked(part, name, entry["dtype"], entry["shape"], layout, where)
    _alike({part: tuple(entry["shape"]) for part, entry in found.items()}, where)
    return found


def _checked(part: str, name: str, dtype: str, shape: list[int], layout: _Layout, where: Folder | Hub) -> None:
    if dtype not in DTYPES:
        raise ValueError(
            f"source: the {part} table {name} of {where} is stored as {dtype}, quantised or not a floating dtype of "
            f"{', '.join(DTYPES)}; use the model's unquantised checkpoint"
        )
    rows = _vocabulary(layout.config)
    if len(shape) != 2 or shape[0] != rows:
        raise ValueError(
            f"source: the {part} table {name} of {where} has the shape {tuple(shape)}, config.json promises {rows} rows; "
            "one of them belongs to another model"
        )


def _alike(shapes: Mapping[str, tuple[int, ...]], where: Folder | Hub) -> None:
    if len(set(shapes.values())) > 1:
        raise ValueError(f"source: the input table of {where} is {shapes['input']}, its output table {shapes['output']}")


def _read_whole(where: Folder, layout: _Layout) -> dict[str, Tensor]:
    """The stored tables of a local folder, memory-mapped where the format allows."""
    if layout.pickled:
        return _unpickled(where, layout)
    found = {}
    for part, entry in _entries(where, layout).items():
        path = where.whole(entry["file"])
        try:
            with safe_open(path, "pt") as file:
                found[part] = file.get_tensor(layout.held[part])
        except SafetensorError as error:
            raise ValueError(f"source: {path} is damaged ({error}); copy it anew") from error
        where.bytes_read += found[part].nbytes
    return found


def _unpickled(where: Folder | Hub, layout: _Layout) -> dict[str, Tensor]:
    held, found = {file: layout.read.get(file) or _pickled(where, file) for file in layout.files}, {}
    for part, name in layout.held.items():
        tensor = held[layout.file[name]].get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"source: the index of {where} places {name} in {layout.file[name]}, which lacks it; copy it anew")
        dtype = next((stored for stored, dtype in DTYPES.items() if dtype == tensor.dtype), str(tensor.dtype))
        _checked(part, name, dtype, list(tensor.shape), layout, where)
        found[part] = tensor.detach().clone()  # of a mapped file: the rest is let go
    _alike({part: tuple(tensor.shape) for part, tensor in found.items()}, where)
    return found


def _pickled(where: Folder | Hub, name: str) -> dict[str, Tensor]:
    """The tensors of a .bin file, which is read whole; no code in it is run."""
    size = where.size(name)
    warnings.warn(f"{where}: it holds no safetensors; all {size / 1e9:.2f} GB of {name} are read", stacklevel=2)
    path = where.whole(name)
    if isinstance(where, Folder):
        where.bytes_read += size
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before PyTorch 1.6: such a file cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        short = str(error).splitlines()[0][:200]
        raise ValueError(f"source: {path} is damaged or holds more than tensors ({short}); use another checkpoint") from error


def _tied_or_not(
    where: Folder | Hub, layout: _Layout, held: dict[str, Tensor], source: str | Path, revision: str | None
) -> CheckpointTables:
    tied = "output" not in held or same_bytes(held["input"], held["output"])
    said = layout.config.get("tie_word_embeddings")
    if isinstance(said, bool) and said != tied:
        holds = "one table" if tied else "two tables that differ"
        warnings.warn(f"{where}: config.json says tie_word_embeddings = {said}, the checkpoint holds {holds}", stacklevel=4)
    output = held["input"] if tied else held["output"]
    return CheckpointTables(held["input"], output, tied, str(source), revision, where.commit, layout.names, where.bytes_read)


def _read(path: Path, mend: bool) -> dict[str, Any] | None:
    return files.read_or_set_aside(path) if mend else files.read_json(path)


class _Cache:
    """The tables that were read of one hub id, by commit: input.safetensors, output.safetensors and record.json, the
    commit point, in huggingface_hub's assets cache; and refs.json, which commit each branch was."""

    def __init__(self, repo: str, revision: str, names: tuple[str, str] | None) -> None:
        self.repo, self.revision, self.names = repo, revision, names
        self.asked = list(names) if names else None  # as JSON gives it back

    def folder(self, commit: str) -> Path:
        from huggingface_hub import cached_assets_path, constants

        return Path(cached_assets_path("tying_utils", self.repo, commit, assets_dir=constants.HF_ASSETS_CACHE))

    @property
    def lock(self) -> Path:
        return self.folder("refs") / ".lock"

    def tables(self, *, mend: bool) -> CheckpointTables | None:
        """What is held, verified; None if it is not, or no longer, whole. Who holds the lock may `mend`: set aside what is
        damaged."""
        refs = _read(self.folder("refs") / "refs.json", mend) or {}
        commit = refs.get(self.revision, self.revision)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            return None
        folder = self.folder(commit)
        record = self._record(folder, mend)
        if record is None or not record["whole"]:
            return None
        held = {part: _opened(folder / name) for part, name in record["parts"].items()}
        output = held["input"] if record["tied"] else held["output"]
        one, other = record["names"]
        return CheckpointTables(held["input"], output, record["tied"], self.repo, self.revision, commit, (one, other), 0)

    def fill(self, hub: Hub, progress: bool) -> CheckpointTables:
        """Read what is missing of the commit, a table at a time: an interrupted reading goes on with the next."""
        folder = self.folder(hub.commit)
        files.sweep(folder)
        layout = _layout(hub, self.names)
        record = self._record(folder, mend=True) or {
            "format": FORMAT,
            "asked": self.asked,
            "parts": {},
            "sha256": {},
            "whole": False,
        }
        if layout.pickled:
            self._keep(folder, record, _unpickled(hub, layout))
        else:
            entries = _entries(hub, layout)
            missing = {part: entry for part, entry in entries.items() if part not in record["parts"]}
            total = sum(entry["span"][1] - entry["span"][0] for entry in missing.values())
            bar = tqdm(
                total=total,
                desc=f"tables of {hub}",
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=not progress,
                leave=False,
            )
            with bar:
                for part, entry in missing.items():
                    self._stream(hub, folder, record, part, entry, bar)
        held = {part: _opened(folder / name) for part, name in record["parts"].items()}
        tables = _tied_or_not(hub, layout, held, self.repo, self.revision)
        record |= {"tied": tables.tied, "names": list(layout.names), "whole": True, "commit": hub.commit, "repo": self.repo}
        files.write_json(folder / "record.json", record)
        refs = files.read_json(self.folder("refs") / "refs.json") or {}
        files.write_json(self.folder("refs") / "refs.json", {**refs, self.revision: hub.commit})
        return tables

    def _record(self, folder: Path, mend: bool) -> dict[str, Any] | None:
        """The record of a commit's folder, of the files in it that are intact."""
        record = _read(folder / "record.json", mend)
        if record is None or record["format"] != FORMAT or record["asked"] != self.asked:
            return None
        parts: dict[str, str] = record["parts"]
        damaged = [part for part, name in parts.items() if not files.intact(files.inside(folder, name), record["sha256"][name])]
        for part in damaged:
            name = parts.pop(part)
            record["whole"] = False
            if mend:
                files.set_aside(folder / name, "it is missing or does not match its checksum")
        if damaged and mend:
            files.write_json(folder / "record.json", record)
        return record

    def _stream(self, hub: Hub, folder: Path, record: dict[str, Any], part: str, entry: dict[str, Any], bar: Any) -> None:
        """One table from the hub into a safetensors file of its own, never held in memory."""
        start, stop = entry["span"]
        head = json.dumps({"table": {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [0, stop - start]}})
        head += " " * (-len(head) % 8)
        with files.replacing(folder / f"{part}.safetensors") as temporary, temporary.open("wb") as file:
            content = hashlib.sha256()

            def give(chunk: bytes) -> None:
                file.write(chunk)
                content.update(chunk)

            def give_table(chunk: bytes) -> None:
                give(chunk)
                bar.update(len(chunk))

            give(len(head).to_bytes(8, "little") + head.encode())
            hub.take(entry["file"], start, stop, give_table)
        self._put(folder, record, part, content.hexdigest())

    def _keep(self, folder: Path, record: dict[str, Any], held: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        for part, tensor in held.items():
            path = folder / f"{part}.safetensors"
            content = files.write_with(path, lambda p, tensor=tensor: save_file({"table": tensor.contiguous()}, p))
            self._put(folder, record, part, content)

    def _put(self, folder: Path, record: dict[str, Any], part: str, content: str) -> None:
        name = f"{part}.safetensors"
        record["parts"][part], record["sha256"][name] = name, content
        files.write_json(folder / "record.json", record)


def _opened(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("table")
