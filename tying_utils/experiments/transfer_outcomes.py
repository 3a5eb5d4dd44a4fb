"""What fine-tuning comes to, from its tables alone: steps to a target loss, and what was forgotten."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tying_utils.base.names import UNTIED

TARGET_AT = 1 / 3  # of its steps, the untied arm has the target loss: most arms then reach it in theirs


def steps_to(steps: ArrayLike, losses: ArrayLike, target: float) -> tuple[float, bool]:
    """The step at which a curve of losses first comes down to `target`, interpolated linearly between evaluations.

    (steps, True); where it never does (the last step, False): a lower bound. Raises ValueError unless the steps grow.
    """
    x, y = np.asarray(steps, float), np.asarray(losses, float)
    if not len(x) or x.shape != y.shape or (np.diff(x) <= 0).any():
        raise ValueError(f"steps: growing steps, a loss each, are needed, got {x.tolist()} for {len(y)} losses")
    below = np.flatnonzero(y <= target)
    if not len(below):
        return float(x[-1]), False
    last = below[0]
    if last == 0:
        return float(x[0]), True
    return float(np.interp(-target, -y[[last - 1, last]], x[[last - 1, last]])), True


def outcomes(losses: pd.DataFrame, forgetting: pd.DataFrame) -> pd.DataFrame:
    """What fine-tuning comes to, from the tables transfer_losses and transfer_forgetting: a row a corpus, `to`, arm and seed.

    Columns beside these: target, the loss on the new text that the untied arm of the seed has after a third of its steps
    (`TARGET_AT`; nats a token, one for all arms); steps, how many bring the arm there, and reached, whether any do (if not,
    steps are all there are, a lower bound); first and last, its loss before and after; bits_per_byte, the last one in bits a
    byte (nan in the two-role language, which has no bytes); forgetting, how much the loss on the old text has grown (nats a
    token).
    """
    keys, rows = ["corpus", "to", "arm", "seed"], []
    for (corpus, to, seed), part in losses.groupby(["corpus", "to", "seed"], sort=False):
        curves = {arm: curve.sort_values("step") for arm, curve in part.groupby("arm", sort=False)}
        untied = curves[UNTIED]
        target = float(np.interp(TARGET_AT * untied["step"].max(), untied["step"], untied["loss"]))
        for arm, curve in curves.items():
            steps, reached = steps_to(curve["step"], curve["loss"], target)
            ends = {"first": curve["loss"].iloc[0], "last": curve["loss"].iloc[-1]}
            ends["bits_per_byte"] = ends["last"] / math.log(2) / curve["bytes_per_token"].iloc[-1]
            own = {"target": target, "steps": steps, "reached": reached, **ends}
            rows.append({"corpus": corpus, "to": to, "arm": arm, "seed": seed, **own})
    lost = forgetting.assign(forgetting=forgetting["after"] - forgetting["before"])
    return pd.DataFrame(rows).merge(lost[[*keys, "forgetting"]], on=keys, validate="1:1")
