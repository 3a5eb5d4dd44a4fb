"""Finished runs with their arm, and how a measure is taken of many of them: in turn, or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from tying_utils.base.console import tqdm
from tying_utils.base.names import PLACE
from tying_utils.corpora.corpus import Corpus
from tying_utils.corpora.two_role import Language
from tying_utils.study.arms import Arm
from tying_utils.study.columns import in_turn, tabulated
from tying_utils.study.profile import Profile
from tying_utils.training.batches import Batches
from tying_utils.training.hardware import choose_hardware
from tying_utils.training.run_store import Run

# The first columns of a table. Where the place is in columns, the arm is called as at the profile's own place.
PLAIN = ("corpus", "arm", "input_scale", "seed")
SWEPT = ("corpus", "arm", "input_scale", "output_scale", "seed")
PLACED = ("corpus", *PLACE, "arm", "input_scale", "seed")


@dataclass(frozen=True)
class Trained:
    """The finished run of one arm and seed; `columns` label its rows in a table."""

    arm: Arm
    seed: int
    run: Run
    corpus: Corpus
    columns: tuple[str, ...] = PLAIN

    @property
    def labels(self) -> dict[str, Any]:
        """Return the first columns of its rows: those of the arm, and the others from the run's configuration."""
        own = self.own
        return {name: own[name] if name in own else getattr(self.run.config, name) for name in self.columns}

    @property
    def own(self) -> dict[str, Any]:
        """Return the labels that its configuration does not hold."""
        arm = self.arm.kind if self.columns == PLACED else self.arm.name
        return {"corpus": self.corpus.name, "arm": arm, "seed": self.seed}

    @property
    def place(self) -> tuple[Any, ...]:
        """Return what an untied run shares with this one if it is its reference: seed, architecture, the tables' shape."""
        config = self.run.config
        return self.seed, config.arch, config.vocab_size, config.d_model

    @cached_property
    def used(self) -> torch.Tensor:
        """Return the tokens that occur in the training text: untrained rows are no embeddings, and look all alike."""
        return torch.from_numpy(self.corpus.counts.nonzero()[0])

    @cached_property
    def seen(self) -> np.ndarray:
        """Return how often the run was asked to predict each token, (V,) int64: of the whole text it reads a part."""
        config = self.run.config
        batches = Batches(config, self.corpus, torch.device("cpu"))
        counts = np.zeros(config.vocab_size, np.int64)
        for step in range(config.steps):
            counts += np.bincount(batches(step)[:, 1:].flatten().numpy(), minlength=config.vocab_size)
        return counts

    def tables(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """Return the rows of the used tokens by table: "tied", or "input" and "output"."""
        tables = self.run.tables(step)
        named = {"tied": tables.table} if tables.tied else {"input": tables.input, "output": tables.output}
        return {name: table[self.used] for name, table in named.items()}

    @cached_property
    def language(self) -> Language | None:
        """Return the two-role language that the run was trained on; None for a text."""
        config = self.run.config
        return Language(config.vocab_size, config.language) if config.language else None

    @cached_property
    def floor(self) -> float:
        """Return what the language itself scores on the run's held-out windows, nats per token; nan for a text."""
        if self.language is None:
            return float("nan")
        config = self.run.config
        return self.language.loss(self.corpus.windows("validation", config.validation_sequences, config.context + 1))

    def model(self) -> Any:
        """Return the finished model, on the device that this machine computes on."""
        return self.run.model(device=choose_hardware().device)

    def held_out(self, windows: int) -> np.ndarray:
        """Return so many windows of the held-out text, (windows, context)."""
        return self.corpus.windows("validation", windows, self.run.config.context)


Measure = Callable[[Sequence[Trained], Profile, "tqdm[Any]"], pd.DataFrame]
How = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def each(
    one: Callable[[Any, Profile], pd.DataFrame], how: How = in_turn, of: Callable[[Sequence[Trained]], Sequence[Any]] = list
) -> Measure:
    """Return the measure that puts the rows of `one` below one another: of each run, or of what `of` makes of the runs."""
    return lambda runs, profile, bar: tabulated(lambda item: one(item, profile), of(runs), bar, how)


def references(runs: Sequence[Trained]) -> dict[tuple[Any, ...], Trained]:
    """Return by place the untied run that others are compared with: the first without a remedy."""
    found: dict[tuple[Any, ...], Trained] = {}
    for run in runs:
        if not run.run.config.tied and run.run.config.remedy is None:
            found.setdefault(run.place, run)
    return found


def side_by_side(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return `function` of each item, in order: in as many threads as the CPU has cores, each computing on one."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, min(threads, len(items))), initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(function, items))


def models_side_by_side(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return the same where `function` builds models and lenses; on a GPU it takes one after another.

    `items` have an arm and a seed, which a ValueError of `function` then names, as of a lens that diverged.
    """
    # transformers puts another module in its own place when it is imported: threads that are the first to import it, at once,
    # are handed the one without its models.
    import transformers  # noqa: F401
    import tuned_lens  # noqa: F401

    def one(item: Any) -> Any:
        try:
            return function(item)
        except ValueError as error:
            raise ValueError(f"{error} (arm {item.arm.name!r}, seed {item.seed})") from error

    return side_by_side(one, items) if choose_hardware().device.type == "cpu" else in_turn(one, items)
