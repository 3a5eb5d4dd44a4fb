"""What a run, or a whole profile of them, will cost on this machine: known before it trains, from shapes and a short probe."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tying_utils import models
from tying_utils.base.checks import positive
from tying_utils.corpora.corpus import Corpus
from tying_utils.models import balance
from tying_utils.study import profiles
from tying_utils.training import budget, pool, run_store
from tying_utils.training.config import TrainConfig
from tying_utils.training.hardware import Hardware, choose_hardware
from tying_utils.training.run_store import Writer
from tying_utils.training.trainer import Trainer

# A probe of large models ends after so many seconds, with fewer steps than it was asked for, but at least one.
PROBE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What training `config` here will cost. Sizes are bytes, times are seconds of wall clock."""

    config: TrainConfig
    device: str
    dtype: str  # that it trains in: "float32" or "bfloat16"
    parameters: int  # a tied table once
    table_share: float  # of the token tables among the parameters
    memory: int  # of the device, at the worst moment; the formula and its tolerance are in `budget`
    memory_free: int | None  # None where that cannot be known
    disk: int  # of the run's tensor files, once it is finished
    disk_peak: int  # the most there are while it trains
    disk_free: int
    # What the probe says; None where the run would not fit in memory, so that there was none.
    step_seconds: float | None = None  # the mean step
    rest_seconds: float = 0.0  # of all validations, tables and checkpoints together

    @property
    def fits(self) -> bool:
        """Return whether `training.train` would take it."""
        enough = self.memory_free is None or budget.fits(
            self.config, self.memory_free, getattr(torch, self.dtype), torch.device(self.device)
        )
        return enough and self.disk_peak <= self.disk_free

    @property
    def seconds(self) -> float | None:
        """Return the seconds of training, as run.json will count them; None without a probe."""
        return None if self.step_seconds is None else self.config.steps * self.step_seconds + self.rest_seconds

    def __str__(self) -> str:
        c = self.config
        free = "an unknown amount" if self.memory_free is None else budget.size(self.memory_free)
        cost = "not probed: it does not fit in memory"
        if self.seconds is not None and self.step_seconds is not None:
            cost = f"{duration(self.seconds)}: {c.steps} steps of {duration(self.step_seconds)}, {duration(self.rest_seconds)} "
            cost += "of validations and checkpoints"
        kind = ("tied" if c.tied else "untied") + (f", {c.remedy.name}" if c.remedy else "")
        return (
            f"model   {c.arch}, {kind}, {c.n_layers} layers, d {c.d_model}, V {c.vocab_size}: "
            f"{self.parameters:,} parameters, {self.table_share:.0%} of them in the tables\n"
            f"time    {cost}\n"
            f"memory  {budget.size(self.memory)} at the peak, on {self.device} in {self.dtype}; {free} free\n"
            f"disk    {budget.size(self.disk)}, at most {budget.size(self.disk_peak)}; {budget.size(self.disk_free)} free"
        )


def plan(config: TrainConfig, *, probe_steps: int = 10) -> Plan:
    """Return what training `config` on this machine will cost, from shapes and from `probe_steps` of its own steps.

    The probe trains after a step of warming up, in a folder of its own that is removed; no run is written, and torch's and
    numpy's generators stay as they were. It knows nothing of what else the machine will do. A run that does not fit in memory
    is not probed. Raises ValueError for probe_steps below 1 and as `training.train` does for a corpus or device.
    """
    probe_steps = positive("probe_steps", probe_steps)
    corpus = config.load_corpus()
    hardware = choose_hardware(config.device, config.dtype)
    parameters = budget.parameters(config)
    kept, peak = budget.disk(config)
    counted = Plan(
        config=config,
        device=hardware.device.type,
        dtype=str(hardware.dtype).removeprefix("torch."),
        parameters=parameters,
        table_share=1 - budget.trunk(config) / parameters,
        memory=budget.memory(config, hardware.dtype, hardware.device),
        memory_free=(free := budget.memory_free(hardware.device)),
        disk=kept,
        disk_peak=peak,
        disk_free=budget.disk_free(run_store.run_folder(config, corpus.fingerprint)),
    )
    if free is not None and not budget.fits(config, free, hardware.dtype, hardware.device):
        return counted
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _probed(counted, corpus, hardware, probe_steps)
    finally:
        torch.set_num_threads(threads)


def _probed(counted: Plan, corpus: Corpus, hardware: Hardware, probe_steps: int) -> Plan:
    # A checkpoint in mid-run costs more than the last one: it holds the state to resume from.
    steps = max(counted.config.steps, probe_steps + 2)
    config = counted.config.replace(steps=steps, validation_every=steps)
    with tempfile.TemporaryDirectory(prefix="tying-plan-") as folder:
        writer = Writer(Path(folder) / "run", config, corpus.fingerprint)
        trainer = Trainer(config, corpus, hardware, writer)  # of its own weights: those of a start cost as much

        def timed(work: Callable[[], object]) -> float:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began

        def step(number: int) -> float:
            return timed(lambda: float(trainer.step(number)[0]))  # waits for the device

        step(1)
        seconds: list[float] = []
        while (len(seconds) < probe_steps and sum(seconds) < PROBE_SECONDS) or not seconds:
            seconds.append(step(len(seconds) + 2))
        rest = -(-counted.config.steps // counted.config.validation_every) * timed(trainer.validate)
        rest += len(config.table_steps) * timed(lambda: writer.put_tables(0, models.tables(trainer.model)))
        rest += len(config.checkpoint_steps) * timed(lambda: trainer.commit(len(seconds) + 1, 0.0))
    return dataclasses.replace(counted, step_seconds=statistics.fmean(seconds), rest_seconds=rest)


@dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    """What the unfinished runs of a profile on one corpus will cost here: the training alone, not what is measured on them."""

    profile: str
    corpus: str
    runs: int  # in all
    plans: tuple[tuple[Plan, int], ...]  # of each kind of missing run, and how many of them there are
    workers: int  # processes that train side by side

    @property
    def missing(self) -> int:
        """Return how many runs are not finished."""
        return sum(count for _, count in self.plans)

    @property
    def seconds(self) -> float | None:
        """Return the seconds of all missing runs, shared evenly among the workers; None if one of them was not probed.

        A probe runs alone: where workers wait for the same memory, each is slower.
        """
        each = [plan.seconds for plan, _ in self.plans]
        if any(seconds is None for seconds in each):
            return None
        together = sum(seconds * count for seconds, (_, count) in zip(each, self.plans, strict=True) if seconds)
        return max(together / self.workers, max((seconds for seconds in each if seconds), default=0.0))

    @property
    def disk(self) -> int:
        """Return the bytes that the missing runs leave."""
        return sum(plan.disk * count for plan, count in self.plans)

    def __str__(self) -> str:
        head = f"{self.profile} on {self.corpus}: {self.missing} of {self.runs} runs are missing"
        if not self.plans:
            return head
        took = "not probed: a run does not fit in memory" if self.seconds is None else duration(self.seconds)
        largest = max((plan for plan, _ in self.plans), key=lambda plan: plan.memory)
        return (
            f"{head}\n"
            f"time    {took}, {self.workers} at a time\n"
            f"memory  {budget.size(largest.memory)} at the peak of the largest, on {largest.device} in {largest.dtype}\n"
            f"disk    {budget.size(self.disk)}; {budget.size(largest.disk_free)} free"
        )


def plan_profile(profile: str, corpus: str | None = None, *, probe_steps: int = 10) -> ProfilePlan:
    """Return what the missing runs of `profile` on `corpus` (default: its first) will cost: one probe of each kind.

    Seeds and scales make no kind of their own. A run counts as finished if its record says so; its files are not verified.
    Raises ValueError for a profile or corpus that is unknown, and as `plan` does.
    """
    of = profiles.get(profile, corpus)
    configs = list(dict.fromkeys(of.config(arm, seed) for seed in of.seeds for arm in of.arms if seed in of.seeds_of(arm)))
    missing = [config for config in configs if not run_store.is_finished(config, config.load_corpus().fingerprint)]
    kinds: dict[TrainConfig, list[TrainConfig]] = {}
    for config in missing:
        kinds.setdefault(_kind(config), []).append(config)
    plans = tuple((plan(alike[0], probe_steps=probe_steps), len(alike)) for alike in kinds.values())
    on_cpu = all(of.device == "cpu" for of, _ in plans)
    workers = pool.workers_for(missing) if on_cpu else 1
    workers = min(workers, len(missing) or 1)
    return ProfilePlan(profile=of.name, corpus=of.corpus, runs=len(configs), plans=plans, workers=workers)


def _kind(config: TrainConfig) -> TrainConfig:
    """Return what runs that cost the same have in common."""
    language = config.language and dataclasses.replace(config.language, seed=0, agreement=0.0, permuted=None)
    # A rule that weighs two gradients adds a few per cent to a step at most: not worth a probe of its own.
    remedy = None if isinstance(config.remedy, balance.PathRule) else config.remedy
    alike = {"init_seed": 0, "data_seed": 0, "input_scale": 1.0, "output_scale": 1.0, "remedy": remedy, "start": None}
    return config.replace(**alike, language=language)


def duration(seconds: float) -> str:
    """Return `seconds` in words, two or three digits: "4.2 ms", "12 s", "3.5 min", "1.2 h"."""
    for limit, unit, of in ((1, "ms", 1e-3), (120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / of:.{1 if seconds / of < 10 else 0}f} {unit}"
    return f"{seconds / 86_400:,.0f} days"
