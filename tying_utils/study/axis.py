"""The axis of training length, measured: what is asked of a pair elsewhere, asked at every number of tokens per weight."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from tying_utils.base.console import tqdm
from tying_utils.base.names import TWO_ROLE
from tying_utils.study import lengths
from tying_utils.study.arms import PAIR, SECOND_START, UNTIED, scaled
from tying_utils.study.lengths import ARMS, Condition, LongProfile
from tying_utils.study.profile import Arms
from tying_utils.study.recorded import Manifest, Measured, OfRuns

if TYPE_CHECKING:  # reading tables loads neither the trainer nor what measures
    from tying_utils.study.of_lengths import Long
    from tying_utils.study.trained import Measure

NAME, PROFILE = "lengths", "laptop"  # of the folder of results, and of the profile whose models it trains longer
FORMAT = 1  # of every table's record: raise it when a measure would give other numbers
PLACES: dict[str, LongProfile] = {"d64": lengths.D64, TWO_ROLE: lengths.ROLES, "d128": lengths.D128}
Group = tuple[float, int]  # tokens per weight and seed

_SCALED = (*PAIR, scaled(5))
TABLES: dict[str, Arms] = {
    "losses": ARMS,
    "deciles": ARMS,
    "poles": ARMS,
    "alignment": _SCALED,
    "neighbors": _SCALED,
    "lean": ARMS,
    "share": ARMS,
    "lens": _SCALED,
    "lens_steps": PAIR,
    "residual": PAIR,
    "ablation": PAIR,
    "drift": (UNTIED,),
    "displacement": _SCALED,
    "roles": ARMS,
    "probe": ARMS,
    "rates": lengths.RATED,
    "remedy_losses": lengths.REMEDIED,
    "remedy_deciles": lengths.REMEDIED,
    "remedy_poles": (UNTIED, SECOND_START, scaled(5), *lengths.REMEDIED),
    # Compared with a reference whose input table has a rate of its own.
    "tuned_poles": (*PAIR, *(arm for arm in lengths.REMEDIED if arm.kind == "table-rates")),
}
_REPLAYED = 1.3  # tokens per weight of the longest runs that are trained again, for which path moved their tables
_AXIS, _RATES, _REMEDIES = "axis", "rates", "remedies"
# Of which runs those tables are that are not of the axis itself; they are of d 64 alone.
_BESIDE = {"rates": _RATES} | dict.fromkeys(("remedy_losses", "remedy_deciles", "remedy_poles", "tuned_poles"), _REMEDIES)
_OF_ROLES = ("roles", "probe")


def _measure_of(name: str) -> Measure:
    from tying_utils.study import of_language, of_lengths, of_models, of_poles, of_runs, of_tables, of_training, transfer

    return {
        "losses": of_runs.losses,
        "deciles": of_lengths.losses_by_decile,
        "poles": of_poles.poles,
        "alignment": of_tables.align,
        "neighbors": of_tables.overlap_neighbors,
        "lean": of_lengths.lean,
        "share": of_runs.output_share_by_tenths,
        "lens": of_models.lenses,
        "lens_steps": of_models.lens_steps,
        "residual": of_models.residual_stream,
        "ablation": of_models.ablations,
        "drift": of_lengths.moved,
        "displacement": of_training.displacement,
        "roles": of_language.all_roles,
        "probe": transfer.probes,
        "rates": of_lengths.rated_losses,
        "remedy_losses": of_runs.losses,
        "remedy_deciles": of_lengths.losses_by_decile,
        "remedy_poles": of_poles.poles,
        "tuned_poles": of_poles.poles_at_tuned_rate,
    }[name]


class Axis(OfRuns):
    """The tables of one place of the axis of length, "d64", "d128" or "two-role"; each has the column tokens_per_weight.

    A table is read as it is. With `fresh` it grows by the lengths and seeds all of whose arms have been trained since; what was
    measured before stays. Nothing is trained here: `train_lengths` does that. Raises ValueError for an unknown place.
    """

    format = FORMAT

    def __init__(self, place: str, *, fresh: bool = False, only_read: bool = False, progress: bool = True) -> None:
        if place not in PLACES:
            raise ValueError(f"place: {place!r} is unknown; choose one of {', '.join(PLACES)}")
        self.place, self.profile = place, PLACES[place]
        super().__init__(NAME, place, fresh=fresh, only_read=only_read, progress=progress)
        self._committed = True

    @property
    def names(self) -> list[str]:
        """Return the names of the tables that there are."""
        absent = {*(_BESIDE if self.place != "d64" else ()), *(_OF_ROLES if self.profile.corpus != TWO_ROLE else ())}
        return [name for name in TABLES if name not in absent]

    def __contains__(self, name: object) -> bool:
        return name in self.names and (not self.only_read or name in (self.manifest or {}).get("tables", {}))

    def _command(self, name: str) -> str:
        return "tying-utils lengths --measure"

    @property
    def finished(self) -> list[Group]:
        """Return the lengths, in tokens per weight, and seeds all of whose arms are trained."""
        return [*self._finished[_AXIS]]

    @cached_property
    def _finished(self) -> dict[str, dict[Group, list[Long]]]:
        """Return the runs by length and seed where all arms are finished: of the axis, of the rates tried, with remedies."""
        axis, remedied = self._whole(lengths.axis()), self._whole(lengths.remedied())
        beside = {group: [*axis[group], *runs] for group, runs in remedied.items() if group in axis}
        return {_AXIS: axis, _RATES: self._whole(lengths.tried()), _REMEDIES: beside}

    def _whole(self, conditions: Iterable[Condition]) -> dict[Group, list[Long]]:
        from tying_utils.study.of_lengths import Long
        from tying_utils.training import run_store

        groups: dict[Group, list[Long | None]] = {}
        for one in conditions:
            if one.profile == self.profile.name:
                corpus = self._corpus(one.config)
                run = run_store.find(one.config, corpus.fingerprint)
                groups.setdefault((one.tokens_per_weight, one.seed), []).append(run and Long.of(one, run, corpus))
        return {group: [run for run in runs if run] for group, runs in groups.items() if all(runs)}

    def _groups(self, name: str) -> dict[Group, list[Long]]:
        groups = self._finished[_BESIDE.get(name, _AXIS)]
        longest = _REPLAYED if name == "displacement" else math.inf
        return {
            group: [run for run in runs if run.arm in TABLES[name]] for group, runs in groups.items() if group[0] <= longest
        }

    def _runs_of(self, name: str) -> list[str]:
        return [run.run.key for runs in self._groups(name).values() for run in runs]

    def _measure(self, name: str) -> Measured:
        groups, measure, began = self._groups(name), _measure_of(name), time.monotonic()
        if not groups:
            raise ValueError(f"place: no length of {self.place!r} has all its runs here; train them with `tying-utils lengths`")
        parts = self._kept(name, groups)
        with tqdm(total=0, disable=not self.progress, leave=False) as bar:
            for number, (group, runs) in enumerate(groups.items(), 1):
                if group not in parts:
                    bar.set_description(f"{self.place}, {name}, {number} of {len(groups)}")
                    parts[group] = measure(runs, self.profile, bar)
                    done = [run.run.key for one in parts for run in groups[one]]
                    self.store.write(name, pd.concat(parts.values()), {"format": FORMAT, "runs": done}, device="cpu", seconds=0)
        return Measured(
            table=pd.concat([parts[group] for group in groups], ignore_index=True),
            origin=f"measured now, {len(groups)} lengths and seeds",
            device="cpu",
            seconds=time.monotonic() - began,
            update=self._describe,
        )

    def _kept(self, name: str, groups: dict[Group, list[Long]]) -> dict[Group, pd.DataFrame]:
        """Return what the table holds of each of `groups`, where it was measured of the same runs."""
        measured: list[str] = []

        def current(entry: dict[str, Any]) -> bool:
            measured.extend(entry["runs"])
            return entry["format"] == FORMAT

        found = self.store.read(name, current, keep=False)
        if found is None:
            return {}
        parts = dict(iter(found[0].groupby(["tokens_per_weight", "seed"])))
        return {
            group: parts[group] for group, runs in groups.items() if group in parts and {r.run.key for r in runs} <= {*measured}
        }

    def _describe(self, manifest: Manifest) -> None:
        """Add the runs and their text to the manifest."""
        for groups in self._finished.values():
            for one in (run for group in groups.values() for run in group):
                length, rate = one.tokens_per_weight, one.rate
                self._enter(manifest, one.run, arm=one.arm.name, seed=one.seed, tokens_per_weight=length, rate=rate)


class Lengths:
    """The places of the axis of length whose tables are there, read and never measured: each table is theirs, with a place."""

    def __init__(self) -> None:
        every = [Axis(place, only_read=True) for place in PLACES]
        self.places = [axis for axis in every if axis.manifest]
        self.profile = SimpleNamespace(name=PROFILE, corpus=NAME)  # what a figure asks of the tables that it is drawn from

    @property
    def checksums(self) -> dict[str, str]:
        """Return the sha256 of each table on disk, by place/name."""
        return {key: digest for axis in self.places for key, digest in axis.checksums.items()}

    def __contains__(self, name: object) -> bool:
        return any(name in axis for axis in self.places)

    def __getitem__(self, name: str) -> pd.DataFrame:
        having = [axis for axis in self.places if name in axis]
        return pd.concat([axis[name].assign(place=axis.profile.name) for axis in having], ignore_index=True)
