"""Public checkpoints: read the two token tables and nothing else.

    tables = read_tables("allenai/OLMo-1B-hf")    # a hub id or a local folder
    tables.tied, tables.output.shape, tables.bytes_read

A safetensors file says in its header where each tensor lies; the header is read, then each table in one ranged read, straight
to a cache. The whole of OLMo-7B is 28 GB, its tables are 1.6 GB.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tying_utils.base import checks, files, hub
from tying_utils.base.console import tqdm
from tying_utils.base.folder import VerifiedFolder
from tying_utils.base.hub import Folder, Hub, Source
from tying_utils.measures.integrity import same_bytes
from tying_utils.models import gguf_file
from tying_utils.models.architectures import Tables
from tying_utils.models.families import Family, Model, families
from tying_utils.models.layout import Layout, Stored, find

__all__ = ["CheckpointTables", "Family", "Model", "families", "read_tables", "steps"]

# Part of every cached record: raise it when the same checkpoint would give other tables. In 1, a single table was taken for
# tied without a look at the names that are not known.
FORMAT = 2
# step1000, step1000-tokens2B (Pythia, OLMo), global_step1000 (BLOOM), checkpoint-1000 (Trainer), ckpt_100, iter_0001000; after
# a stage, if there are some: stage2-ingredient1-step1000-tokens5B (OLMo 2 and 3), stage1-step-40000 (SmolLM3).
_STEP = re.compile(
    r"(?:(?P<stage>(?!global[-_]?step).+?)[-_])?(?:global[-_]?step|step|checkpoint|ckpt|iter)[-_]?(?P<step>\d+)"
    r"(?:[-_]tokens[-_]?\d+(?:\.\d+)?[KMBT])?"
)


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
    rows: int | None = None,
    refresh: bool = False,
    progress: bool = True,
) -> CheckpointTables:
    """Read the input and output tables of a causal language model, from the hub or a local folder, and nothing else of it.

    source: a hub id, or a folder as transformers saves it; float32, float16 or bfloat16 safetensors, single or sharded. A
    checkpoint that has only PyTorch's .bin files is read whole (with weights_only=True, memory-mapped), with a warning. Or a
    .gguf file, as `gguf_file.read` reads it, into memory.
    revision: branch, tag or commit on the hub; of a local folder a folder in it. names: of the two tensors, for a model whose
    tables are called otherwise than `INPUT_NAMES` and `OUTPUT_NAMES` of `models.layout` say; the same one twice for a tie.
    rows: keep the first so many of each table, for one whose tables have more than its configuration says (padding, or images
    that only the input table has).

    The tie is read from the checkpoint: one table, or two that are equal byte for byte, is tied; a configuration that says
    otherwise is warned of. What came from the hub lies by commit, with a sha256, in huggingface_hub's assets cache: a second
    call, of the same branch too, reads no network. `refresh` asks again where the branch is.

    Raises ValueError for a source, revision or file that is not there, a gated model, a configuration without a vocabulary, a
    model without an output table (an encoder), another table beside the only one whose name is known, tables of more or fewer
    rows than the configuration says (its text's, where it has more parts), quantised tables, a file that is none of weights (a
    git-lfs pointer, an HTML page), and a file whose header contradicts itself or its size;
    `hub.Unreachable`, a ValueError and an OSError, where the hub cannot be reached or read.
    """
    if rows is not None:
        checks.positive("rows", rows)
    if revision is not None:
        checks.text("revision", revision)
    if names is not None and not (isinstance(names, tuple | list) and [*map(type, names)] == [str, str]):
        raise ValueError(f"names: two tensors' names (input, output) are needed, the same twice for a tie, got {names!r:.80}")
    if (path := checks.path("source", source)).suffix.lower() == ".gguf" and not path.is_dir():
        return _from_gguf(path, names, rows, source, revision)
    if (where := hub.local(source, revision)) is not None:
        return _from_folder(where, names, rows, source, revision)
    cache = _Cache(hub.checked_id(source), revision or "main", names, rows)
    if not refresh and (held := cache.tables(repair=False)) is not None:
        return held
    with cache.refs.alone():
        if not refresh and (held := cache.tables(repair=True)) is not None:  # another process was faster
            return held
        return cache.fill(Hub(cache.repo, revision), progress)


def steps(source: str | Path, stage: str | None = None) -> dict[int, str]:
    """Return training step -> revision, in order, of a model whose revisions are called as in step1000 or step1000-tokens2B.

    source as in `read_tables`; of a local folder its folders. Other styles that are read: global_step1000, step-1000,
    checkpoint-1000, ckpt-1000, iter-1000, with "_" or nothing for "-". stage: what comes before that, as in
    stage1-step1000-tokens5B, where steps count anew in each; by default those without one, else the first stage, with a warning
    that names the others.

    Raises ValueError if it has none, with the names that it has, and for a stage that it has not, else as `read_tables`.
    """
    if stage is not None:
        checks.text("stage", stage)
    names = hub.branches(source)
    stages: dict[str, dict[int, str]] = {}
    for name in sorted(names):
        if found := _STEP.fullmatch(name):
            stages.setdefault(found["stage"] or "", {}).setdefault(int(found["step"]), name)
    if not stages:
        if not (others := [name for name in names if name != "main"]):
            known = "it has no other revisions, its checkpoints are not public or lie elsewhere"
        else:
            more = f" and {len(others) - 12} more" if len(others) > 12 else ""
            known = f"it has {', '.join(others[:12])}{more}; give one of them to read_tables as revision"
        raise ValueError(f"source: {source} has no revision called step0, step1000 or the like; {known}")
    if unread := [name for name in names if not _STEP.fullmatch(name) and re.search(r"(step|iter|ckpt|checkpoint)\D?\d", name)]:
        warnings.warn(f"{source}: not read as steps: {', '.join(unread[:12])}", stacklevel=2)
    ordered = sorted(stages, key=lambda name: (name != "", not name.startswith("stage"), name))
    if stage is None and len(ordered) > 1:
        first, *rest = (repr(name) for name in ordered)
        warnings.warn(f"{source}: steps of stage {first}; it has others, as stage={', '.join(rest)}", stacklevel=2)
    if stage is not None and stage not in stages:
        raise ValueError(f"stage: {source} has {', '.join(map(repr, ordered))}, got {stage!r}")
    return dict(sorted(stages[ordered[0] if stage is None else stage].items()))


def _from_gguf(
    path: Path, names: tuple[str, str] | None, rows: int | None, source: str | Path, revision: str | None
) -> CheckpointTables:
    if revision is not None or not path.is_file():
        problem = (
            f"revision: {path} has no revisions, got {revision!r}" if path.is_file() else f"source: there is no file {path}"
        )
        raise ValueError(f"{problem}; give the path of a GGUF file, and no revision")
    held, called, size = gguf_file.read(path, names, rows)
    output = held.get("output", held["input"])
    tied = same_bytes(held["input"], output)
    of_both = called["input"], called.get("output", called["input"])
    return CheckpointTables(held["input"], held["input"] if tied else output, tied, str(source), None, None, of_both, size)


def _from_folder(
    where: Folder, names: tuple[str, str] | None, rows: int | None, source: str | Path, revision: str | None
) -> CheckpointTables:
    """Read the tables of a local folder, memory-mapped where the format allows."""
    layout, held = find(where, names, rows), {}
    for part, one in layout.stored.items():
        if one.tensor is not None:
            held[part] = one.tensor[:rows]
            continue
        path = where.whole(one.file)
        try:
            held[part] = _opened(path, layout.held[part])[:rows]
        except SafetensorError as error:
            raise ValueError(f"source: {path} is damaged ({error}); copy it anew") from error
        where.bytes_read += held[part].nbytes
    tied = _tied(held, layout, where)
    output = held["input"] if tied else held["output"]
    return CheckpointTables(held["input"], output, tied, str(source), revision, None, layout.names, where.bytes_read)


def _tied(held: dict[str, Tensor], layout: Layout, where: Source) -> bool:
    """Tell whether the checkpoint holds one table, or two that are equal; warn if its configuration says otherwise."""
    tied = "output" not in held or same_bytes(held["input"], held["output"])
    if layout.said is not None and layout.said != tied:
        holds = "one table" if tied else "two tables that differ"
        warnings.warn(
            f"{where}: config.json says tie_word_embeddings = {layout.said}, the checkpoint holds {holds}", stacklevel=4
        )
    return tied


def _opened(path: Path, name: str = "table") -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


class _Cache:
    """The tables that were read of one hub id, in huggingface_hub's assets cache: a folder per commit, with a file per table
    and record.json; and the folder refs, whose refs.json says which commit each branch was."""

    def __init__(self, repo: str, revision: str, names: tuple[str, str] | None, rows: int | None) -> None:
        self.repo, self.revision, self.names, self.rows = repo, revision, names, rows
        self.asked = list(names) if names else None  # as JSON gives it back
        if rows is not None:
            self.asked = [*(names or ()), rows]
        self.refs = VerifiedFolder(self._path("refs"), "refs.json")

    def _path(self, commit: str) -> Path:
        from huggingface_hub import cached_assets_path, constants

        return Path(cached_assets_path("tying_utils", self.repo, commit, assets_dir=constants.HF_ASSETS_CACHE))

    def tables(self, *, repair: bool) -> CheckpointTables | None:
        """Return what is held, verified; None if it is not, or no longer, whole."""
        commit = (self.refs.read(repair=repair) or {}).get(self.revision, self.revision)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            return None
        folder = VerifiedFolder(self._path(commit), "record.json")
        record = self._record(folder, repair)
        return self._made(commit, record, self._held(folder, record), 0) if record and record["whole"] else None

    def fill(self, where: Hub, progress: bool) -> CheckpointTables:
        """Read what is missing of the commit, a table at a time: an interrupted reading goes on with the next."""
        folder = VerifiedFolder(self._path(where.commit), "record.json")
        files.sweep(folder.path)
        layout = find(where, self.names, self.rows)
        new = {"format": FORMAT, "asked": self.asked, "parts": {}, "sha256": {}, "whole": False}
        record = self._record(folder, repair=True) or new
        missing = {part: one for part, one in layout.stored.items() if part not in record["parts"]}
        size = sum(one.span[1] - one.span[0] for one in missing.values())
        shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
        with tqdm(total=size, desc=f"tables of {where}", disable=not (progress and size), **shown) as bar:
            for part, one in missing.items():
                name = f"{part}.safetensors"
                record["sha256"][name] = folder.write(name, partial(_write, one=one, where=where, advance=bar.update))
                record["parts"][part] = name
                folder.commit(record)
        held = self._held(folder, record)
        tied = _tied(held, layout, where)
        record |= {"tied": tied, "names": list(layout.names), "whole": True, "commit": where.commit, "repo": self.repo}
        folder.commit(record)
        self.refs.commit({**(self.refs.read() or {}), self.revision: where.commit})
        return self._made(where.commit, record, held, where.bytes_read)

    def _made(self, commit: str, record: dict[str, Any], held: dict[str, Tensor], bytes_read: int) -> CheckpointTables:
        tied, (one, other) = record["tied"], record["names"]
        output = held["input"] if tied else held["output"]
        return CheckpointTables(held["input"], output, tied, self.repo, self.revision, commit, (one, other), bytes_read)

    def _held(self, folder: VerifiedFolder, record: dict[str, Any]) -> dict[str, Tensor]:
        return {part: _opened(folder.path / name)[: self.rows] for part, name in record["parts"].items()}

    def _record(self, folder: VerifiedFolder, repair: bool) -> dict[str, Any] | None:
        """Return the record of a commit's folder, of the files in it that are intact."""
        record = folder.read(repair=repair)
        if record is None or record["asked"] != self.asked:
            return None
        parts: dict[str, str] = record["parts"]
        if record["format"] != FORMAT and (record["format"] != 1 or not (self.asked or "output" in parts)):
            return None
        if damaged := folder.damaged({name: record["sha256"][name] for name in parts.values()}, repair=repair):
            record |= {"parts": {part: name for part, name in parts.items() if name not in damaged}, "whole": False}
            if repair:
                folder.commit(record)
        return record


def _write(path: Path, one: Stored, where: Hub, advance: Callable[[int], object]) -> None:
    """Write one table as a safetensors file of its own: streamed from the hub, never held in memory."""
    if one.tensor is not None:
        from safetensors.torch import save_file

        return save_file({"table": one.tensor.contiguous()}, path)
    start, stop = one.span
    head = json.dumps({"table": {"dtype": one.dtype, "shape": one.shape, "data_offsets": [0, stop - start]}})
    head += " " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head.encode())
        where.take(one.file, start, stop, lambda chunk: advance(file.write(chunk)))
