"""Tidy tables that are read where they are current, measured where they are missing, and recorded with what made them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from tying_utils.base import paths
from tying_utils.base.table_store import TableStore
from tying_utils.study import profiles

if TYPE_CHECKING:  # reading tables loads no trainer
    from tying_utils.corpora.corpus import Corpus
    from tying_utils.training.config import TrainConfig
    from tying_utils.training.run_store import Run

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A table that was measured now: `origin` says in words of what, `update` adds to the manifest how."""

    table: pd.DataFrame
    origin: str
    device: str
    seconds: float
    update: Callable[[Manifest], None]


class Recorded(ABC):
    """The tidy tables of a folder under a profile's results, by name.

    A table that is there and intact is read: on a committed profile as it was committed, elsewhere if it was made from what
    the profile means today. Otherwise it is measured. `fresh` measures anew in any case; `only_read` never does: what is
    missing or damaged is a ValueError. `origin` says in words, for each table asked for, where it came from.
    """

    format: int  # part of every table's record: raised when a measure would give other numbers

    def __init__(self, profile: str, folder: str, *, fresh: bool, only_read: bool, progress: bool) -> None:
        self._committed = profile in profiles.COMMITTED
        self.fresh, self.only_read, self.progress = fresh, only_read, progress
        self.store = TableStore(paths.results(profile) / folder)
        self.folder = self.store.folder
        self.origin: dict[str, str] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the tables that there are."""

    @abstractmethod
    def _runs_of(self, name: str) -> list[str]:
        """Return the keys of the runs that a table is made from, as the profile means them today."""

    @abstractmethod
    def _measure(self, name: str) -> Measured:
        """Measure a table."""

    @abstractmethod
    def _command(self, name: str) -> str:
        """Return the command that makes a table."""

    @property
    def _always(self) -> dict[str, Any]:
        """Return what a table's record holds in any case, beside its format and runs: another is never read."""
        return {}

    def _check(self, name: str) -> None:
        """Raise ValueError for a name that is no table's."""
        if name not in self.names:
            raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> pd.DataFrame:
        self._check(name)
        if name not in self._tables:
            found = None if self.fresh else self._read(name)
            self._tables[name] = self._made(name) if found is None else found
        return self._tables[name]

    def complete(self, names: Iterable[str] | None = None) -> Self:
        """Read or measure those of the tables `names` (default: all) that there are here, and return itself."""
        for name in self.names if names is None else names:
            if name in self:
                self[name]
        return self

    @property
    def manifest(self) -> Manifest | None:
        """Return how the tables were made; None where there are none."""
        return self.store.manifest

    @property
    def checksums(self) -> dict[str, str]:
        """Return the sha256 of each table on disk, by folder/name."""
        return self.store.checksums

    def _read(self, name: str) -> pd.DataFrame | None:
        as_it_is = self.only_read or self._committed

        def current(entry: dict[str, Any]) -> bool:
            if any(entry[key] != value for key, value in self._always.items()):
                return False
            return as_it_is or (entry["format"] == self.format and entry["runs"] == self._runs_of(name))

        found = self.store.read(name, current, keep=self.only_read)
        if found is None:
            return None
        table, self.origin[name] = found
        return table

    def _made(self, name: str) -> pd.DataFrame:
        if self.only_read:
            path = self.folder / f"{name}.csv"
            raise ValueError(f"{path}: missing, or not as its manifest says; run `{self._command(name)}`")
        made = self._measure(name)
        self.origin[name] = made.origin
        entry = {"format": self.format, **self._always, "runs": self._runs_of(name)}
        return self.store.write(name, made.table, entry, device=made.device, seconds=made.seconds, update=made.update)


class OfRuns(Recorded):
    """Tables that are measured of runs: a text is opened once, and the manifest says what runs and texts there were."""

    @cached_property
    def _corpora(self) -> dict[Any, "Corpus"]:
        return {}

    def _corpus(self, config: "TrainConfig") -> "Corpus":
        if config.text not in self._corpora:
            self._corpora[config.text] = config.load_corpus()
        return self._corpora[config.text]

    @staticmethod
    def _enter(manifest: Manifest, run: "Run", **labels: Any) -> None:
        """Add a run to the manifest, with what tells it from others, and the text that it was trained on."""
        fingerprint = run.fingerprint
        text = f"{fingerprint['sha256']}-{fingerprint['vocab_size']}"  # one text is in several vocabularies' tokens
        manifest.setdefault("corpora", {})[text] = fingerprint
        own = {"corpus": text, "config": run.config.as_dict(), "made": run.record["made"]}
        manifest.setdefault("runs", {})[run.key] = labels | own
