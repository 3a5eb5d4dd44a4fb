"""Numerical sentinels: a run whose numbers are none any more stops, and says where, what is left of it, and why."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tying_utils.training.config import TrainConfig

_JUMP = 10.0  # times the usual gradient norm, from which on it is called a jump


class Diverged(FloatingPointError):
    """Training met a NaN or an infinity; nothing of that step is kept.

    `step` is the first optimizer step that had one, `checkpoint` the last step whose state lies on disk whole (0: none), and
    `weights` the file of the model as it was then (None: there is none). The same run, started again, goes on from there, to
    the same end unless what caused it is changed or gone.
    """

    def __init__(self, step: int, what: str, checkpoint: int, weights: Path | None, cause: str) -> None:
        left = f"the last good checkpoint is step {checkpoint}, {weights}" if weights else "there is no checkpoint yet"
        super().__init__(f"step {step}: {what}; {left}. Likely cause: {cause}")
        self.step, self.checkpoint, self.weights = step, checkpoint, weights


def check_metrics(metrics: pd.DataFrame, config: TrainConfig, checkpoint: int, weights: Path | None) -> None:
    """Raise `Diverged` at the first step of `metrics` whose loss, gradient or validation loss is NaN or infinite.

    metrics: a row a step, with the columns of `training.METRICS`. Other columns may be NaN: shares and cosines of gradients
    that are 0 have no value, and there is a validation loss at some steps only.
    """
    validated = (metrics["step"] % config.validation_every == 0) | (metrics["step"] == config.steps)
    sound = {
        "loss": _finite(metrics["loss"]),
        "gradient norm": _finite(metrics["gradient_norm"]),
        "validation loss": _finite(metrics["validation_loss"]) | ~validated,
    }
    bad = ~pd.DataFrame(sound).all(axis=1)
    if not bad.any():
        return
    place = int(bad.to_numpy().argmax())
    row, before = metrics.iloc[place], metrics.iloc[:place]
    name = next(name for name, column in sound.items() if not column.iloc[place])
    value = row[name.replace(" ", "_")]
    cause = {"loss": _of_loss, "gradient norm": _of_gradient, "validation loss": _of_update}[name](row, before, config)
    raise Diverged(int(row["step"]), f"the {name} is {value:g}", checkpoint, weights, cause)


def check_state(
    state: Mapping[str, Tensor], metrics: pd.DataFrame, config: TrainConfig, checkpoint: int, weights: Path | None
) -> None:
    """Raise `Diverged` at the last step of `metrics` if a tensor of `state` holds a NaN or an infinity.

    state: what a checkpoint is to hold, by name.
    """
    # The least and the largest entry tell, with no copy of a table.
    bad = [name for name, value in state.items() if not torch.stack(torch.aminmax(value.detach())).isfinite().all()]
    if bad:
        row = metrics.iloc[-1]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        what = f"its update leaves NaN or infinity in {bad[0]}{more}"
        raise Diverged(int(row["step"]), what, checkpoint, weights, _of_update(row, metrics.iloc[:-1], config))


def _finite(column: pd.Series) -> pd.Series:
    return column.abs() < math.inf  # False for NaN


def _of_loss(row: pd.Series, before: pd.DataFrame, config: TrainConfig) -> str:
    """Why the loss of a step is not finite: the weights that the step before it left, unless there was none."""
    if before.empty:
        return f"the model's numbers overflow before any update. {_advice(config, 'dtype')}"
    return _of_update(before.iloc[-1], before.iloc[:-1], config)


def _of_update(row: pd.Series, before: pd.DataFrame, config: TrainConfig) -> str:
    """Why the weights that a step leaves are no good though its loss was: the update was too large, or came from one batch."""
    step, loss, rate = int(row["step"]), row["loss"], row["learning_rate"]
    if len(before) and loss > 1 + before["loss"].min():
        best = before.iloc[int(before["loss"].to_numpy().argmin())]
        return (
            f"training had diverged: the loss rose from {best['loss']:.4g} at step {int(best['step'])} to {loss:.4g} at step "
            f"{step}, at a learning rate of {rate:.3g}. {_advice(config, 'rate')}"
        )
    usual = before["gradient_norm"].median() if len(before) else math.nan
    if row["gradient_norm"] > _JUMP * usual:
        return (
            f"the gradient jumped to a norm of {row['gradient_norm']:.3g} at step {step} from {usual:.3g} before, clipped at "
            f"{config.clip:g}. {_advice(config, 'clip')}"
        )
    return (
        f"the update of step {step} was too large, at a learning rate of {rate:.3g} and a gradient norm of "
        f"{row['gradient_norm']:.3g}. {_advice(config, 'rate')}"
    )


def _of_gradient(row: pd.Series, before: pd.DataFrame, config: TrainConfig) -> str:
    """Why a gradient is not finite though the loss is."""
    for path in ("input", "output"):
        if not math.isfinite(row[f"{path}_norm"]):
            return f"the {path} path's gradient overflowed in the backward pass. {_advice(config, 'dtype')}"
    if config.remedy or (config.input_scale, config.output_scale) != (1.0, 1.0):
        scales = config.remedy.name if config.remedy else f"the scales {config.input_scale:g} and {config.output_scale:g}"
        return f"both paths' gradients are finite, so it is their sum, weighed by {scales}. {_advice(config, 'scales')}"
    return f"the gradient of a weight outside of the tables overflowed in the backward pass. {_advice(config, 'dtype')}"


def _advice(config: TrainConfig, first: str) -> str:
    """What would do, the remedy for `first` before the others that this configuration leaves open."""

    def open_to() -> Iterator[tuple[str, str]]:
        yield "rate", f"a learning_rate below {config.learning_rate:g}"
        if config.warmup_steps < config.steps // 10:
            yield "rate", f"more warmup_steps than {config.warmup_steps}"
        if config.clip > 1:
            yield "clip", f"a clip below {config.clip:g}"
        if max(config.input_scale, config.output_scale) > 1:
            yield "scales", "smaller scales"
        if config.remedy:
            yield "scales", f"milder parameters of the remedy {config.remedy.name!r}"
        if config.dtype == "bfloat16" or (config.dtype == "auto" and config.device != "cpu" and torch.cuda.is_available()):
            yield "dtype", "dtype='float32'"

    ways = sorted(open_to(), key=lambda way: way[0] != first)
    return f"What would do: {', or '.join(words for _, words in ways[:3])}."
