"""Runs on disk: one folder per configuration, written atomically, verified by checksum, resumable.

    data/runs/olmo-tied-0123456789abcdef/
      run.json                      configuration, corpus fingerprint, versions, and the sha256 of every file below
      metrics-000400.parquet        a row per step
      tables/step-000000.safetensors ...
      weights/step-000100.safetensors ...
      model/                        the finished model, an ordinary Hugging Face folder
      resume-000100.safetensors     only while it trains: the optimizer's state

run.json is the commit point: what it does not name does not count, what it names is verified before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tying_utils import models
from tying_utils.base import files, paths
from tying_utils.base.folder import VerifiedFolder
from tying_utils.base.quiet import quiet
from tying_utils.models.architectures import Tables
from tying_utils.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Part of every key: raise it when the same configuration would give another run.
FORMAT = 1


def run_key(config: TrainConfig, fingerprint: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of sha256 over the configuration, the corpus fingerprint and the format version."""
    return hashlib.sha256(json.dumps([FORMAT, _keyed(config), fingerprint], sort_keys=True).encode()).hexdigest()[:16]


def _keyed(config: TrainConfig) -> dict[str, Any]:
    """Return the fields that a run is keyed by. A text counts by its content, which the fingerprint holds, not by its path."""
    values = {name: value for name, value in config.as_dict().items() if name != "path"}
    for name in ("language", "remedy", "start"):  # a run without one keeps the key that it had before there were any
        if values[name] is None:
            del values[name]
    return values | {"start": _keyed(config.start)} if config.start else values


def run_folder(config: TrainConfig, fingerprint: dict[str, Any]) -> Path:
    """Return where the run of `config` on that corpus lies, finished or not."""
    return paths.runs() / f"{config.arch}-{'tied' if config.tied else 'untied'}-{run_key(config, fingerprint)}"


def _verified(folder: Path) -> VerifiedFolder:
    return VerifiedFolder(folder, "run.json", lock=folder.with_suffix(".lock"))


def weight_names(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the model's parameters by name, a tied table once, under the embedding's name."""
    head: Any = model.get_output_embeddings()
    drop = {id(head.weight)} if models.tables(model).tied else set()
    embedding: Any = model.get_input_embeddings()
    drop -= {id(embedding.weight)}
    return {name: p for name, p in model.named_parameters() if id(p) not in drop}


def load_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into `model` in place; ValueError if names or shapes differ."""
    own = weight_names(model)
    if {n: p.shape for n, p in own.items()} != {n: w.shape for n, w in weights.items()}:
        raise ValueError(f"weights: names or shapes differ from those of {type(model).__name__} of this configuration")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


@dataclass(frozen=True)
class Run:
    """A finished run. Made by `training.train` or `find`, which verify every file first."""

    folder: Path
    config: TrainConfig
    record: dict[str, Any]  # run.json: how it was made

    @property
    def key(self) -> str:
        return self.record["key"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the corpus it was trained on."""
        return self.record["corpus"]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return a row per step; the columns are those of `training.METRICS`."""
        return pd.read_parquet(self.folder / _metrics_name(self.config.steps))

    @property
    def checkpoints(self) -> list[int]:
        """Return the steps at which the tables are kept, in order, the first 0 and the last the end of training."""
        return self.config.table_steps

    @property
    def model_steps(self) -> list[int]:
        """Return the steps at which the whole model is kept, in order."""
        return self.config.checkpoint_steps

    def tables(self, step: int | None = None) -> Tables:
        """Return the tables (V, d), float32 on the CPU, after `step` optimizer steps (default: the last)."""
        step = self._step(step, self.checkpoints, "tables")
        loaded = load_file(self.folder / _tables_name(step))
        return Tables(loaded["input"], loaded.get("output", loaded["input"]), self.config.tied_after(step))

    def model(self, step: int | None = None, *, device: str | torch.device = "cpu") -> PreTrainedModel:
        """Return the model after `step` optimizer steps (default: the last), float32, in evaluation mode."""
        step = self._step(step, self.model_steps, "the whole model")
        model = build_model(self.config, step)
        weights = load_file(self.folder / _weights_name(step, self.config.steps))
        if step == self.config.steps and set(weights) != set(weight_names(model)):
            # transformers saves tensors of some families under other names than the model's own, and reads them back.
            with quiet():
                model = type(model).from_pretrained(self.folder / "model", dtype=torch.float32)
        else:
            load_weights(model, weights)
        model = model.to(device)  # type: ignore[arg-type]
        model.tie_weights()
        return model.eval()

    def _step(self, step: int | None, kept: list[int], what: str) -> int:
        step = self.config.steps if step is None else step
        if step not in kept:
            raise ValueError(f"step: {what} after step {step} was not kept; choose one of {kept}")
        return step


def build_model(config: TrainConfig, step: int = 0) -> PreTrainedModel:
    """Return a fresh model of `config`, as training starts from; with as many tables as it has after `step` steps."""
    return models.build(config.arch, tied=config.tied_after(step), seed=config.init_seed, **config.sizes)


def opened(folder: str | Path) -> Run:
    """Return the finished run in `folder`, wherever it lies, verified whole and left as it is.

    Raises ValueError where there is none, where it is unfinished or of another format (with the command that goes on with it
    or makes it again), and where a file is damaged or lies elsewhere than in the folder.
    """
    folder = Path(folder)
    record = (held := _verified(folder)).read()
    if record is None or not all(isinstance(record.get(name), dict) for name in ("config", "corpus", "files")):
        raise ValueError(
            f"folder: {folder} holds no run.json, or a damaged one; give the folder of a run, as in {paths.runs()}"
        )
    defaults = TrainConfig().as_dict()
    changed = {name: value for name, value in record["config"].items() if value != defaults.get(name, ...)}
    command = f"`tying-utils train --config {shlex.quote(json.dumps(changed))}`"
    if (found := record.get("format")) != FORMAT:
        raise ValueError(f"folder: {folder} is of format {found!r}, not {FORMAT}; {command} makes the run in this one")
    if record.get("finished") is not True:
        raise ValueError(f"folder: the run in {folder} is not finished; where it is trained, {command} goes on with it")
    config = TrainConfig.from_dict(record["config"])
    damaged = held.damaged(record["files"])
    if damaged or record.get("key") != run_key(config, record["corpus"]):
        which = ", ".join(damaged) or "run.json"
        raise ValueError(f"folder: {which} in {folder} is missing, or not as it was written; copy the folder anew")
    return Run(folder, config, record)


def is_finished(config: TrainConfig, fingerprint: dict[str, Any]) -> bool:
    """Return whether the run of `config` on that corpus says that it is finished; its files are not looked at."""
    record = _verified(run_folder(config, fingerprint)).read()
    return record is not None and record["finished"]


def find(config: TrainConfig, fingerprint: dict[str, Any]) -> Run | None:
    """Return the finished run of `config` on the corpus with `fingerprint`, verified whole; None if there is none.

    A damaged file is named in a warning and set aside, after which the run counts as unfinished: training makes it again.
    """
    verified = _verified(run_folder(config, fingerprint))
    if not verified.record.exists():
        return None
    record = verified.read()
    if record is not None and not record["finished"]:
        return None  # the lock of a run in training is held to its end, which nobody here has to wait for
    with writing(config, fingerprint) as writer:
        return writer.finished()


@contextmanager
def writing(config: TrainConfig, fingerprint: dict[str, Any]) -> Iterator[Writer]:
    """Hold the run's folder alone: a second process that wants the same run waits, then finds it finished."""
    folder = run_folder(config, fingerprint)
    if folder.exists() and not os.access(folder, os.W_OK):  # a finished run is read from there, and nothing else is to be done
        yield Writer(folder, config, fingerprint)
        return
    with _verified(folder).alone("tables", "weights", "model"):
        yield Writer(folder, config, fingerprint)


class Writer:
    """Put files into a run's folder and commits them. Use it through `writing`."""

    def __init__(self, folder: Path, config: TrainConfig, fingerprint: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self._held, self._fingerprint = _verified(folder), fingerprint
        self._files: dict[str, str] = {}
        self.step = 0  # of the last commit; 0 where training starts anew
        self.seconds = 0.0  # of training, up to the last commit
        for left in folder.glob(".model.*"):  # of a killed process
            shutil.rmtree(left)
        self._record = self._committed()

    def _committed(self) -> dict[str, Any] | None:
        """Return the committed record if every file that it names is intact; otherwise set aside what is damaged."""
        record = self._held.read()
        if record is None:
            if self._held.record.exists():
                files.set_aside(self.folder, "its run.json is damaged")
            return None
        if self._held.damaged(record["files"], repair=True):
            # What is left is kept until it is made again; training starts anew, to the same bytes.
            self._held.record.unlink()
            return None
        self._files = dict(record["files"])
        self.step, self.seconds = record["step"], record["made"]["seconds"]
        for pattern in ("metrics-*.parquet", "resume-*.safetensors"):  # superseded, or of a commit that never was
            for file in self.folder.glob(pattern):
                if file.name not in self._files:
                    file.unlink()
        return record

    def finished(self) -> Run | None:
        """Return the run, if it is finished and intact."""
        if self._record is None or not self._record["finished"]:
            return None
        return Run(self.folder, self.config, self._record)

    @property
    def weights(self) -> Path | None:
        """Return the file of the model as it was at the last commit; None where training starts anew."""
        return self.folder / _weights_name(self.step, self.config.steps) if self.step else None

    @property
    def kept(self) -> str:
        """Return in words what a run that ends here leaves, and what goes on with it."""
        if not self.step:
            return "nothing of it is kept yet: the same call starts it anew"
        return f"step {self.step} is kept in {self.folder}: the same call goes on from there"

    def put_tables(self, step: int, tables: Tables) -> None:
        held = {"input": tables.input} if tables.tied else {"input": tables.input, "output": tables.output}
        self._put_tensors(_tables_name(step), held)

    def commit(
        self,
        step: int,
        model: PreTrainedModel,
        resume: dict[str, Tensor],
        metrics: pd.DataFrame,
        made: dict[str, Any],
    ) -> Run | None:
        """Commit all that was put so far, the weights, the state to resume from and the metrics. Return the run, at its end."""
        finished = step == self.config.steps
        if finished:
            self._put_model(model)
        else:
            weights = {name: p.detach() for name, p in weight_names(model).items()}
            self._put_tensors(_weights_name(step, self.config.steps), weights)
            self._put_tensors(_resume_name(step), resume)
        name = _metrics_name(step)
        self._files[name] = self._held.write(name, lambda path: metrics.to_parquet(path, index=False))
        stale = [_metrics_name(self.step), _resume_name(self.step)] if self.step else []
        for name in stale:
            self._files.pop(name, None)
        self._record = {
            "format": FORMAT,
            "key": run_key(self.config, self._fingerprint),
            "config": self.config.as_dict(),
            "corpus": self._fingerprint,
            "finished": finished,
            "step": step,
            "files": dict(self._files),
            "made": made,
        }
        self._held.commit(self._record)
        for name in stale:  # only now: until the line above they were what a killed run resumes from
            (self.folder / name).unlink(missing_ok=True)
        self.step = step
        return self.finished()

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Tensor], pd.DataFrame]:
        """Return weights, optimizer state and metrics of the last commit."""
        return (
            load_file(self.folder / _weights_name(self.step, self.config.steps)),
            load_file(self.folder / _resume_name(self.step)),
            pd.read_parquet(self.folder / _metrics_name(self.step)),
        )

    def _put_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self._files[name] = self._held.write(name, lambda path: save_file(held, path))

    def _put_model(self, model: PreTrainedModel) -> None:
        target = self.folder / "model"
        temporary_folder = tempfile.TemporaryDirectory(dir=self.folder, prefix=".model.")
        with temporary_folder as temporary, files.naming_a_full_disk(target), quiet():
            model.save_pretrained(temporary)
            target.mkdir(exist_ok=True)  # what was set aside in it stays
            for file in sorted(Path(temporary).iterdir()):
                self._files[f"model/{file.name}"] = files.digest(file)
                file.chmod(0o644)
                file.replace(target / file.name)


class Onlooker:
    """Stand in for the `Writer` on the other ranks than the first: nothing is written and there is nothing to resume from."""

    step, seconds, weights, kept = 0, 0.0, None, "what rank 0 has written is kept"

    def finished(self) -> None:
        """Return None: rank 0 knows."""

    def put_tables(self, step: int, tables: Tables) -> None:
        """Write nothing: rank 0 does."""

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Tensor], pd.DataFrame]:
        """Return nothing: rank 0 hands out what it reads."""
        return {}, {}, pd.DataFrame()


def _tables_name(step: int) -> str:
    return f"tables/step-{step:06d}.safetensors"


def _weights_name(step: int, last: int) -> str:
    return "model/model.safetensors" if step == last else f"weights/step-{step:06d}.safetensors"


def _resume_name(step: int) -> str:
    return f"resume-{step:06d}.safetensors"


def _metrics_name(step: int) -> str:
    return f"metrics-{step:06d}.parquet"
