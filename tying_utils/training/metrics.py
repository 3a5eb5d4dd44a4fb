"""What a run measures at every step."""

import math

import pandas as pd
import torch
from torch import Tensor

from tying_utils.training.config import TrainConfig

METRICS = {
    "step": "optimizer step, from 1",
    "loss": "training loss of the step's batch, before the step, nats per token",
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
    "validation_loss": "nats per token on the held-out text, after the step; NaN between evaluations",
}
SCALARS = [name for name in METRICS if name not in ("step", "learning_rate", "validation_loss")]
VITAL = [SCALARS.index("loss"), SCALARS.index("gradient_norm")]  # where these are not finite, nothing is


class Metrics:
    """The rows of `METRICS` of a run. A step's numbers stay on the device until they are asked for: no step waits for it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.rows = pd.DataFrame(columns=list(METRICS))
        self._pending: list[tuple[int, Tensor]] = []  # steps and their `SCALARS` since the last `frame`
        self._validated: dict[int, float] = {}  # the validation loss after a step

    def add(self, step: int, scalars: Tensor) -> None:
        """Note the `SCALARS` of a step."""
        self._pending.append((step, scalars))

    def validated(self, loss: float) -> None:
        """Note the validation loss after the last step."""
        if self._pending:
            self._validated[self._pending[-1][0]] = loss

    def frame(self) -> pd.DataFrame:
        """Return a row for every step so far, float64."""
        if self._pending:
            steps, scalars = zip(*self._pending, strict=True)
            rows = pd.DataFrame(torch.stack(scalars).double().cpu().numpy(), columns=SCALARS).assign(
                step=steps,
                learning_rate=[self.config.learning_rate_at(step) for step in steps],
                validation_loss=[self._validated.get(step, math.nan) for step in steps],
            )
            rows = rows.loc[:, list(METRICS)]
            self.rows = pd.concat([self.rows, rows], ignore_index=True) if len(self.rows) else rows
            self._pending.clear()
        return self.rows
