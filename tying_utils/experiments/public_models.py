"""The public models that are compared, or their miniatures: where they are read from, and what of them is read.

Tables are read alone, one family at a time.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tying_utils.corpora import texts, vocabulary
from tying_utils.models import checkpoints
from tying_utils.models.families import Family, Model, families
from tying_utils.study import profiles

MINIATURES, PUBLIC = "miniatures", "public"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on one set of models: text that is read, draws of chance, neighbours of a graph."""

    text: str = "python"  # a name of `corpora.documents`
    characters: int = 3_000_000  # of each part of it
    context: int = 64  # tokens per window
    lens_windows: int = 480
    evaluation_windows: int = 64
    lens: dict[str, Any] = field(default_factory=dict)  # arguments of measures.lens.train_lens
    permutations: int = 100  # of rows, for chance
    spectral_permutations: int = 20
    k: int = 16  # neighbours and components of the spectral distance: the published 64 would be most of a small vocabulary
    components: int = 32


_EFFORTS = {
    "smoke": Effort(
        characters=100_000,
        context=32,
        lens_windows=16,
        evaluation_windows=8,
        lens={"steps": 5},
        permutations=5,
        spectral_permutations=2,
        k=8,
        components=8,
    ),
    "quick": Effort(lens_windows=240, lens={"steps": 100}, permutations=20, spectral_permutations=4),
    PUBLIC: Effort(
        text="wikitext-2",
        characters=20_000_000,
        context=512,
        lens_windows=1000,
        permutations=20,
        spectral_permutations=3,
        k=64,
        components=128,
    ),
}


@dataclass(frozen=True)
class Joined:
    """The tables of one family on the tokens that both of its models have: (V, d) each, "input", "output" and "tied"."""

    family: Family
    tables: dict[str, Tensor]
    tied_rows: np.ndarray  # of the tokens in the tied model's own table
    untied_rows: np.ndarray


class PublicModels:
    """The paper's model families, and what is read of them: tables, and text in their own tokens.

    models: "miniatures", trained here where they are missing, or "public", whose tables come from the hub. profile decides
    how large the miniatures are. `chosen` are names of `families()`. Raises ValueError for an unknown profile, set of models
    or family.
    """

    def __init__(self, profile: str, models: str, chosen: tuple[str, ...] | None, *, progress: bool) -> None:
        profiles.get(profile)
        if models not in (MINIATURES, PUBLIC):
            raise ValueError(f"MODELS: {models!r} is unknown; choose {MINIATURES!r} or {PUBLIC!r}")
        known = families()
        if unknown := [name for name in chosen or () if name not in known]:
            raise ValueError(f"families: {', '.join(unknown)} unknown; choose of {', '.join(known)}")
        self.families = {name: family for name, family in known.items() if chosen is None or name in chosen}
        self.models, self.scale, self.progress = models, profile, progress
        self.effort = _EFFORTS.get(PUBLIC if models == PUBLIC else profile, Effort())
        self.sources: dict[str, dict[str, Any]] = {}  # what each checkpoint that was read turned out to hold
        self._checkpoints: dict[tuple[Model, str | None], checkpoints.CheckpointTables] = {}
        self._joined: dict[str, Joined] = {}
        self._tokens: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def _wanted(self) -> list[Model]:
        return list(dict.fromkeys(model for family in self.families.values() for model in family.models))

    @cached_property
    def _folders(self) -> dict[str, Path]:
        from tying_utils.study import miniatures

        return miniatures.folders(self._wanted, self.scale, progress=self.progress)

    def source(self, model: Model) -> str | Path:
        """Return where `model` is read from: its id on the hub, or the folder of its miniature, trained if need be."""
        return model.source if self.models == PUBLIC else self._folders[model.name]

    def read(self, model: Model, revision: str | None = None) -> checkpoints.CheckpointTables:
        """Return the tables of `model`, every row of them, memory-mapped: verified once, and held at no cost."""
        if (model, revision) not in self._checkpoints:
            found = checkpoints.read_tables(self.source(model), revision, progress=self.progress)
            (V, d), dtype = found.input.shape, str(found.input.dtype).removeprefix("torch.")
            about = {"tied": found.tied, "rows": V, "width": d, "dtype": dtype, "commit": found.commit}
            self.sources[model.name + (f" at {revision}" if revision else "")] = about
            self._checkpoints[model, revision] = found
        return self._checkpoints[model, revision]

    def joined(self, family: Family) -> Joined:
        """Return the three tables of a family on the tokens that its two models share, on the GPU where there is one."""
        if family.name not in self._joined:
            self._joined.clear()  # one family at a time: Qwen3's tables alone are 3 GB
            found = {model.name: vocabulary.read(self.source(model)) for model in (family.tied, family.untied)}
            tied_rows, untied_rows = vocabulary.join(found[family.tied.name], found[family.untied.name])
            tied, untied = self.read(family.tied), self.read(family.untied)
            from tying_utils.training.hardware import choose_hardware

            device = choose_hardware().device
            tables = {
                "input": rows(untied.input, untied_rows).to(device),
                "output": rows(untied.output, untied_rows).to(device),
                "tied": rows(tied.table, tied_rows).to(device),
            }
            self._joined[family.name] = Joined(family, tables, tied_rows, untied_rows)
        return self._joined[family.name]

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        parts = texts.documents(self.effort.text)
        return _leading(parts[0], self.effort.characters), _leading(parts[1], self.effort.characters)

    def tokens(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Return the text that lenses learn on, and the held-out text, as `model`'s own tokenizer reads them."""
        if model.name not in self._tokens:
            own = vocabulary.tokenizer(self.source(model))
            self._tokens[model.name] = vocabulary.encode(own, self._texts[0]), vocabulary.encode(own, self._texts[1])
        return self._tokens[model.name]


def rows(table: Tensor, wanted: np.ndarray) -> Tensor:
    """Return the `wanted` rows of a table (V, d): a view where they are the first ones, in order."""
    if np.array_equal(wanted, np.arange(len(wanted))):
        return table[: len(wanted)]
    return table[torch.from_numpy(wanted)]


def _leading(documents: texts.Documents, characters: int) -> list[str]:
    """Return the texts, each cut to the fraction that leaves about so many characters in all."""
    fraction = min(1.0, characters / sum(len(text) for _, text in documents))
    return [text[: math.ceil(fraction * len(text))] for _, text in documents]
