"""Configuration to run: train one arm."""

import gc
import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tying_utils import models
from tying_utils.base.console import tqdm
from tying_utils.base.precision import plain
from tying_utils.corpora.corpus import Corpus
from tying_utils.measures import gradients
from tying_utils.models import balance
from tying_utils.models.reparameterise import Folded
from tying_utils.models.tie import SplitTie
from tying_utils.training import budget, optimizers, run_store, sentinels
from tying_utils.training.batches import Batches
from tying_utils.training.config import TrainConfig
from tying_utils.training.hardware import Hardware, choose_hardware, compile_where_it_pays, logits_at_once, without_mask
from tying_utils.training.metrics import SCALARS, VITAL, Metrics
from tying_utils.training.next_token import LOGITS_AT_ONCE, NextTokenLoss
from tying_utils.training.ranks import Ranks
from tying_utils.training.run_store import Onlooker, Run, Writer


class Trainer:
    """Trains a fresh model of `config` on `corpus`, step by step or as a whole `run`.

        trainer = Trainer(config, config.load_corpus())
        scalars = dict(zip(SCALARS, trainer.step(1), strict=True))

    Without a `writer` nothing is kept on disk. With one, `run` resumes from its last commit. `start` is the finished run whose
    weights the model begins with. It computes on as many threads as torch does when it is called.

    Raises ValueError for a device that is not there and for ranks that cannot share a batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        hardware: Hardware | None = None,
        writer: Writer | Onlooker | None = None,
        ranks: Ranks | None = None,
        start: Run | None = None,
    ) -> None:
        hardware = hardware or choose_hardware(config.device, config.dtype)
        self.config, self.hardware = config, hardware
        self.writer: Writer | Onlooker = writer or Onlooker()
        self.ranks = ranks or Ranks()
        self.batches = Batches(config, corpus, hardware.device, self.ranks, ahead=hardware.on_gpu)
        self.writer.step = self.ranks.broadcast(self.writer.step)
        self.model = run_store.build_model(config).to(hardware.device)  # type: ignore[arg-type]
        self.model.tie_weights()
        if start:
            held = {name: p.detach() for name, p in run_store.weight_names(start.model()).items()} if self.ranks.first else {}
            run_store.load_weights(self.model, self.ranks.broadcast_tensors(held, hardware.device))
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
        at_once = logits_at_once(hardware.device, LOGITS_AT_ONCE) if hardware.on_gpu else None
        keep = at_once is None and hardware.device.type == "cpu" and hardware.dtype == torch.float32 and not self.rule.watches
        self.loss = NextTokenLoss(self.model, hardware.autocast, at_once, keep_logits=keep)
        self.reason = hardware.reason
        if hardware.on_gpu:
            without_mask(self.model)
            self.reason += f"; {self._compile() if hardware.compiles else 'not compiled'}"
        # The tie is split before the ranks join: each leaf's gradient is averaged over them on its own.
        self.network = self.ranks.data_parallel(self.loss)
        tables = [self.input_weight] if self.tie else [self.input_weight, self.output_weight]
        fused = hardware.device.type in ("cpu", "cuda")
        self.optimizer = optimizers.adamw(config, self.remedy, self.parameters, tables, fused=fused)
        # The output path's part of a tied table's first moment; the input path's is what is left.
        self.output_moment = torch.zeros_like(self.input_weight) if self.tie else None
        # Of Adam's last update the input and the output path's part, up to their common factor. Large temporaries are slow to
        # allocate anew at every step.
        self.scratch = torch.empty_like(self.input_weight), torch.empty_like(self.input_weight)
        self._metrics = Metrics(config)
        windows = corpus.windows("validation", config.validation_sequences, config.context + 1)
        self.validation = torch.from_numpy(windows).to(hardware.device)

    def run(self, progress: bool = False, on_step: Callable[[int, float], None] | None = None) -> Run | None:
        """Train to the end and return the finished run; None on the ranks that do not write it, and without a writer."""
        config, began, run = self.config, time.monotonic(), None
        if self.writer.step:
            self._restore()
        else:
            self.writer.put_tables(0, models.tables(self.model))
        name, done = config.title, self.writer.step
        bar = tqdm(total=config.steps, initial=done, desc=name, unit="step", disable=not progress, leave=False)
        tables_at, models_at = set(config.table_steps), set(config.checkpoint_steps)
        told = time.monotonic()
        if progress and self.reason != self.hardware.reason:
            bar.write(self.reason, file=sys.stderr)
        with bar:
            for step in range(done + 1, config.steps + 1):
                scalars = self.step(step)
                evaluate = step % config.validation_every == 0 or step == config.steps
                validation = self.validate() if evaluate else 0.0
                if evaluate or not self.hardware.on_gpu:
                    self._stop_if_lost(float(scalars[VITAL].sum()) + validation)
                if step in tables_at:
                    self.writer.put_tables(step, models.tables(self.model))
                bar.update()
                if time.monotonic() - told > 0.5 or step in (1, config.steps):
                    told, loss = time.monotonic(), float(scalars[0])
                    self._stop_if_lost(loss)
                    bar.set_postfix(loss=f"{loss:.2f}")
                    if on_step:
                        on_step(step, loss)
                if step in models_at:
                    run = self.commit(step, self.writer.seconds + time.monotonic() - began)
        return run

    def step(self, step: int) -> Tensor:
        """Take one optimizer step, numbered from 1, and return the `SCALARS` of it, float32 on the device: nothing waits."""
        config = self.config
        if self.tie and not config.tied_after(step):
            self.untie()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step) * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.hardware.device)
        for number, part in enumerate(self.batches(step - 1).chunk(config.micro_batches), 1):
            last = number == config.micro_batches
            with nullcontext() if last else self.ranks.no_sync(self.network):
                part_loss = self.network(part) / config.micro_batches
                part_loss.backward()
            loss += part_loss.detach()
        loss = self.ranks.all_reduce(loss) / self.ranks.world_size
        input_gradient, output_gradient = self._path_gradients()
        paths = gradients.path_statistics(input_gradient, output_gradient)
        if self.tie:
            for name in self.rule.summed:
                self.ranks.all_reduce(self.tie.state[name])
            self.tie.combine(step=step, steps=config.steps)
        elif self.folded:
            self.folded.backward()
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
            "output_update_share": self._output_update_share(step, output_gradient, clip),
            "published_input_norm": self.activation_norm,
            "published_output_share": gradients.output_share(self.activation_norm, paths["output_norm"]),
        }
        scalars = torch.stack([values[name].float() for name in SCALARS])
        self._metrics.add(step, scalars)
        return scalars

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss on the held-out windows in nats per token, of all ranks together."""
        self.model.eval()
        at_once = self.batches.local_size // self.config.micro_batches
        parts = self.validation.split(at_once)[self.ranks.rank :: self.ranks.world_size]
        losses = [float(self.loss(part)) * len(part) for part in parts]
        self.model.train()
        loss = sum(self.ranks.all_gather(sum(losses))) / len(self.validation)
        self._metrics.validated(loss)
        return loss

    def commit(self, step: int, seconds: float) -> Run | None:
        """Keep weights, state and metrics after `step`, trained for `seconds` in all; return the run where it is finished.

        All of it is looked at first, on every rank, so that none waits for another that has stopped. Raises `Diverged`.
        """
        state = self.optimizer.state
        resume = {f"{name}/{key}": value for name, p in self._trained().items() for key, value in state[p].items()}
        resume |= self._kept()
        metrics = self.metrics()
        held = run_store.weight_names(self.model) | resume
        sentinels.check_state(held, step, self.config, self.writer.step, self.writer.weights)
        if isinstance(self.writer, Onlooker):
            self.writer.step = step
            return None
        return self.writer.commit(step, self.model, resume, metrics, self._made(seconds))

    def metrics(self) -> pd.DataFrame:
        """Return a row for every step so far with the columns of `METRICS`. Raises `Diverged` where one is not finite."""
        metrics = self._metrics.frame()
        sentinels.check_metrics(metrics, self.config, self.writer.step, self.writer.weights)
        return metrics

    def untie(self) -> None:
        """Train two tables from here on; the output's takes over what Adam holds of the one there was."""
        assert self.tie is not None
        self.tie.part()
        self.tie = self.output_moment = None
        self.parameters.append(self.output_weight)
        self.optimizer.add_param_group({"params": [self.output_weight], "rate": 1.0})
        held = self.optimizer.state[self.input_weight]
        self.optimizer.state[self.output_weight] = {key: value.clone() for key, value in held.items()}

    def update_parts(self) -> dict[str, dict[str, Tensor]]:
        """Return what the last step added to each table, by table and part, (V, d) float32, new tensors on the device.

        The table "tied" has the parts "input path" and "output path", Adam's update with the first moment of that path and the
        second that both share, and "decay", AdamW's weight decay; "input" and "output", an untied model's tables, have that of
        their own path, and decay. Parts add up to the step, apart from rounding. They are read off what a step leaves behind,
        so that a run that never asks pays nothing.

        Raises ValueError where no path has a part of its own: where the tables are made of other weights, which is what Adam
        moves, and where the tie is parted on the way, after which both tables go on with a first moment of both paths.
        """
        config = self.config
        if self.folded or config.tied_after(config.steps) != config.tied:
            what = "makes the tables of other weights" if self.folded else "parts the tie on the way"
            raise ValueError(f"config: the remedy {self.remedy.name!r} {what}, so no path has its own update; use another")
        paths = ("input path", self.scratch[0]), ("output path", self.scratch[1])
        if self.tie:
            return {"tied": self._added(self.input_weight, *paths)}
        return {"input": self._added(self.input_weight, paths[0]), "output": self._added(self.output_weight, paths[1])}

    def _added(self, table: torch.nn.Parameter, *paths: tuple[str, Tensor]) -> dict[str, Tensor]:
        """Return what the last step of the optimizer added to `table`, by the names of its paths' updates, and by decay."""
        group = next(group for group in self.optimizer.param_groups if any(p is table for p in group["params"]))
        rate, whole = group["lr"], 1 - self.config.beta1 ** self.optimizer.state[table]["step"]
        added = {name: update * (-rate / whole) for name, update in paths}
        kept = 1 - rate * group["weight_decay"]  # of the table before the step: W <- kept W + updates
        before = (table.detach() - sum(added.values())) / kept
        return added | {"decay": before * (kept - 1)}

    def _path_gradients(self) -> tuple[Any, Any]:
        """Return the accumulated gradients (V, d) of the input and the output path, before they are combined."""
        for split in (self.tie, self.folded):
            if split:
                return split.path_gradients()
        return self.input_weight.grad, self.output_weight.grad

    def _output_update_share(self, step: int, output_gradient: Tensor, clip: Tensor) -> Tensor:
        config = self.config
        if self.folded:
            return torch.full_like(clip, math.nan)

        def scale(state: Any, out: Tensor) -> Tensor:
            second = state["exp_avg_sq"].expand_as(out)  # where a remedy has all rows share one
            return gradients.inverse_scale(second, step, config.beta2, config.adam_eps, out=out)

        held, (source, target) = self.optimizer.state[self.input_weight], self.scratch
        if self.tie is None or self.output_moment is None:
            other = self.optimizer.state[self.output_weight]
            scale(held, source).mul_(held["exp_avg"])
            scale(other, target).mul_(other["exp_avg"])
        else:
            # m <- beta1 m + (1 - beta1) g is linear in g, so each path has a first moment of its own.
            weight = (1 - config.beta1) * self.tie.scales[1] * clip
            self.output_moment.mul_(config.beta1).addcmul_(output_gradient, weight)
            shared = scale(held, target)
            torch.sub(held["exp_avg"], self.output_moment, out=source).mul_(shared)
            shared.mul_(self.output_moment)
        return gradients.output_share(torch.linalg.vector_norm(source), torch.linalg.vector_norm(target))

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """Return what the optimizer holds, by the names of `run_store.weight_names` and of `Folded.named`."""
        return self.folded.named() if self.folded else run_store.weight_names(self.model)

    def _kept(self) -> dict[str, Tensor]:
        """Return what has to be resumed beside the model's weights and the optimizer's moments, to be written in place."""
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
        """Compile the model where the card can and it pays, before it trains; return the reason in words."""
        config, device = self.config, self.hardware.device
        part = self.batches(self.writer.step).chunk(config.micro_batches)[0]

        def once() -> None:
            self.loss(part).backward()
            torch.cuda.synchronize(device)

        state = {name: value.clone() for name, value in self.tie.state.items()} if self.tie else {}
        passes = (config.steps - self.writer.step) * config.micro_batches
        _, reason = compile_where_it_pays(
            self.model, once, device=device, passes=passes, agreed=lambda own: all(self.ranks.all_gather(own))
        )
        self.model.zero_grad(set_to_none=True)
        for name, value in state.items():  # a rule does not count these passes
            self.tie.state[name].copy_(value)  # type: ignore[union-attr]
        return reason

    def _stop_if_lost(self, number: float) -> None:
        """Raise `Diverged` for the first lost step since the last commit if `number`, read off the last one, is not finite."""
        if not math.isfinite(number):
            self.metrics()

    def _restore(self) -> None:
        weights, resume, metrics = self.writer.resume()
        weights, resume = (self.ranks.broadcast_tensors(held, self.hardware.device) for held in (weights, resume))
        if self.tie and not self.config.tied_after(self.writer.step):
            self.untie()
        run_store.load_weights(self.model, weights)
        for name, value in self._kept().items():
            value.copy_(resume.pop(name))
        names = self._trained()
        for entry, value in resume.items():
            name, key = entry.rsplit("/", 1)
            parameter = names[name]
            place = parameter.device if key != "step" or self.optimizer.defaults["fused"] else "cpu"
            self.optimizer.state[parameter][key] = value.to(place)
        self._metrics.rows = metrics

    def _made(self, seconds: float) -> dict[str, Any]:
        import transformers

        hardware = self.hardware
        return {
            "seconds": round(seconds, 2),
            "device": torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else hardware.device.type,
            "dtype": str(hardware.dtype).removeprefix("torch."),
            "reason": self.reason,
            "threads": torch.get_num_threads(),
            **({"processes": self.ranks.world_size} if self.ranks.world_size > 1 else {}),
            "parameters": sum(p.numel() for p in self.parameters),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


@plain()
@torch.inference_mode(False)  # and with gradients, whatever the caller's mode is: a run is what its configuration says
def train(config: TrainConfig, *, progress: bool = True, on_step: Callable[[int, float], None] | None = None) -> Run:
    """Train `config`, or load it if a finished run of it lies on disk, or resume it from its last checkpoint.

    On the CPU a resumed run equals an uninterrupted one bit for bit; a KeyboardInterrupt says what is kept. `on_step(step,
    loss)` is called about twice a second at most. In processes that torchrun started, all of them train one run together: each
    takes its share of every batch, all return the run, and rank 0 alone writes, shows progress and calls `on_step`.

    A run with a `start` begins with that one's finished weights, and trains it first if need be; the optimizer begins anew.

    Raises ValueError for what is no configuration; if the corpus cannot serve it: shorter than one context, or too small a
    text for the vocabulary; if the processes cannot share the batch or the device; and, before anything is allocated, if the
    run cannot fit in memory or on the disk (`budget.check`). Raises `sentinels.Diverged`, a FloatingPointError, at a NaN or an
    infinity in a loss, a gradient or what a checkpoint would hold: on a GPU at the latest before that checkpoint, elsewhere at
    its step.
    """
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config: a TrainConfig is needed, got {type(config).__name__}; TrainConfig(**fields) makes one")
    ranks = Ranks.here()
    own = config.replace(batch_size=ranks.local_batch_size(config.batch_size, config.micro_batches))  # what this process holds
    ranks.join(config.device)
    corpus = config.load_corpus()
    if ranks.broadcast(corpus.fingerprint) != corpus.fingerprint:
        raise ValueError(f"corpus: {config.corpus!r} is another text on rank {ranks.rank} than on rank 0; give all one text")
    with run_store.writing(config, corpus.fingerprint) if ranks.first else nullcontext(Onlooker()) as writer:
        if run := ranks.broadcast(writer.finished()):
            return run
        hardware = choose_hardware(config.device, config.dtype)
        budget.check(own, hardware.device, hardware.dtype, run_store.run_folder(config, corpus.fingerprint))
        begins = config.start is not None and not ranks.broadcast(writer.step)  # what resumes has weights of its own
        start = train(config.start, progress=progress) if config.start and begins else None
        gc.collect()  # hooks tie a model of before to itself: it would stay, with its moments, as long as it pleases
        threads = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            trainer = Trainer(config, corpus, hardware, writer, ranks, start)
            run = ranks.broadcast(trainer.run(progress and ranks.first, on_step if ranks.first else None))
            assert run is not None
            return run
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"training was interrupted; {writer.kept}") from None
        finally:
            torch.set_num_threads(threads)
