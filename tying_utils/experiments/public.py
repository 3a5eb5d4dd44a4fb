"""The paper's own comparisons on public checkpoints, or on their miniatures: tidy tables, each beside the published value.

Tables are read alone, one family at a time; only the lenses load models, whole and one after another.
"""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from tying_utils.corpora import texts, vocabulary
from tying_utils.experiments import alignment
from tying_utils.experiments.judge import Statistic
from tying_utils.experiments.public_tables import MINIATURES, PUBLIC, TABLES, rows
from tying_utils.models import checkpoints
from tying_utils.models.families import Family, Model, families
from tying_utils.study import profiles
from tying_utils.study.recorded import Manifest, Measured, Recorded

# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 1


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


class Public(Recorded):
    """The measured tables of the paper's model families by name (see `TABLES`), read or measured as `Recorded` says.

    models: "miniatures", trained here where they are missing, or "public", whose tables come from the hub. profile decides
    where the tables lie and how large the miniatures are. `families` chooses some of `checkpoints.families()` by name.
    Raises ValueError for an unknown profile, set of models or family.
    """

    format = FORMAT

    def __init__(
        self,
        profile: str = "quick",
        models: str = MINIATURES,
        *,
        families: tuple[str, ...] | None = None,
        fresh: bool = False,
        only_read: bool = False,
        progress: bool = True,
    ) -> None:
        profiles.get(profile)
        if models not in (MINIATURES, PUBLIC):
            raise ValueError(f"MODELS: {models!r} is unknown; choose {MINIATURES!r} or {PUBLIC!r}")
        self.families = _chosen(families)
        self.profile = SimpleNamespace(name=profile, corpus=models)  # what a figure asks of the tables that it is drawn from
        super().__init__(profile, models, fresh=fresh, only_read=only_read, progress=progress)
        self.models = models
        self.effort = _EFFORTS.get(PUBLIC if models == PUBLIC else profile, Effort())
        self.sources: dict[str, dict[str, Any]] = {}  # what each checkpoint that was read turned out to hold
        self._checkpoints: dict[tuple[Model, str | None], checkpoints.CheckpointTables] = {}
        self._joined: dict[str, Joined] = {}
        self._tokens: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the tables."""
        return list(TABLES)

    @property
    def _always(self) -> dict[str, Any]:
        return {"families": list(self.families)}

    def _command(self, name: str) -> str:
        return f"make reproduce PROFILE={self.profile.name}"

    def _measure(self, name: str) -> Measured:
        from tying_utils.training.hardware import choose_hardware

        began = time.monotonic()
        with tqdm(total=len(self.families), desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = TABLES[name](self, bar)
        return Measured(
            table=table,
            origin=f"measured now on the {'public models' if self.models == PUBLIC else 'miniatures'}",
            device=choose_hardware().device.type,
            seconds=time.monotonic() - began,
            update=self._describe,
        )

    def _describe(self, manifest: Manifest) -> None:
        """Add to the manifest which checkpoints the tables were measured on."""
        manifest["models"] = self.models
        manifest["sources"] = {**manifest.get("sources", {}), **self.sources}

    def _runs_of(self, name: str) -> list[str]:
        return self._runs

    @cached_property
    def _runs(self) -> list[str]:
        """Return the keys of the miniatures' runs, as the profile means them today; public models have none."""
        from tying_utils.study import miniatures

        return [] if self.models == PUBLIC else miniatures.keys(self._wanted, self.profile.name)

    @property
    def _wanted(self) -> list[Model]:
        return list(dict.fromkeys(model for family in self.families.values() for model in family.models))

    @cached_property
    def _folders(self) -> dict[str, Path]:
        from tying_utils.study import miniatures

        return miniatures.folders(self._wanted, self.profile.name, progress=self.progress)

    def source(self, model: Model) -> str | Path:
        """Return where `model` is read from: its id on the hub, or the folder of its miniature, trained if need be."""
        return model.source if self.models == PUBLIC else self._folders[model.name]

    def read(self, model: Model, revision: str | None = None) -> checkpoints.CheckpointTables:
        """Return the tables of `model`, every row of them, memory-mapped: verified once, and held at no cost."""
        if (model, revision) not in self._checkpoints:
            self._checkpoints[model, revision] = self._found(model, revision)
        return self._checkpoints[model, revision]

    def _found(self, model: Model, revision: str | None) -> checkpoints.CheckpointTables:
        found = checkpoints.read_tables(self.source(model), revision, progress=self.progress)
        (V, d), dtype = found.input.shape, str(found.input.dtype).removeprefix("torch.")
        about = {"tied": found.tied, "rows": V, "width": d, "dtype": dtype, "commit": found.commit}
        self.sources[model.name + (f" at {revision}" if revision else "")] = about
        return found

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


def _leading(documents: texts.Documents, characters: int) -> list[str]:
    """Return the texts, each cut to the fraction that leaves about so many characters in all."""
    fraction = min(1.0, characters / sum(len(text) for _, text in documents))
    return [text[: math.ceil(fraction * len(text))] for _, text in documents]


def _chosen(names: tuple[str, ...] | None) -> dict[str, Family]:
    known = families()
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"families: {', '.join(unknown)} unknown; choose of {', '.join(known)}")
    return {name: family for name, family in known.items() if names is None or name in names}


def output_bias(table: pd.DataFrame) -> pd.DataFrame:
    """Return the output bias of each family by fit: alignment of W with U minus that with E, a row per family and kind.

    table: of `Public`, "alignment". Columns: corrected, held_out, and published_corrected where there is a published value.
    There is one model of each kind: no interval over training runs.
    """
    fits = table[table["kind"] != "identity"]
    columns = ("corrected", "held_out", "published_corrected")
    bias = {column: alignment.output_bias(fits, column).set_index(["family", "kind"])["output_bias"] for column in columns}
    return pd.DataFrame(bias).reset_index()


def verdicts(public: Public) -> pd.DataFrame:
    """Judge C1 over families, each one pair of models: columns as `claims.verdicts`, "seeds" being the number of families.

    Families differ in more than the tie, so this says whether the bias is theirs in common, not that the tie makes it.
    """
    bias, found = output_bias(public["alignment"]), []
    for kind, column, words in (("orthogonal", "corrected", "chance-corrected"), ("linear", "held_out", "held-out tokens")):
        own = bias[bias["kind"] == kind]
        paper = own.dropna(subset="published_corrected")
        values = ", ".join(f"{row['family']} {row['published_corrected']:.3f}" for row in paper.to_dict("records"))
        label, unit = f"output bias, {kind}, {words}, over families", "corrected alignment"
        judged = Statistic(f"output_bias_{kind}", "C1", label, unit, published=values + ", less Gaussian chance")
        found.append({"corpus": public.models, **judged.row(own[column])})
    columns = ["claim", "statistic", "corpus", "estimate", "low", "high", "seeds", "verdict", "published", "id", "unit", "null"]
    return pd.DataFrame(found, columns=columns)
