"""What is measured of the axis of length alone: losses by frequency, how far tables move, what they tell of other tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from tying_utils.corpora.corpus import Corpus
from tying_utils.measures import cooccurrence, drift, perplexity
from tying_utils.study.columns import labelled
from tying_utils.study.lengths import Condition
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, models_side_by_side, side_by_side
from tying_utils.training.run_store import Run

_LABELS = ("corpus", "d_model", "tokens_per_weight", "arm", "input_scale", "seed")
_WINDOWS = 1024  # of the held-out text: a tenth of their tokens are some thousands
_READ = 10_000_000  # tokens of the training text, for what is beside each


@dataclass(frozen=True)
class Long(Trained):
    """A finished run of the axis of length."""

    columns: tuple[str, ...] = _LABELS
    tokens_per_weight: float = 0.0
    rate: float = 1.0

    @classmethod
    def of(cls, condition: Condition, run: Run, corpus: Corpus) -> "Long":
        """Return `run`, which was trained on `corpus` as the `condition` says."""
        length, rate = condition.tokens_per_weight, condition.rate
        return cls(condition.arm, condition.seed, run, corpus, tokens_per_weight=length, rate=rate)

    @property
    def own(self) -> dict[str, Any]:
        """Return the labels that its configuration does not hold."""
        return super().own | {"tokens_per_weight": self.tokens_per_weight, "rate": self.rate}

    @property
    def place(self) -> tuple[Any, ...]:
        """Return what an untied run shares with this one if it is its reference."""
        return (*super().place, self.tokens_per_weight)

    @cached_property
    def used(self) -> torch.Tensor:
        """Return the tokens that the run was ever asked to predict: a short run meets a part of those in its text."""
        return torch.from_numpy(self.seen.nonzero()[0])


def deciles(counts: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return for each token, by its count (V,), the tenth of the held-out text (any shape) that it falls into, 1 the rarest.

    A token lies whole in the tenth of its middle occurrence, so a common one may leave a tenth empty.
    """
    occurs = np.bincount(held_out.reshape(-1), minlength=len(counts))
    order = np.argsort(counts, kind="stable")
    middle = (occurs[order].cumsum() - occurs[order] / 2) / occurs.sum()
    tenth = np.empty(len(counts), np.int64)
    tenth[order] = np.minimum(10 * middle, 9).astype(np.int64) + 1
    return tenth


def _by_decile(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return the held-out loss, nats per token, by tenths of the held-out text, from its rarest tokens to its commonest."""
    windows = run.corpus.windows("validation", _WINDOWS, run.run.config.context + 1)
    losses = perplexity.by_token(run.model(), windows, progress=False).reshape(-1)
    targets = windows[:, 1:].reshape(-1)
    frame = pd.DataFrame({"decile": deciles(run.corpus.counts, targets)[targets], "loss": losses.astype(float)})
    means = frame.groupby("decile")["loss"].agg(tokens="size", loss="mean")
    return labelled(run.labels, means.reset_index())


def _moved(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return how far each table is from its start after about a tenth of training, and after all of it."""
    steps = run.run.checkpoints
    kept = [0, max(step for step in steps if step <= steps[-1] / 10), steps[-1]]
    found = []
    for name in run.tables():
        moved = drift.drift({step: run.tables(step)[name] for step in kept})
        found.append(labelled(run.labels | {"table": name}, moved[["step", "to_start"]].iloc[1:]))
    return pd.concat(found)


def _with_neighbours(runs: Sequence[Trained]) -> list[tuple[Trained, cooccurrence.Neighbours]]:
    first = runs[0]  # the runs of one length and seed share their text
    beside = cooccurrence.neighbours(first.corpus.train[:_READ], first.run.config.vocab_size)
    return [(run, beside) for run in runs]


def _lean(read: tuple[Trained, cooccurrence.Neighbours], profile: Profile) -> pd.DataFrame:
    """Return how well each table tells what comes before its tokens and what after them."""
    run, beside = read
    rows = []
    for name, table in run.tables().items():
        found = cooccurrence.lean(table, beside.before[run.used], beside.after[run.used])
        rows.append({**run.labels, "table": name, "before": found.before, "after": found.after})
    return pd.DataFrame(rows)


def _rated(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return the loss with the learning rate, which is what `of_runs.losses` gives of a run whose rate was chosen before."""
    rated = replace(run, columns=(*_LABELS, "rate", "learning_rate"))
    return pd.DataFrame([{**rated.labels, "validation_loss": run.run.metrics["validation_loss"].iloc[-1]}])


losses_by_decile, rated_losses = each(_by_decile, models_side_by_side), each(_rated)
moved, lean = each(_moved), each(_lean, side_by_side, _with_neighbours)
