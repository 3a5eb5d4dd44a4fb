"""Numerical sentinels: a run whose numbers are no longer finite stops, and says where and what is left of it."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tying_utils.training.config import TrainConfig


class Diverged(FloatingPointError):
    """Training met a NaN or an infinity; nothing of that step is kept.

    `step` is the first optimizer step that had one, `checkpoint` the last step whose state lies on disk whole (0: none), and
    `weights` the file of the model as it was then (None: there is none). The same run, started again, goes on from there, to
    the same end unless what caused it is changed or gone.
    """

    def __init__(self, step: int, what: str, checkpoint: int, weights: Path | None, advice: str = "") -> None:
        super().__init__(step, what, checkpoint, weights, advice)  # as given, so that a worker process can hand it on
        self.step, self.what, self.checkpoint, self.weights, self.advice = step, what, checkpoint, weights, advice

    def __str__(self) -> str:
        left = "there is no checkpoint yet"
        if self.weights:
            left = f"the last good checkpoint is step {self.checkpoint}, {self.weights}"
        return f"step {self.step}: {self.what}; {left}{self.advice and f'. What would do: {self.advice}'}"


def check_metrics(metrics: pd.DataFrame, config: TrainConfig, checkpoint: int, weights: Path | None) -> None:
    """Raise `Diverged` at the first step of `metrics` whose loss, gradient or validation loss is NaN or infinite.

    metrics: a row per step, with the columns of `training.METRICS`. Other columns may be NaN: shares and cosines of gradients
    that are 0 have no value, and there is a validation loss at some steps only.
    """
    validated = (metrics["step"] % config.validation_every == 0) | (metrics["step"] == config.steps)
    columns = ("loss", "gradient_norm", "validation_loss")
    lost = ~(metrics[[*columns]].abs() < math.inf)  # False for NaN
    lost["validation_loss"] &= validated
    if lost.any(axis=None):
        place = int(lost.any(axis=1).to_numpy().argmax())
        row, name = metrics.iloc[place], next(name for name in columns if lost[name].iloc[place])
        what = f"the {name.replace('_', ' ')} is {row[name]:g}"
        raise Diverged(int(row["step"]), what, checkpoint, weights, _advice(config))


def check_state(state: Mapping[str, Tensor], step: int, config: TrainConfig, checkpoint: int, weights: Path | None) -> None:
    """Raise `Diverged` at `step` if a tensor of `state`, what a checkpoint is to hold, has a NaN or an infinity."""
    # The least and the largest entry tell, with no copy of a table.
    bad = [name for name, value in state.items() if not torch.stack(torch.aminmax(value.detach())).isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        what = f"its update leaves NaN or infinity in {bad[0]}{more}"
        raise Diverged(step, what, checkpoint, weights, _advice(config))


def _advice(config: TrainConfig) -> str:
    last = "dtype='float32'" if config.dtype == "bfloat16" else f"a clip below {config.clip:g}"
    return f"a learning_rate below {config.learning_rate:g}, more warmup_steps than {config.warmup_steps}, or {last}"
