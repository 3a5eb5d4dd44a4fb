"""Path gradients of a tied model, measured and balanced while Hugging Face's Trainer trains it."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from accelerate.state import GradientState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.autograd.graph import register_multi_grad_hook
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tying_utils.measures import gradients
from tying_utils.models import balance
from tying_utils.models.tie import SplitTie

FILE = "balance.safetensors"  # in the Trainer's checkpoints: what the rule remembers


class BalanceCallback(TrainerCallback):
    """Split the tie of the Trainer's model, weigh both path gradients at every step, and log their norms and the output share.

        Trainer(model=model, args=args, train_dataset=data, callbacks=[BalanceCallback("norm-match")]).train()

    `remedy` is a rule of `balance` (its name, a mapping {"name": ..., **parameters} or the rule itself); without one the
    gradients add up as in any tied model and are only measured. The arguments are left alone. The model is ordinary again when
    training ends or is interrupted, and so is every checkpoint; what the rule remembers lies beside in `balance.safetensors`,
    from where a resumed training takes it.

    The log gains `METRICS`, of the step that is logged, before TensorBoard or another reporter sees it; its `grad_norm` is that
    of the combined gradient. Raises ValueError when training begins for a model that `SplitTie` refuses, several processes or
    devices, fp16, or another such callback beside it, and when what the rule remembers is missing in a resumed checkpoint,
    damaged, or of another rule; in training, where a step does not take one backward pass per micro-batch through both uses of
    the table. Backward passes outside of a step, as of a callback that evaluates, are left alone.
    """

    METRICS = ("input_norm", "output_norm", "cosine", "output_share")  # of measures.gradients, before clipping and scales

    def __init__(self, remedy: balance.Remedy | str | Mapping[str, Any] | None = None) -> None:
        self.rule = balance.path_rule(remedy)
        self.tie: SplitTie | None = None
        self._state: TrainerState | None = None
        self._hooks: list[Any] = []
        self._arrived: set[int] = set()  # leaves whose gradient of the present backward pass is there
        self._stepping = self._combined = False  # in the micro-batches of a step; whether their gradients are combined
        self._saved: Path | None = None  # the checkpoint that the Trainer has written last
        self._measured: dict[str, torch.Tensor] = {}
        self._watched: WeakSet[Trainer] = WeakSet()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go before the reporters, and see to it that the Trainer gives the model back."""
        self._watch_trainer()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Split the tie."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                f"args: one process and one device are needed, got {max(args.world_size, args.n_gpu)}; the Trainer has wrapped "
                "the model by now: split it before that, with SplitTie in a loop of your own"
            )
        if args.fp16:
            raise ValueError("args: fp16 scales the gradients that are to be measured; use bf16 or neither")
        trainer = self._watch_trainer()  # for a callback that was added after the Trainer was made
        if sum(isinstance(one, BalanceCallback) for one in (trainer.callback_handler.callbacks if trainer else ())) > 1:
            raise ValueError("callbacks: one BalanceCallback is needed, got several, of which each would split the same tie")
        self._release()
        self.tie, self._state = SplitTie(given["model"], self.rule), state
        if state.global_step and self.tie.state:
            resumed = next(
                (at for local in _calls() if isinstance(at := local.get("resume_from_checkpoint"), str | Path)), None
            )
            self._resume((Path(resumed) if resumed else _checkpoint(args, state)) / FILE)
        # The Trainer clips before the first event in which all gradients of a step are there, and would clip both leaves for
        # themselves. They are combined before that, when both have what the step's last backward pass adds.
        leaves = self.tie.weight, given["model"].get_output_embeddings().weight
        self._hooks = [register_multi_grad_hook(leaves, lambda _: self._arrived.clear(), mode="any")]
        self._hooks += [leaf.register_post_accumulate_grad_hook(self._arrive) for leaf in leaves]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Attend to the backward passes from here on."""
        self._stepping, self._combined = True, False

    def _arrive(self, leaf: torch.Tensor) -> None:
        if not self._stepping:
            return
        self._arrived.add(id(leaf))
        if len(self._arrived) < 2 or not GradientState().sync_gradients:  # which the Trainer says of a last micro-batch
            return
        if self._combined:
            raise ValueError("training_step: one backward pass per micro-batch is needed, got another; add up the losses first")
        assert self.tie is not None and self._state is not None
        self._measured = gradients.path_statistics(*self.tie.path_gradients())
        self.tie.combine(step=self._state.global_step + 1, steps=self._state.max_steps)
        self._combined = True

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check that both path gradients were there before the Trainer clipped."""
        if not self._combined:
            raise ValueError(
                "training_step: its last backward pass reached one use of the table only; use both, or train plainly"
            )
        self._stepping = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add what the last step measured to its log."""
        if logs and "loss" in logs:
            measured = {name: float(value) for name, value in self._measured.items()}
            for entry in (logs, state.log_history[-1]):  # the Trainer has noted a copy before it tells
                entry.update(measured)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what the rule remembers into the checkpoint."""
        if self.tie is not None and self.tie.state:
            # A search of hyperparameters has a folder for each trial.
            save_file(self.tie.state, (self._saved or _checkpoint(args, state)) / FILE, {"remedy": self._named()})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the model what it was."""
        self._release()

    def _named(self) -> str:
        """Return the rule and its parameters as text."""
        return json.dumps(self.rule.as_dict() if self.rule else None, sort_keys=True)

    def _watch_trainer(self) -> Trainer | None:
        """Go to the front of the Trainer's callbacks, release the model on every way out of its training, and return it.

        No event tells a callback of an exception, and none hands it the Trainer, which has called it and is looked for above.
        """
        trainer = next((local["self"] for local in _calls()), None)
        if trainer is None or trainer in self._watched or self not in trainer.callback_handler.callbacks:
            return trainer
        self._watched.add(trainer)
        trainer.callback_handler.callbacks.remove(self)
        trainer.callback_handler.callbacks.insert(0, self)
        # Where `train` is running already, an exception still comes out of one of its parts.
        for name in ("train", "get_batch_samples", "training_step", "log", "evaluate", "save_model"):
            setattr(trainer, name, self._releasing(getattr(trainer, name)))
        trainer.callback_handler.call_event = self._releasing(trainer.callback_handler.call_event)
        save = trainer.save_model

        @functools.wraps(save)
        def noting(output_dir: str | None = None, *args: Any, **given: Any) -> Any:
            self._saved = Path(output_dir or str(trainer.args.output_dir))
            return save(output_dir, *args, **given)

        trainer.save_model = noting
        return trainer

    def _releasing(self, method: Any) -> Any:
        @functools.wraps(method)
        def wrapped(*args: Any, **given: Any) -> Any:
            try:
                return method(*args, **given)
            except BaseException:  # KeyboardInterrupt above all
                with suppress(ValueError):  # of a model that was moved: what stopped the training says more
                    self._release()
                raise

        return wrapped

    def _release(self) -> None:
        tie, self.tie, self._state, self._stepping, self._saved = self.tie, None, None, False, None
        while self._hooks:
            self._hooks.pop().remove()
        if tie is not None:
            tie.release()

    def _resume(self, file: Path) -> None:
        assert self.tie is not None and self.rule is not None
        own = self.tie.state
        try:
            with safe_open(file, "pt") as held:
                remedy = (held.metadata() or {}).get("remedy", self._named())  # files of earlier versions do not say
                found = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118, it is no mapping
        except (OSError, SafetensorError) as error:
            self._release()
            what = f"{file} is {'damaged' if file.exists() else 'missing'}, in which the rule {self.rule.name!r} remembers"
            raise ValueError(f"resume_from_checkpoint: {what}; take another checkpoint") from error
        same = {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}
        if remedy != self._named() or not same or not all(bool(value.isfinite().all()) for value in found.values()):
            self._release()
            raise ValueError(
                f"resume_from_checkpoint: {file} is not of the rule {self.rule.name!r} as it is here, or not finite; it has "
                f"{remedy}, this callback {self._named()}; use the same"
            )
        for name, value in found.items():
            own[name].copy_(value)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the Trainer's checkpoint of the present step, where no search of hyperparameters names another."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _calls() -> Iterator[dict[str, Any]]:
    """Yield what is known in each method of a Trainer that is running, innermost first: no event hands a callback any of it."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            yield frame.f_locals
        frame = frame.f_back
