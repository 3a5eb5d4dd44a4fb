"""A profile's runs on one corpus, measured: tidy tables under data/results, made when missing and read when they are there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from tying_utils.base import paths
from tying_utils.base.names import UNTIED
from tying_utils.base.table_store import TableStore
from tying_utils.corpora.store import Corpus
from tying_utils.study import profiles
from tying_utils.study.study_tables import SWEEP, TABLES
from tying_utils.training.config import TrainConfig

if TYPE_CHECKING:  # reading tables loads neither the trainer nor what measures
    from tying_utils.study.tabulate import Arm
    from tying_utils.training.run_store import Run

Item = TypeVar("Item")

# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 2


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of a list."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From text as in 3/16. Raises ValueError, naming --shard, for any other."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f"--shard: I/N with I from 1 to N is needed, as 3/16, got {text!r}")
        return cls(int(index), int(count))

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th of `items`, from the `index`-th on."""
        return [*items[self.index - 1 :: self.count]]


class Study:
    """The tidy tables of one profile on one of its corpora, by name (see `TABLES`). Every table has the column "corpus".

    A table that is there and intact is read: on a committed profile as it was committed, elsewhere if it was made from the
    runs that the profile means today. Otherwise its runs are trained, or loaded where they are finished, and measured.
    `fresh` measures anew from the runs in any case; `only_read` never does: what is missing or damaged is a ValueError.
    `origin` says in words, for each table asked for, where it came from. Raises ValueError for an unknown profile, or a corpus
    that it does not have.
    """

    def __init__(
        self,
        profile: str,
        corpus: str | None = None,
        *,
        fresh: bool = False,
        only_read: bool = False,
        progress: bool = True,
    ) -> None:
        self.profile = profiles.get(profile, corpus)
        self.fresh, self.only_read, self.progress = fresh, only_read, progress
        self.folder = paths.results(profile) / self.profile.corpus
        self.store = TableStore(self.folder)
        self.origin: dict[str, str] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._runs: dict[tuple[str, int], Run] = {}
        self._corpora: dict[Any, Corpus] = {}

    @property
    def names(self) -> list[str]:
        """Of the tables that this profile has on this corpus."""
        return [name for name, arms in TABLES.items() if arms(self.profile)]

    @property
    def scales(self) -> dict[str, str]:
        """What the corpus was trained at, in words."""
        c = self.profile.config(UNTIED, self.profile.seeds[0])
        tokens = c.steps * c.batch_size * c.context
        return {c.corpus: f"{c.n_layers} layers, d {c.d_model}, V {c.vocab_size}, {tokens / 1000:.0f}k tokens"}

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def table(self, *names: str) -> pd.DataFrame:
        """The tables called `names`, one below the other. Raises ValueError for a name that is unknown."""
        parts = [self._table(name) for name in names]
        table = pd.concat(parts, ignore_index=True)
        # The untied pair stands in every table that compares with it; once is enough.
        return table.drop_duplicates(ignore_index=True)

    def complete(self, names: Iterable[str] = TABLES) -> Study:
        """Make or read those of the tables `names` that there are here, training what is missing, and return the study."""
        for name in names:
            if name in self:
                self._table(name)
        return self

    def without_text(self) -> dict[str, str]:
        """The tables whose runs are on a text that is not to be had here, each with what `corpora.load` says of it."""
        texts, said = {config.text: config for name in self.names for config in self._configs(name)}, {}
        for text, config in texts.items():
            try:
                self._corpus(config)
            except ValueError as error:
                said[text] = str(error)
        found = {name: [said[config.text] for config in self._configs(name) if config.text in said] for name in self.names}
        return {name: words[0] for name, words in found.items() if words}

    def runs(self, *arms: str) -> list[Arm]:
        """The finished runs of `arms` (default: all of the profile), each seed in turn, trained if need be."""
        from tying_utils.study.tabulate import Arm
        from tying_utils.training import train_all

        wanted = self._wanted(arms) if arms else self._wanted(*([arm] for arm in self.profile.arms))
        if missing := [pair for pair in wanted if pair not in self._runs]:
            finished = train_all([self.profile.config(*pair) for pair in missing], progress=self.progress)
            self._runs |= dict(zip(missing, finished, strict=True))
        return [Arm(arm, seed, run := self._runs[arm, seed], self._corpus(run.config)) for arm, seed in wanted]

    def train(self, names: Iterable[str], shard: Shard) -> list[Run]:
        """Train, or load, the runs of `shard` that the tables `names` are measured from, and measure nothing.

        The shards part all runs, finished or not, so that they are disjoint and leave none out whenever each is started; a
        shard that was killed goes on from its checkpoints when it is started again.
        """
        from tying_utils.training import train_all

        wanted = self._wanted(*(TABLES[name](self.profile) for name in names if name in self))
        configs = dict.fromkeys(self.profile.config(*pair) for pair in wanted)
        return train_all(shard.of([*configs]), progress=self.progress)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.table(name)

    def _wanted(self, *tables: Sequence[str]) -> list[tuple[str, int]]:
        """The arms that each of `tables` needs with the seeds that all of its arms have, each seed in turn, no pair twice."""
        pairs = dict.fromkeys((arm, seed) for arms in tables for seed in self.profile.seeds_of(*arms) for arm in arms)
        return sorted(pairs, key=lambda pair: self.profile.seeds.index(pair[1]))

    def _corpus(self, config: TrainConfig) -> Corpus:
        if config.text not in self._corpora:
            self._corpora[config.text] = config.load_corpus()
        return self._corpora[config.text]

    def _table(self, name: str) -> pd.DataFrame:
        if name not in TABLES:
            raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(TABLES)}")
        if name not in self:
            here = f"the profile {self.profile.name!r} on {self.profile.corpus!r}"
            raise ValueError(f"name: {name!r} needs arms that {here} leaves out; it has {', '.join(self.names)}")
        if name not in self._tables:
            read = None if self.fresh else self._read(name)
            self._tables[name] = self._measure(name) if read is None else read
        return self._tables[name]

    def _read(self, name: str) -> pd.DataFrame | None:
        as_it_is = self.only_read or self.profile.name in profiles.COMMITTED

        def current(entry: dict[str, Any]) -> bool:
            return as_it_is or (entry["format"] == FORMAT and entry["runs"] == self._keys(name))

        found = self.store.read(name, current, keep=self.only_read)
        if found is None:
            return None
        table, self.origin[name] = found
        return table

    @property
    def manifest(self) -> dict[str, Any] | None:
        """How the tables were made; None where there are none."""
        return self.store.manifest

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each table on disk, by corpus/name."""
        return self.store.checksums

    def _keys(self, name: str) -> list[str]:
        """Of the runs that the table is made from, as the profile means them today."""
        from tying_utils.training import run_store

        return [run_store.run_key(config, self._corpus(config).fingerprint) for config in self._configs(name)]

    def _configs(self, name: str) -> list[TrainConfig]:
        return [self.profile.config(*pair) for pair in self._wanted(TABLES[name](self.profile))]

    def _measure(self, name: str) -> pd.DataFrame:
        if self.only_read:
            path, profile = self.folder / f"{name}.csv", self.profile.name
            made = f"tying-utils sweep --profile {profile}" if name in SWEEP else f"make reproduce PROFILE={profile}"
            raise ValueError(f"{path}: missing, or not as its manifest says; run `{made}`")
        from tying_utils.study.transfer import MEASURES

        arms = self.runs(*TABLES[name](self.profile))
        began = time.monotonic()
        with tqdm(total=len(arms), desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = MEASURES[name](arms, self.profile, bar)
        self.origin[name] = f"measured now from {len(arms)} runs"
        return self._write(name, table, arms, time.monotonic() - began)

    def _write(self, name: str, table: pd.DataFrame, arms: Sequence[Arm], seconds: float) -> pd.DataFrame:
        def update(manifest: dict[str, Any]) -> None:
            runs, corpora = manifest.setdefault("runs", {}), manifest.setdefault("corpora", {})
            manifest["profile"] = dataclasses.asdict(self.profile)
            for arm in arms:
                fingerprint = arm.run.fingerprint
                text = f"{fingerprint['sha256']}-{fingerprint['vocab_size']}"  # one text is in several vocabularies' tokens
                corpora[text] = fingerprint
                runs[arm.run.key] = {
                    "arm": arm.name,
                    "seed": arm.seed,
                    "corpus": text,
                    "config": arm.run.config.as_dict(),
                    "made": arm.run.record["made"],
                }
            in_use = {key for entry in manifest["tables"].values() for key in entry["runs"]}
            manifest["runs"] = {key: value for key, value in runs.items() if key in in_use}
            trained_on = {run["corpus"] for run in manifest["runs"].values()}
            manifest["corpora"] = {key: value for key, value in corpora.items() if key in trained_on}

        entry = {"format": FORMAT, "runs": [arm.run.key for arm in arms]}
        device = arms[0].run.record["made"]["device"]
        return self.store.write(name, table, entry, device=device, seconds=seconds, update=update)


class Results:
    """A profile's studies on all of its corpora as one: each table is the corpora's, one below the other.

    `studies` holds them by corpus. A table is made of the corpora that have it; asking for one that none has is a ValueError.
    """

    def __init__(self, profile: str, **options: bool) -> None:
        """`options` are those of `Study`."""
        self.profile = profiles.get(profile)
        self.studies = {corpus: Study(profile, corpus, **options) for corpus in profiles.PROFILES[profile]}

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each table on disk, by corpus/name."""
        return {key: digest for study in self.studies.values() for key, digest in study.checksums.items()}

    @property
    def scales(self) -> dict[str, str]:
        """What each corpus was trained at, in words."""
        return {corpus: words for study in self.studies.values() for corpus, words in study.scales.items()}

    def __contains__(self, name: object) -> bool:
        return any(name in study for study in self.studies.values())

    def __getitem__(self, name: str) -> pd.DataFrame:
        having = [study for study in self.studies.values() if name in study] or [next(iter(self.studies.values()))]
        return pd.concat([study[name] for study in having], ignore_index=True)
