"""Path gradients of a tied model, measured and balanced while Hugging Face's Trainer trains it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tying_utils.measures import gradients
from tying_utils.models import balance
from tying_utils.models.tie import SplitTie

FILE = "balance.safetensors"  # in the Trainer's checkpoints: what the rule remembers


class BalanceCallback(TrainerCallback):
    """Split the tie of the Trainer's model, weigh both path gradients at every step, and log their norms and the output share.

        Trainer(model=model, args=args, train_dataset=data, callbacks=[BalanceCallback("norm-match")]).train()

    `remedy` is a rule of `balance` (its name, a mapping {"name": ..., **parameters} or the rule itself); without one the
    gradients add up as in any tied model and are only measured. The model is ordinary again when training ends, and so is every
    checkpoint; what the rule remembers lies beside in `balance.safetensors`, from where a resumed training takes it.

    The log gains `METRICS`, and its `grad_norm` becomes that of the combined gradient. Raises ValueError when training begins
    for an untied model, several processes or devices, or fp16, and when a resumed checkpoint lacks what the rule remembers.
    """

    METRICS = ("input_norm", "output_norm", "cosine", "output_share")  # of measures.gradients, before clipping and scales

    def __init__(self, remedy: balance.Remedy | str | Mapping[str, Any] | None = None) -> None:
        self.rule = balance.path_rule(remedy)
        self.tie: SplitTie | None = None
        self._clip: tuple[TrainingArguments, float] | None = None  # whose clipping was taken over, and where it stood
        self._measured: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Split the tie, and take over clipping."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                f"args: one process and one device are needed, got {max(args.world_size, args.n_gpu)}; the Trainer has wrapped "
                "the model by now: split it before that, with SplitTie in a loop of your own"
            )
        if args.fp16:
            raise ValueError("args: fp16 scales the gradients that are to be measured; use bf16 or neither")
        self._release()
        self.tie = SplitTie(given["model"], self.rule)
        if state.global_step and self.tie.state:
            self._resume(_file(args, state))
        # The Trainer clips before the first event in which all gradients of a step are there (`on_pre_optimizer_step`), and
        # would clip both leaves for themselves: the norm has to be taken after they are combined.
        self._clip, args.max_grad_norm = (args, args.max_grad_norm), 0.0

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure, combine, clip."""
        assert self.tie is not None and self._clip is not None
        self._measured = gradients.path_statistics(*self.tie.path_gradients())
        self.tie.combine(step=state.global_step + 1, steps=state.max_steps)
        clip = self._clip[1] or float("inf")  # 0 is without clipping
        self._measured["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.tie.parameters(), clip)

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
            save_file(self.tie.state, _file(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the model and the arguments what they were."""
        self._release()

    def _release(self) -> None:
        if self.tie is not None:  # also after a training that was interrupted
            self.tie.release()
            self.tie = None
        if self._clip is not None:
            (args, clip), self._clip = self._clip, None
            args.max_grad_norm = clip

    def _resume(self, file: Path) -> None:
        assert self.tie is not None
        if not file.exists():
            raise ValueError(f"resume_from_checkpoint: {file} is missing, in which the rule {self.rule.name!r} remembers")
        for name, value in load_file(file).items():
            self.tie.state[name].copy_(value)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    """Return where the Trainer's checkpoint of the present step keeps what the rule remembers."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / FILE
