"""What a run recorded of itself while it trained: losses, weights, gradients and output shares."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tying_utils.study.columns import labelled, tabulated
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Measure, Trained


def losses(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Tabulate loss, the floor where the language is known, and how many weights the model spends on its tables."""

    def one(run: Trained) -> pd.DataFrame:
        config, metrics = run.run.config, run.run.metrics
        in_tables = config.vocab_size * config.d_model * (1 if config.tied else 2)
        if config.remedy:
            in_tables += config.remedy.added_parameters(config.vocab_size, config.d_model)
        row = {
            **run.labels,
            "d_model": config.d_model,
            "n_layers": config.n_layers,
            "validation_loss": metrics["validation_loss"].iloc[-1],
            "floor": run.floor,
            "training_loss": metrics["loss"].tail(20).mean(),
            "parameters": run.run.record["made"]["parameters"],
            "table_parameters": in_tables,
        }
        return pd.DataFrame([row])

    return tabulated(one, runs, bar)


_GRADIENT_COLUMNS = ["step", "input_norm", "output_norm", "cosine", "output_share", "output_update_share", "clip"]
_GRADIENT_COLUMNS += ["published_input_norm", "published_output_share", "loss"]


def gradients(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Tabulate the norms of the two path gradients, their cosine and output share, at every step (Figure 4)."""
    return tabulated(lambda run: labelled(run.labels, run.run.metrics[_GRADIENT_COLUMNS]), runs, bar)


def _growing(steps: int) -> np.ndarray:
    """Return the last steps of spans that grow with the step."""
    return np.unique(np.round(steps ** np.linspace(0, 1, 25)).astype(int))


def _tenths(steps: int) -> np.ndarray:
    """Return the last steps of the tenths of training."""
    return np.unique(steps * np.arange(1, 11) // 10)


def _output_share(spans: Callable[[int], np.ndarray]) -> Measure:
    """Return the measure of mean output share over spans of training; `step` is the last of its span."""

    def one(run: Trained) -> pd.DataFrame:
        metrics, edges = run.run.metrics, spans(run.run.config.steps)
        span = edges[np.searchsorted(edges, metrics["step"])]
        means = metrics.groupby(span)[["output_share", "output_update_share"]].mean()
        return labelled(run.labels, means.rename_axis("step").reset_index())

    return lambda runs, profile, bar: tabulated(one, runs, bar)


output_share, output_share_by_tenths = _output_share(_growing), _output_share(_tenths)
