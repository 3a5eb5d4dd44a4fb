"""The sweep of one corpus over input and output scales, by condition: what the sliders look up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from tying_utils.base import checks
from tying_utils.base.names import TIED, UNTIED, crossed
from tying_utils.study import profiles
from tying_utils.study.study import SWEEP, Results, Study

Scales = tuple[float, float]  # of the input and of the output path
ORDINARY: Scales = (1.0, 1.0)  # of the ordinary tied arm


def explored(profile: str) -> str:
    """Return the profile whose sweep `profile` explores: itself, or the committed one; ValueError if it is unknown."""
    profiles.get(profile)
    return next(name for name in (profile, *profiles.COMMITTED) if any(of.sweep for of in profiles.PROFILES[name].values()))


def corpora(profile: str) -> list[str]:
    """Return the corpora whose sweep `profile` explores, in order."""
    return [corpus for corpus, of in profiles.PROFILES[explored(profile)].items() if of.sweep]


def study(profile: str, corpus: str | None = None) -> Study:
    """Return the study whose sweep `profile` explores, on `corpus` (default: the first that has one).

    A committed one is only read, so nothing is trained. Raises ValueError for an unknown profile, and for a corpus without a
    sweep.
    """
    known = corpora(profile)
    if corpus is not None and corpus not in known:
        raise ValueError(f"corpus: {corpus!r} has no sweep; choose one of {', '.join(known)}")
    name = explored(profile)
    return Study(name, corpus or known[0], only_read=name in profiles.COMMITTED)


def results(profile: str) -> Results:
    """Return the same for all corpora together."""
    name = explored(profile)
    return Results(name, only_read=name in profiles.COMMITTED)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Measured conditions of one corpus on a grid of input and output scales, several seeds each.

    `tables` are those of `study.SWEEP`, by name. The arrays of a condition have a row per seed, in the order of `seeds`; a
    condition is a pair of swept scales (input, output), or None for the untied pair of tables.
    """

    profile: str
    corpus: str
    tables: Mapping[str, pd.DataFrame]

    @classmethod
    def of(cls, study: Study) -> "Sweep":
        """Return the sweep of `study`, read or measured. Raises ValueError with the file and what makes it, as `Study` does."""
        return cls(study.profile.name, study.profile.corpus, {name: study[name] for name in SWEEP if name in study})

    @cached_property
    def input_scales(self) -> list[float]:
        """Return the swept factors of the input path, in order."""
        return sorted(map(float, self.tables["sweep_share"]["input_scale"].unique()))

    @cached_property
    def output_scales(self) -> list[float]:
        """Return the swept factors of the output path, in order."""
        return sorted(map(float, self.tables["sweep_share"]["output_scale"].unique()))

    @cached_property
    def conditions(self) -> list[Scales]:
        """Return every swept pair of scales."""
        return [(a, b) for a in self.input_scales for b in self.output_scales]

    @cached_property
    def seeds(self) -> list[int]:
        """Return the seeds of initialisation, data order and (two-role) language."""
        return sorted(map(int, self.tables["sweep_losses"]["seed"].unique()))

    def rows(self, seed: int | None) -> Any:
        """Return which rows of an array are of `seed`: all of them for None."""
        return slice(None) if seed is None else [self.seeds.index(seed)]

    @cached_property
    def steps(self) -> list[int]:
        """Return the optimizer steps after which the tables were compared."""
        return sorted(map(int, self.tables["sweep_alignment"]["step"].unique()))

    @cached_property
    def spans(self) -> list[int]:
        """Return the last optimizer step of each span that `share` averages over."""
        return sorted(map(int, self.tables["sweep_share"]["step"].unique()))

    @cached_property
    def has_floor(self) -> bool:
        """Return whether the loss that a perfect model would have is known."""
        return bool(self.tables["sweep_losses"]["floor"].notna().all())

    @cached_property
    def has_roles(self) -> bool:
        """Return whether the role that a table shows is known."""
        return "sweep_roles" in self.tables and len(self.tables["sweep_roles"]) > 0

    def alignment(self, scales: Scales, source: str, column: str = "value") -> np.ndarray:
        """Return the orthogonal alignment of W with the untied table `source` ("input", "output") by step, (seeds, steps).

        `column`: "value", "corrected", "chance", "chance_low" or "chance_high".
        """
        return self._arrays("sweep_alignment", "step", column, "source")[source, _arm(scales)]

    def bias(self, scales: Scales) -> np.ndarray:
        """Return the output bias of W after each of `steps`, (seeds, steps): corrected alignment with U minus that with E."""
        return self.alignment(scales, "output", "corrected") - self.alignment(scales, "input", "corrected")

    def share(self, scales: Scales, column: str = "output_share") -> np.ndarray:
        """Return the output share over each of `spans`, (seeds, spans); "output_update_share": of the Adam update."""
        return self._arrays("sweep_share", "step", column)[(_arm(scales),)]

    def lens(self, scales: Scales | None) -> np.ndarray:
        """Return the tuned-lens KL at the input and after each layer, bits, (seeds, layers + 1), after training."""
        return self._arrays("sweep_lens", "layer", "kl_bits", "lens", "indexing")["tuned", "matched", _arm(scales)]

    def loss(self, scales: Scales | None) -> np.ndarray:
        """Return the validation loss after training, nats per token, (seeds,); above the language's own where that is known."""
        losses, floors = (self._arrays("sweep_losses", "corpus", name) for name in ("validation_loss", "floor"))
        arm = (_arm(scales),)
        return (losses[arm] - floors[arm] if self.has_floor else losses[arm])[:, 0]

    def purity(self, scales: Scales, role: str) -> np.ndarray:
        """Return the purity of the tied table's neighbourhoods in the role "source" or "target", (seeds,), after training."""
        return self._arrays("sweep_roles", "table", "purity", "role")[role, _arm(scales)][:, -1]

    @cached_property
    def purity_chance(self) -> float:
        """Return what a table that knows nothing of the roles scores."""
        return float(self.tables["sweep_roles"]["chance"].mean())

    def by_ratio(self) -> pd.DataFrame:
        """Return output bias and loss after training, means over seeds, of every condition in order of input / output scale."""
        rows = [
            {
                "ratio": a / b,
                "input_scale": a,
                "output_scale": b,
                "output_bias": self.bias((a, b))[:, -1].mean(),
                "loss": self.loss((a, b)).mean(),
            }
            for a, b in self.conditions
        ]
        return pd.DataFrame(rows).sort_values(["ratio", "input_scale"], ignore_index=True)

    def line(self, scales: Scales, seed: int | None = None) -> str:
        """Return one line of Python that trains this condition, or loads it where it was trained: any two scales will do."""
        a, b = scales
        config = f'profiles.get("{self.profile}", "{self.corpus}").config("{TIED}", {self.seeds[0] if seed is None else seed})'
        change = f"replace(input_scale={float(a)!r}, output_scale={float(b)!r})"
        return f"from tying_utils.study import profiles; from tying_utils import train; run = train({config}.{change})"

    def _arrays(self, table: str, columns: str, values: str, *above: str) -> dict[Any, np.ndarray]:
        """Return by `above` and arm the `values` of `table`, (seeds, points): a slider looks them up many times a second."""
        if (table, values) not in self._kept:
            ordered = self.tables[table].sort_values([*above, "arm", "seed", columns])
            self._kept[table, values] = {
                name: part[values].to_numpy().reshape(part["seed"].nunique(), -1)
                for name, part in ordered.groupby([*above, "arm"])
            }
        return self._kept[table, values]

    @cached_property
    def _kept(self) -> dict[tuple[str, str], dict[Any, np.ndarray]]:
        return {}


def nearest(name: str, scale: float, swept: Sequence[float]) -> float:
    """Return the one of `swept` that is nearest to `scale` by ratio. Raises ValueError, naming `name`, unless it is above 0."""
    checks.above_zero(name, scale)
    return min(swept, key=lambda other: abs(math.log(other / scale)))


def _arm(scales: Scales | None) -> str:
    return UNTIED if scales is None else crossed(*scales)
