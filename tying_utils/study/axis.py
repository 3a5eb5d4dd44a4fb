"""The axis of training length, measured: what is asked of a pair elsewhere, asked at every number of tokens per weight."""

from __future__ import annotations

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
# Of which runs those tables are that are not of the axis itself, and at which places.
_BESIDE = {"rates": _RATES} | dict.fromkeys(("remedy_losses", "remedy_deciles", "remedy_poles", "tuned_poles"), _REMEDIES)
_PLACES_OF = {_RATES: ("d64", "d128"), _REMEDIES: ("d64",)}
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
    measured before stays, also where its runs are on another machine. Nothing is trained here: `train_lengths` does that.
    Raises ValueError for an unknown place.
    """

    format = FORMAT

    def __init__(self, place: str, *, fresh: bool = False, only_read: bool = False, progress: bool = True) -> None:
        if place not in PLACES:
            raise ValueError(f"place: {place!r} is unknown; choose one of {', '.join(PLACES)}")
        self.place, self.profile = place, PLACES[place]
        super().__init__(NAME, place, fresh=fresh, only_read=only_read, progress=progress)
        self._committed = True
        self._measured: dict[str, list[str]] = {}  # the keys of the runs of each table measured now

    @property
    def names(self) -> list[str]:
        """Return the names of the tables that there are."""
        absent = {name for name, part in _BESIDE.items() if self.place not in _PLACES_OF[part]}
        absent |= {*(_OF_ROLES if self.profile.corpus != TWO_ROLE else ())}
        return [name for name in TABLES if name not in absent]

    def __contains__(self, name: object) -> bool:
        if name not in self.names:
            return False
        there = name in (self.manifest or {}).get("tables", {})
        return there or (not self.only_read and bool(self._here(str(name))))

    def _command(self, name: str) -> str:
        return "tying-utils lengths --measure"

    @property
    def finished(self) -> list[Group]:
        """Return the lengths, in tokens per weight, and seeds all of whose arms are trained."""
        return [*self._finished[_AXIS]]

    @cached_property
    def _planned(self) -> dict[str, dict[Group, list[Condition]]]:
        """Return the runs that are to be by length and seed: of the axis, of the rates tried, with remedies."""
        axis, tried, remedied = map(self._grouped, (lengths.axis(), lengths.tried(), lengths.remedied()))
        return {
            _AXIS: axis,
            _RATES: tried,
            _REMEDIES: {group: [*axis.get(group, ()), *runs] for group, runs in remedied.items()},
        }

    def _grouped(self, conditions: Iterable[Condition]) -> dict[Group, list[Condition]]:
        groups: dict[Group, list[Condition]] = {}
        for one in conditions:
            if one.profile == self.profile.name:
                groups.setdefault((one.tokens_per_weight, one.seed), []).append(one)
        return groups

    @cached_property
    def _finished(self) -> dict[str, dict[Group, list[Long]]]:
        """Return those of the planned runs whose length and seed has all of them here."""
        return {part: self._whole(groups) for part, groups in self._planned.items()}

    def _whole(self, groups: dict[Group, list[Condition]]) -> dict[Group, list[Long]]:
        from tying_utils.study.of_lengths import Long
        from tying_utils.training import run_store

        whole: dict[Group, list[Long]] = {}
        for group, conditions in groups.items():
            runs = []
            for one in conditions:
                corpus = self._corpus(one.config)
                run = run_store.find(one.config, corpus.fingerprint)
                runs.append(run and Long.of(one, run, corpus))
            if all(runs):
                whole[group] = runs
        return whole

    def _keys(self, name: str) -> dict[Group, list[str]]:
        """Return the keys of the runs of a table by length and seed, in order, whether or not they are here."""
        from tying_utils.training.run_store import run_key

        return {
            group: [run_key(one.config, self._corpus(one.config).fingerprint) for one in conditions if one.arm in TABLES[name]]
            for group, conditions in self._planned[_BESIDE.get(name, _AXIS)].items()
            if name != "displacement" or group[0] <= _REPLAYED
        }

    def _here(self, name: str) -> dict[Group, list[Long]]:
        """Return the finished runs of a table by length and seed."""
        keys, finished = self._keys(name), self._finished[_BESIDE.get(name, _AXIS)]
        return {group: [run for run in runs if run.arm in TABLES[name]] for group, runs in finished.items() if group in keys}

    def _runs_of(self, name: str) -> list[str]:
        return self._measured[name]

    def _made(self, name: str) -> pd.DataFrame:
        if not self.only_read and self._here(name).keys() <= self._kept(name).keys():
            found = self._read(name)  # nothing is new: its record stays as it is
            if found is not None:
                return found
        return super()._made(name)

    def _measure(self, name: str) -> Measured:
        here, keys, measure, began = self._here(name), self._keys(name), _measure_of(name), time.monotonic()
        if not here:
            raise ValueError(f"place: no length of {self.place!r} has all its runs here; train them with `tying-utils lengths`")
        parts = self._kept(name)

        def of(groups: Iterable[Group]) -> list[str]:
            return [key for group in groups for key in keys[group]]

        with tqdm(total=0, disable=not self.progress, leave=False) as bar:
            for number, (group, runs) in enumerate(here.items(), 1):
                if group not in parts:
                    bar.set_description(f"{self.place}, {name}, {number} of {len(here)}")
                    parts[group] = measure(runs, self.profile, bar)
                    entry = {"format": FORMAT, "runs": of(parts)}
                    self.store.write(name, pd.concat(parts.values()), entry, device="cpu", seconds=0)
        groups = [group for group in keys if group in parts]
        self._measured[name] = of(groups)
        return Measured(
            table=pd.concat([parts[group] for group in groups], ignore_index=True),
            origin=f"measured now, {len(groups)} lengths and seeds",
            device="cpu",
            seconds=time.monotonic() - began,
            update=self._describe,
        )

    def _kept(self, name: str) -> dict[Group, pd.DataFrame]:
        """Return what the table holds of each length and seed that was measured of the same runs, here or elsewhere."""
        measured: list[str] = []

        def current(entry: dict[str, Any]) -> bool:
            measured.extend(entry["runs"])
            return entry["format"] == FORMAT

        found = self.store.read(name, current, keep=False)
        if found is None:
            return {}
        parts = dict(iter(found[0].groupby(["tokens_per_weight", "seed"])))
        return {group: parts[group] for group, own in self._keys(name).items() if group in parts and {*own} <= {*measured}}

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
        if not having:
            known = sorted({table for axis in self.places for table in axis.names if table in axis})
            raise KeyError(f"{name!r}: no place of the axis of length has this table; they have {', '.join(known) or 'none'}")
        return pd.concat([axis[name].assign(place=axis.profile.name) for axis in having], ignore_index=True)
