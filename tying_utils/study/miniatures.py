"""Miniatures of the public models: the same architectures and the same files, trained here in a minute, for where no hub is.

    data/miniatures/EleutherAI/pythia-1b/            the model as transformers saves it, its tokenizer, record.json
    data/miniatures/EleutherAI/pythia-1b/step90/     and what it was after 90 steps

A miniature is no small copy of the public model: it shows how each measure goes, on files as the hub serves them. What it
shares with its model is the architecture, the tie, the dtype, the shards, padded rows, and the names of revisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tying_utils import corpora
from tying_utils.base import files, paths
from tying_utils.base.folder import VerifiedFolder
from tying_utils.base.quiet import quiet
from tying_utils.corpora.corpus import SEPARATOR
from tying_utils.models.families import Model, families
from tying_utils.training import run_store, train_all
from tying_utils.training.config import TrainConfig
from tying_utils.training.run_store import Run

# Part of every record: raise it when the same run would give other folders.
FORMAT = 1
_PAD = 64  # a padded table has a multiple of so many rows
_TRAINING: dict[str, Any] = {"context": 64, "batch_size": 8, "steps": 300, "warmup_steps": 75, "table_snapshots": 2}
_TRAINING |= {"checkpoint_every": 30, "validation_every": 300, "n_layers": 2, "n_heads": 2}
_SMOKE: dict[str, Any] = {"context": 32, "batch_size": 4, "steps": 20, "warmup_steps": 5, "checkpoint_every": 4}
# Rows and width where they differ between models, as they do between the public ones.
_OWN: dict[str, dict[str, int]] = {
    "GPT-Neo-2.7B": {"vocab_size": 1792},  # another tokenizer than Pythia's
    "Qwen3-8B": {"d_model": 96},
    "OLMo-7B-0424": {"d_model": 96},
}


def config(model: Model, profile: str = "quick") -> TrainConfig:
    """Return the run of the miniature of `model`, on Python's standard library; each model starts from a seed of its own."""
    own = _OWN.get(model.name, {})
    values: dict[str, Any] = {"vocab_size": 2000, "d_model": 64, **_TRAINING, **own}
    if profile == "smoke":
        values |= _SMOKE | {"vocab_size": 300 if own.get("vocab_size") else 340, "d_model": own.get("d_model", 64) // 4}
    seed = sum(model.name.encode()) % 1000  # any, but a different one for each
    return TrainConfig(arch=model.arch, tied=model.tied, init_seed=seed, **values)


def keys(wanted: Iterable[Model], profile: str = "quick") -> list[str]:
    """Return the key of the run of each model's miniature, as it is configured now."""
    configs = [config(model, profile) for model in wanted]
    fingerprints = {size: corpora.load("python", vocab_size=size).fingerprint for size in {c.vocab_size for c in configs}}
    return [run_store.run_key(c, fingerprints[c.vocab_size]) for c in configs]


def folders(wanted: Iterable[Model], profile: str = "quick", *, progress: bool = True) -> dict[str, Path]:
    """Return name -> folder of the miniature of each of the `wanted` models, trained and saved where it is missing or damaged.

    A miniature whose model's training is followed has a revision for every checkpoint; that of Pythia-1B carries the faults of
    the public series on purpose (see `PLANTED`).
    """
    wanted = list(wanted)
    runs = train_all([config(model, profile) for model in wanted], progress=progress)
    return {model.name: _saved(model, run, profile) for model, run in zip(wanted, runs, strict=True)}


# Of one miniature, what the public Pythia checkpoints are known for (EleutherAI/pythia issues 83, 195): place -> true step.
PLANTED: dict[str, dict[int, int]] = {"Pythia-1B": {1: 0, 2: -1}}


def _saved(model: Model, run: Run, profile: str) -> Path:
    top = paths.root() / "data" / "miniatures"
    folder = (top / profile if profile == "smoke" else top) / model.source
    held = VerifiedFolder(folder, "record.json", lock=folder.parent / f".{folder.name}.lock")
    with held.alone():
        record = held.read()
        if record is None and folder.exists():
            files.set_aside(folder, "its record.json is missing or does not match its checksum")
        elif record is not None and (record["format"], record["run"]) == (FORMAT, run.key):
            if not held.damaged(record["files"]):
                return folder
            files.set_aside(folder, "a file in it is missing or does not match its checksum")
        with held.remade() as whole, quiet():
            _write(model, run, whole)
            written = {p.relative_to(whole).as_posix(): files.digest(p) for p in sorted(whole.rglob("*")) if p.is_file()}
            VerifiedFolder(whole, "record.json").commit({"format": FORMAT, "run": run.key, "files": written})
    return folder


def _write(model: Model, run: Run, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=run.config.load_corpus().tokenizer, eos_token=SEPARATOR)
    _save(model, run, run.config.steps, folder)
    tokenizer.save_pretrained(folder)
    if not any(model in family.evolution for family in families().values()):
        return
    steps = [0, *run.model_steps]
    planted = {place: steps[true] for place, true in PLANTED.get(model.name, {}).items()}
    for place, step in enumerate(steps):
        tokens = f"-tokens{step * run.config.batch_size * run.config.context // 10**9}B" if model.arch == "olmo" else ""
        _save(model, run, planted.get(place, step), folder / f"step{step}{tokens}")


def _save(model: Model, run: Run, step: int, folder: Path) -> None:
    """Save the run's model after `step` steps, padded, cast and sharded as the public one is stored."""
    whole = run.model(step) if step else run_store.build_model(run.config)
    if model.rows > model.tokens:
        rows = math.ceil((run.config.vocab_size + 1) / _PAD) * _PAD
        with torch.random.fork_rng(devices=[]):  # what pads a table is drawn, and never trained
            torch.manual_seed(0)
            whole.resize_token_embeddings(rows, mean_resizing=False)
    whole.to(dtype=getattr(torch, model.dtype))  # type: ignore[call-arg]
    whole.tie_weights()
    size = sum(p.numel() * p.element_size() for p in whole.parameters())
    whole.save_pretrained(folder, max_shard_size=size // 2 if model.shards else size + 10**6)
