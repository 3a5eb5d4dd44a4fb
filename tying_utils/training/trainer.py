"""Configuration to run: train one arm, or several side by side."""

import gc
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tying_utils import models
from tying_utils.corpora.store import Corpus
from tying_utils.measures import gradients
from tying_utils.models import balance
from tying_utils.models.reparameterise import Folded
from tying_utils.models.tie import SplitTie
from tying_utils.training import budget, gpu, optimizers, run_store, sentinels
from tying_utils.training.config import DTYPES, TrainConfig
from tying_utils.training.next_token import LOGITS_AT_ONCE, NextTokenLoss
from tying_utils.training.ranks import Ranks
from tying_utils.training.run_store import Onlooker, Run, Writer

__all__ = ["METRICS", "Hardware", "Run", "TrainConfig", "choose_hardware", "train", "train_all"]

METRICS = {
    "step": "optimizer step, from 1",
    "loss": "training loss of the step's batch, before the step, nats a token",
    "learning_rate": "of the step",
    "input_norm": "Frobenius norm of the input path's weight gradient (untied: of the input table's)",
    "output_norm": "the same of the output path",
    "cosine": "between the two path gradients",
    "output_share": "output_norm / (input_norm + output_norm)",
    "gradient_norm": "of the whole model, after the paths are combined, before clipping",
    "clip": "factor that clipping put on every gradient, at most 1",
    "output_update_share": "the same share for the two parts of the Adam update: first moments apart, second moment shared; "
    "NaN where a remedy makes the tables of other weights, which is what Adam moves",
    "published_input_norm": "the input norm as published: of the activation gradient of (rank 0's) last micro-batch",
    "published_output_share": "output_norm / (published_input_norm + output_norm)",
    "validation_loss": "nats a token on the held-out text, after the step; NaN between evaluations",
}
_SCALARS = [name for name in METRICS if name not in ("step", "learning_rate", "validation_loss")]
_VITAL = [_SCALARS.index("loss"), _SCALARS.index("gradient_norm")]  # where these are not finite, nothing is


@dataclass(frozen=True)
class Hardware:
    """Where a run trains and in what, chosen once. `reason` says why, in words."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def on_gpu(self) -> bool:
        """Whether a step does there what would change a run's last bits on the CPU, where it is left undone (see `gpu`)."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_hardware(device: str = "auto", dtype: str = "auto") -> Hardware:
    """CUDA, else MPS, else the CPU; bfloat16 autocast where the card computes in it, else float32. Weights stay float32.

    Raises ValueError for a device or dtype that is unknown or not on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} is not on this machine; use 'auto' or 'cpu'") from error
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(map(repr, DTYPES))}")
    if dtype != "auto":
        return Hardware(place, getattr(torch, dtype), f"{dtype} on {place.type}, as asked for")
    if place.type == "cuda":
        major, minor = torch.cuda.get_device_capability(place)
        if major >= 8:
            return Hardware(place, torch.bfloat16, f"bfloat16 autocast: compute capability {major}.{minor} has it")
        return Hardware(place, torch.float32, f"float32: compute capability {major}.{minor} has no bfloat16 units")
    return Hardware(place, torch.float32, f"float32: on {place.type} it is the reference")


def train(config: TrainConfig, *, progress: bool = True, on_step: Callable[[int, float], None] | None = None) -> Run:
    """Train `config`, or load it if a finished run of it lies on disk, or resume it from its last checkpoint.

    On the CPU a resumed run equals an uninterrupted one bit for bit; a KeyboardInterrupt says what is kept. `on_step(step,
    loss)` is called about twice a second at most. In processes that torchrun started, all of them train one run together: each
    takes its share of every batch, all return the run, and rank 0 alone writes, shows progress and calls `on_step`.

    A run with a `start` begins with that one's finished weights, and trains it first if need be; the optimizer begins anew.

    Raises ValueError if the corpus cannot serve the configuration: shorter than one context, or too small a text for the
    vocabulary; if the processes cannot share the batch or the device; and, before anything is allocated, if the run cannot fit
    in memory or on the disk (`budget.check`). Raises `sentinels.Diverged`, a FloatingPointError, at a NaN or an infinity in a
    loss, a gradient or what a checkpoint would hold: on a GPU at the latest before that checkpoint, elsewhere at its step.
    """
    ranks = Ranks.here()
    own = config.replace(batch_size=ranks.share(config.batch_size, config.micro_batches))  # what this process holds
    ranks.join(config.device)
    corpus = _corpus(config)
    if ranks.told(corpus.fingerprint) != corpus.fingerprint:
        raise ValueError(f"corpus: {config.corpus!r} is another text on rank {ranks.index} than on rank 0; give all one text")
    with run_store.writing(config, corpus.fingerprint) if ranks.first else nullcontext(Onlooker()) as writer:
        if run := ranks.told(writer.finished()):
            return run
        hardware = choose_hardware(config.device, config.dtype)
        budget.check(own, hardware.device, hardware.dtype, run_store.run_folder(config, corpus.fingerprint))
        begins = config.start is not None and not ranks.told(writer.step)  # what resumes has weights of its own
        start = train(config.start, progress=progress) if config.start and begins else None
        gc.collect()  # hooks tie a model of before to itself: it would stay, with its moments, as long as it pleases
        threads = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            trainer = _Trainer(config, corpus, hardware, writer, ranks, start)
            run = ranks.told(trainer.run(progress and ranks.first, on_step if ranks.first else None))
            assert run is not None
            return run
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"training was interrupted; {writer.kept}") from None
        finally:
            torch.set_num_threads(threads)


def train_all(configs: Sequence[TrainConfig], *, progress: bool = True, workers: int | None = None) -> list[Run]:
    """Train or load each of `configs`; the runs come in their order.

    On the CPU, unfinished runs train side by side, one process each, as many as the cores hold (`workers` sets the number):
    small models gain more from a core each than from all cores together. On a GPU, and in processes that torchrun started,
    they train one after another, here.
    Raises ValueError as `train` does, and RuntimeError with the worker's last words if one fails.
    """

    if Ranks.here().count > 1:
        return [train(config, progress=progress) for config in configs]

    distinct = {(config.text, config.context): config for config in configs}
    fingerprints = {key: _corpus(config).fingerprint for key, config in distinct.items()}
    found = [run_store.find(config, fingerprints[config.text, config.context]) for config in configs]
    missing = [config for config, run in zip(configs, found, strict=True) if run is None]
    try:
        if starts := list(dict.fromkeys(config.start for config in missing if config.start)):
            train_all(starts, progress=progress, workers=workers)
        missing = list(dict.fromkeys(config for config in missing if config not in starts))
        if workers is None:
            workers = workers_for(missing)
        # All of them are looked at, so that a bad one is found here and not in a worker.
        on_cpu = {choose_hardware(config.device, config.dtype).device.type for config in missing} <= {"cpu"}
        if on_cpu and workers > 1 and len(missing) > 1:
            _train_side_by_side(missing, workers, progress)
        return [run or train(config, progress=progress) for config, run in zip(configs, found, strict=True)]
    except KeyboardInterrupt:
        keys = {config: fingerprints[config.text, config.context] for config in configs}
        done = sum(run_store.is_finished(config, fingerprint) for config, fingerprint in keys.items())
        words = f"training was interrupted with {done} of {len(keys)} runs finished"
        raise KeyboardInterrupt(f"{words}; the same call goes on with the others, each from its last checkpoint") from None


def steps_of(config: TrainConfig, corpus: Corpus) -> Callable[[int], float]:
    """A function that trains a fresh model of `config` by one step, numbered from 1, and returns its loss; nothing is kept.

    It computes on as many threads as torch does when it is called. Raises ValueError for a device that is not there.
    """
    trainer = trainer_of(config, corpus)
    return lambda step: float(trainer._step(step)[0])


def trainer_of(config: TrainConfig, corpus: Corpus) -> "_Trainer":
    """A trainer of a fresh model that writes nothing, for who steps it by hand or wants what a run leaves in memory."""
    return _Trainer(config, corpus, choose_hardware(config.device, config.dtype), Onlooker())


def workers_for(configs: Sequence[TrainConfig]) -> int:
    """How many of `configs` the CPU's cores hold side by side, at least 1, by the threads of the one that has most."""
    return max(1, _cores() // max((config.threads for config in configs), default=1))


def _cores() -> int:
    """Of this process: a batch system or a container may grant it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train_side_by_side(configs: list[TrainConfig], workers: int, progress: bool) -> None:
    """Share `configs` out to worker processes: each loads the libraries once and trains its share in turn."""
    shares = [configs[i::workers] for i in range(min(workers, len(configs)))]
    children: list[subprocess.Popen[str]] = []
    with tqdm(total=sum(c.steps for c in configs), desc=f"{len(configs)} runs", unit="step", disable=not progress) as bar:

        def one(share: list[TrainConfig]) -> None:
            options = [option for config in share for option in ("--config", json.dumps(config.as_dict()))]
            command = [sys.executable, "-m", "tying_utils", "train", "--lines", *options]
            with tempfile.TemporaryFile("w+") as words:  # a file, not a pipe that nobody empties
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
                children.append(child)
                assert child.stdout is not None
                seen = 0
                for line in child.stdout:
                    if line.startswith("step "):
                        step = int(line.split()[1])
                        bar.update(step - seen)
                        seen = step
                    else:  # the folder of a finished run: the next one starts from 0
                        seen = 0
                if child.wait():
                    words.seek(0)
                    raise RuntimeError(f"a worker failed while it trained {len(share)} runs:\n{words.read()[-2000:]}")

        pool = ThreadPoolExecutor(len(shares))
        try:
            for job in as_completed([pool.submit(one, share) for share in shares]):
                job.result()
        finally:  # on an interrupt too: no worker outlives the call; each run resumes from its last checkpoint
            for child in children:
                child.terminate()
            pool.shutdown()


def _corpus(config: TrainConfig) -> Corpus:
    corpus = config.load_corpus()
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) < config.context + 1:
            raise ValueError(
                f"corpus: the {part} part of {config.corpus!r} holds {len(tokens)} tokens, shorter than one context of "
                f"{config.context} and its next token; use more text or a shorter context"
            )
    return corpus


class _Trainer:
    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        hardware: Hardware,
        writer: Writer | Onlooker,
        ranks: Ranks | None = None,
        start: Run | None = None,
    ) -> None:
        self.config, self.corpus, self.hardware, self.writer = config, corpus, hardware, writer
        self.ranks = ranks or Ranks()
        self.share = self.ranks.share(config.batch_size, config.micro_batches)
        writer.step = self.ranks.told(writer.step)
        self.model = run_store.build_model(config).to(hardware.device)  # type: ignore[arg-type]
        self.model.tie_weights()
        if start:
            held = {name: p.detach() for name, p in run_store.weight_names(start.model()).items()} if self.ranks.first else {}
            run_store.load_weights(self.model, self.ranks.handed_out(held, hardware.device))
        self.remedy = config.remedy or balance.Scale(input=config.input_scale, output=config.output_scale)
        self.rule = self.remedy if isinstance(self.remedy, balance.PathRule) else balance.Scale()
        self.tie = SplitTie(self.model, self.rule) if config.tied_after(0) else None
        made_by = self.remedy.tables(models.tables(self.model).input, config.init_seed)
        self.folded = Folded(self.model, made_by) if made_by else None
        self.parameters = list(self._trained().values())
        embedding: Any = self.model.get_input_embeddings()
        head: Any = self.model.get_output_embeddings()
        self.input_weight, self.output_weight = embedding.weight, head.weight
        embedding.register_forward_hook(self._watch_activation)
        self.activation_norm = torch.zeros((), device=hardware.device)
        at_once = gpu.logits_at_once(hardware.device, LOGITS_AT_ONCE) if hardware.on_gpu else None
        self.loss = NextTokenLoss(self.model, hardware.autocast, at_once)
        self.ahead = ThreadPoolExecutor(1) if hardware.on_gpu else None  # picks the next batch while this one trains
        self.picked: tuple[int, Future[Tensor]] | None = None
        self.reason = hardware.reason
        if hardware.on_gpu:
            gpu.without_mask(self.model)
            self.reason += f"; {self._compile()}"
        # The tie is split before the ranks join: each leaf's gradient is averaged over them on its own.
        self.network = self.ranks.joined(self.loss)
        options: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": (config.beta1, config.beta2),
            "eps": config.adam_eps,
            "weight_decay": config.weight_decay,
            "fused": hardware.device.type in ("cpu", "cuda"),
        }
        if self.remedy.coupled:
            coupled = [self.input_weight] if self.tie else [self.input_weight, self.output_weight]
            self.optimizer = optimizers.CoupledAdamW(self._groups(), tables=coupled, **options)
        else:
            self.optimizer = torch.optim.AdamW(self._groups(), **options)
        # The output path's part of a tied table's first moment; the input path's is what is left.
        self.output_moment = torch.zeros_like(self.input_weight) if self.tie else None
        # Large temporaries are slow to allocate anew at every step.
        self.scratch = torch.empty_like(self.input_weight), torch.empty_like(self.input_weight)
        self.rows: list[pd.DataFrame] = []
        self.pending: list[tuple[int, float, Tensor, float]] = []
        windows = corpus.windows("validation", config.validation_sequences, config.context + 1)
        self.validation = torch.from_numpy(windows).to(hardware.device)

    def run(self, progress: bool, on_step: Callable[[int, float], None] | None) -> Run | None:
        """The finished run; None on the ranks that do not write it."""
        config, began, run = self.config, time.monotonic(), None
        if self.writer.step:
            self._restore()
        else:
            self.writer.put_tables(0, models.tables(self.model))
        bar = tqdm(
            total=config.steps,
            initial=self.writer.step,
            desc=_title(config),
            unit="step",
            disable=not progress,
            leave=False,
        )
        tables_at, models_at = set(config.table_steps), set(config.checkpoint_steps)
        told = time.monotonic()
        if progress and self.reason != self.hardware.reason:
            bar.write(self.reason, file=sys.stderr)
        with bar:
            for step in range(self.writer.step + 1, config.steps + 1):
                statistics = self._step(step)
                evaluate = step % config.validation_every == 0 or step == config.steps
                validation = self._validation_loss() if evaluate else math.nan
                self.pending.append((step, self._learning_rate(step), statistics, validation))
                if evaluate or not self.hardware.on_gpu:
                    self._stop_if_lost(float(statistics[_VITAL].sum()) + (validation if evaluate else 0.0))
                if step in tables_at:
                    self.writer.put_tables(step, models.tables(self.model))
                bar.update()
                if time.monotonic() - told > 0.5 or step in (1, config.steps):
                    told, loss = time.monotonic(), float(statistics[0])
                    self._stop_if_lost(loss)
                    bar.set_postfix(loss=f"{loss:.2f}")
                    if on_step:
                        on_step(step, loss)
                if step in models_at:
                    run = self._commit(step, self.writer.seconds + time.monotonic() - began)
        return run

    def _step(self, step: int) -> Tensor:
        config = self.config
        if self.tie and not config.tied_after(step):
            self._untie()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step) * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.hardware.device)
        for number, part in enumerate(self._batch(step - 1).chunk(config.micro_batches), 1):
            with self.ranks.apart(self.network, apart=number < config.micro_batches):
                part_loss = self.network(part) / config.micro_batches
                part_loss.backward()
            loss += part_loss.detach()
        loss = self.ranks.total(loss) / self.ranks.count
        if self.tie:
            input_gradient, output_gradient = self.tie.path_gradients()
            paths = gradients.path_statistics(input_gradient, output_gradient)
            for name in self.rule.summed:
                self.ranks.total(self.tie.state[name])
            self.tie.combine(step=step, steps=config.steps)
        elif self.folded:
            input_gradient, output_gradient = self.folded.path_gradients()
            paths = gradients.path_statistics(input_gradient, output_gradient)
            self.folded.backward()
        else:
            output_gradient = self.output_weight.grad
            paths = gradients.path_statistics(self.input_weight.grad, output_gradient)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip)
        clip = (config.clip / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ computes it
        self.optimizer.step()
        if self.folded:
            self.folded.refresh()
        values = {
            "loss": loss,
            **paths,
            "gradient_norm": norm,
            "clip": clip,
            "output_update_share": self._update_share(step, output_gradient, clip),
            "published_input_norm": self.activation_norm,
            "published_output_share": gradients.output_share(self.activation_norm, paths["output_norm"]),
        }
        # One small tensor a step stays on the device until the next checkpoint: no step waits for it.
        return torch.stack([values[name].float() for name in _SCALARS])

    def _update_share(self, step: int, output_gradient: Tensor, clip: Tensor) -> Tensor:
        config = self.config
        if self.folded:
            return torch.full_like(clip, math.nan)

        def norm_of_update(first: Tensor, second: Tensor) -> Tensor:
            second = second.expand_as(first)  # where a remedy has all rows share one
            scale = gradients.inverse_scale(second, step, config.beta2, config.adam_eps, out=self.scratch[0])
            return torch.linalg.vector_norm(scale.mul_(first))

        held = self.optimizer.state[self.input_weight]
        if self.tie is None or self.output_moment is None:
            other = self.optimizer.state[self.output_weight]
            parts = [norm_of_update(state["exp_avg"], state["exp_avg_sq"]) for state in (held, other)]
        else:
            # m <- beta1 m + (1 - beta1) g is linear in g, so each path has a first moment of its own.
            weight = (1 - config.beta1) * self.tie.scales[1] * clip
            self.output_moment.mul_(config.beta1).addcmul_(output_gradient, weight)
            second = held["exp_avg_sq"].expand_as(held["exp_avg"])
            scale = gradients.inverse_scale(second, step, config.beta2, config.adam_eps, out=self.scratch[0])
            update = torch.sub(held["exp_avg"], self.output_moment, out=self.scratch[1]).mul_(scale)
            parts = [torch.linalg.vector_norm(update), torch.linalg.vector_norm(scale.mul_(self.output_moment))]
        return gradients.output_share(*parts)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer holds, by the names of `run_store.weight_names` and of `Folded.named`."""
        return self.folded.named() if self.folded else run_store.weight_names(self.model)

    def _groups(self) -> list[dict[str, Any]]:
        """All that is trained in one group, but for tables with a learning rate of their own."""
        rates = self.remedy.rates()
        if rates == (1.0, 1.0):
            return [{"params": list(self.parameters), "rate": 1.0}]
        tables = {id(table): rate for table, rate in zip((self.input_weight, self.output_weight), rates, strict=True)}
        return [{"params": [p], "rate": tables.get(id(p), 1.0)} for p in self.parameters]

    def _untie(self) -> None:
        """Two tables from here on; the output's takes over what Adam holds of the one there was."""
        assert self.tie is not None
        self.tie.part()
        self.tie = self.output_moment = None
        self.parameters.append(self.output_weight)
        self.optimizer.add_param_group({"params": [self.output_weight], "rate": 1.0})
        held = self.optimizer.state[self.input_weight]
        self.optimizer.state[self.output_weight] = {key: value.clone() for key, value in held.items()}

    def _kept(self) -> dict[str, Tensor]:
        """What has to be resumed beside the model's weights and the optimizer's moments, in place."""
        kept = {} if self.output_moment is None else {"output_moment": self.output_moment}
        if self.tie:
            kept |= {f"rule.{name}": value for name, value in self.tie.state.items()}
        if self.folded:
            kept |= {f"made_by.{name}": p.detach() for name, p in self.folded.tables.named_parameters()}
        return kept

    def _watch_activation(self, module: Any, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: setattr(self, "activation_norm", torch.linalg.vector_norm(grad.float())))

    def _compile(self) -> str:
        """Compile the model where the card can and it pays, before it trains; the reason in words."""
        config, device = self.config, self.hardware.device
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"eager: compute capability {major}.{minor} is below 8.0"
        part = self._batch(self.writer.step).chunk(config.micro_batches)[0]

        def once() -> None:
            self.loss(part).backward()
            torch.cuda.synchronize(device)

        state = {name: value.clone() for name, value in self.tie.state.items()} if self.tie else {}
        passes = (config.steps - self.writer.step) * config.micro_batches
        _, reason = gpu.compile_where_it_pays(
            self.model, once, passes=passes, agreed=lambda own: all(self.ranks.collected(own))
        )
        self.model.zero_grad(set_to_none=True)
        for name, value in state.items():  # a rule does not count these passes
            self.tie.state[name].copy_(value)  # type: ignore[union-attr]
        return reason

    @torch.no_grad()
    def _validation_loss(self) -> float:
        self.model.eval()
        parts = self.validation.split(self.share // self.config.micro_batches)[self.ranks.index :: self.ranks.count]
        losses = [float(self.loss(part)) * len(part) for part in parts]
        self.model.train()
        return sum(self.ranks.collected(sum(losses))) / len(self.validation)

    def _batch(self, index: int) -> Tensor:
        """`_pick(index)` on the device, without waiting for it; on a GPU the next one is picked meanwhile."""
        if self.ahead is None:
            return self._pick(index).to(self.hardware.device, non_blocking=True)
        if self.picked is None or self.picked[0] != index:
            self.picked = index, self.ahead.submit(self._pick, index)
        batch = self.picked[1].result()
        self.picked = index + 1, self.ahead.submit(self._pick, index + 1)
        # Pageable memory would be copied while the host waits.
        batch = batch.pin_memory() if self.hardware.device.type == "cuda" else batch
        return batch.to(self.hardware.device, non_blocking=True)

    def _pick(self, index: int) -> Tensor:
        """This rank's windows (n, context + 1) of batch `index`: each of the text once an epoch, in the data seed's order."""
        config = self.config
        windows = (len(self.corpus.train) - 1) // config.context
        picked = []
        first = index * config.batch_size + self.ranks.index * self.share
        for position in range(first, first + self.share):
            start = int(self._order(position // windows)[position % windows]) * config.context
            picked.append(self.corpus.train[start : start + config.context + 1])
        return torch.from_numpy(np.stack(picked).astype(np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            windows = (len(self.corpus.train) - 1) // self.config.context
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.config.data_seed, epoch]).permutation(windows)
        return self._permutation

    def _learning_rate(self, step: int) -> float:
        """Linear warmup, then a cosine from the peak to `final_learning_rate` of it."""
        config = self.config
        if step <= config.warmup_steps:
            return config.learning_rate * step / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        low = config.final_learning_rate
        return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))

    def _metrics(self) -> pd.DataFrame:
        if self.pending:
            steps, rates, statistics, validation = zip(*self.pending, strict=True)
            frame = pd.DataFrame(torch.stack(statistics).double().cpu().numpy(), columns=_SCALARS)
            frame = frame.assign(step=steps, learning_rate=rates, validation_loss=validation)
            self.rows.append(frame.loc[:, list(METRICS)])
            self.pending.clear()
        metrics = pd.concat(self.rows, ignore_index=True)
        sentinels.check_metrics(metrics, self.config, self.writer.step, self.writer.weights)
        return metrics

    def _stop_if_lost(self, number: float) -> None:
        """Raise `Diverged` for the first lost step since the last commit if `number`, read off the last one, is not finite."""
        if not math.isfinite(number):
            self._metrics()

    def _commit(self, step: int, seconds: float) -> Run | None:
        """Commit what there is, which is looked at first: on every rank, so that none waits for another that has stopped."""
        state = self.optimizer.state
        resume = {f"{name}/{key}": value for name, p in self._trained().items() for key, value in state[p].items()}
        resume |= self._kept()
        metrics = self._metrics()
        held = run_store.weight_names(self.model) | resume
        sentinels.check_state(held, metrics, self.config, self.writer.step, self.writer.weights)
        if isinstance(self.writer, Onlooker):
            self.writer.step = step
            return None
        return self.writer.commit(step, self.model, resume, metrics, self._made(seconds))

    def _restore(self) -> None:
        weights, resume, metrics = self.writer.resume()
        weights, resume = (self.ranks.handed_out(held, self.hardware.device) for held in (weights, resume))
        if self.tie and not self.config.tied_after(self.writer.step):
            self._untie()
        run_store.load_weights(self.model, weights)
        for name, value in self._kept().items():
            value.copy_(resume.pop(name))
        names = self._trained()
        for entry, value in resume.items():
            name, key = entry.rsplit("/", 1)
            parameter = names[name]
            place = parameter.device if key != "step" or self.optimizer.defaults["fused"] else "cpu"
            self.optimizer.state[parameter][key] = value.to(place)
        self.rows = [metrics]

    def _made(self, seconds: float) -> dict[str, Any]:
        import transformers

        hardware = self.hardware
        return {
            "seconds": round(seconds, 2),
            "device": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else hardware.device.type,
            "dtype": str(hardware.dtype).removeprefix("torch."),
            "reason": self.reason,
            "threads": torch.get_num_threads(),
            **({"processes": self.ranks.count} if self.ranks.count > 1 else {}),
            "parameters": sum(p.numel() for p in self.parameters),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _title(config: TrainConfig) -> str:
    if config.start:
        return f"{_title(config.start)}, then {config.corpus}"
    words = "tied" if config.tied else "untied"
    if config.remedy:
        words += f", {config.remedy.name}"
    if (config.input_scale, config.output_scale) != (1.0, 1.0):
        words += f" x{config.input_scale:g}/{config.output_scale:g}"
    return f"{words}, seed {config.data_seed}"
