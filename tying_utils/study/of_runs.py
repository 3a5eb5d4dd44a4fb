"""What a run recorded of itself while it trained: losses, weights, gradients and output shares."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from tying_utils.study.columns import labelled
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each


def _losses(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return loss, the floor where the language is known, and how many weights the model spends on its tables."""
    config, metrics = run.run.config, run.run.metrics
    row = {
        **run.labels,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "validation_loss": metrics["validation_loss"].iloc[-1],
        "floor": run.floor,
        "training_loss": metrics["loss"].tail(20).mean(),
        "parameters": run.run.record["made"]["parameters"],
        "table_parameters": config.table_parameters,
    }
    return pd.DataFrame([row])


_GRADIENT_COLUMNS = ["step", "input_norm", "output_norm", "cosine", "output_share", "output_update_share", "clip"]
_GRADIENT_COLUMNS += ["published_input_norm", "published_output_share", "loss"]


def _gradients(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return the norms of the two path gradients, their cosine and output share, at every step (Figure 4)."""
    return labelled(run.labels, run.run.metrics[_GRADIENT_COLUMNS])


def _output_share(spans: Callable[[int], np.ndarray], run: Trained, profile: Profile) -> pd.DataFrame:
    """Return mean output shares over spans of training; `step` is the last of its span."""
    metrics, edges = run.run.metrics, spans(run.run.config.steps)
    span = edges[np.searchsorted(edges, metrics["step"])]
    means = metrics.groupby(span)[["output_share", "output_update_share"]].mean()
    return labelled(run.labels, means.rename_axis("step").reset_index())


def _growing(steps: int) -> np.ndarray:
    """Return the last steps of spans that grow with the step."""
    return np.unique(np.round(steps ** np.linspace(0, 1, 25)).astype(int))


def _tenths(steps: int) -> np.ndarray:
    """Return the last steps of the tenths of training."""
    return np.unique(steps * np.arange(1, 11) // 10)


losses, gradients = each(_losses), each(_gradients)
output_share, output_share_by_tenths = each(partial(_output_share, _growing)), each(partial(_output_share, _tenths))
