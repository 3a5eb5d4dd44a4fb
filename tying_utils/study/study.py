"""A profile's runs on one corpus, measured: tidy tables under data/results, made when missing and read when they are there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

from tying_utils.base.console import tqdm
from tying_utils.study import profiles
from tying_utils.study.arms import UNTIED, Arm
from tying_utils.study.profile import Arms
from tying_utils.study.recorded import Manifest, Measured, OfRuns
from tying_utils.study.study_tables import SWEEP, TABLES
from tying_utils.training.config import TrainConfig

if TYPE_CHECKING:  # reading tables loads neither the trainer nor what measures
    from tying_utils.study.trained import Trained
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
        """Return the part that a text as 3/16 names. Raises ValueError, naming --shard, for any other."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f"--shard: I/N with I from 1 to N is needed, as 3/16, got {text!r}")
        return cls(int(index), int(count))

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return every `count`-th of `items`, from the `index`-th on."""
        return [*items[self.index - 1 :: self.count]]


class Study(OfRuns):
    """The tidy tables of one profile on one of its corpora, by name (see `TABLES`). Every table has the column "corpus".

    What is read and what is measured, and what the options do, `Recorded` says; a table that is measured has its runs trained
    first, or loaded where they are finished. Raises ValueError for an unknown profile, or a corpus that it does not have.
    """

    format = FORMAT

    def __init__(
        self, profile: str, corpus: str | None = None, *, fresh: bool = False, only_read: bool = False, progress: bool = True
    ) -> None:
        self.profile = profiles.get(profile, corpus)
        super().__init__(profile, self.profile.corpus, fresh=fresh, only_read=only_read, progress=progress)
        self._trained: dict[tuple[Arm, int], Run] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the tables that this profile has on this corpus."""
        return [name for name, arms in TABLES.items() if arms(self.profile)]

    @property
    def scales(self) -> dict[str, str]:
        """Return what the corpus was trained at, in words."""
        c = self.profile.config(UNTIED, self.profile.seeds[0])
        tokens = c.steps * c.batch_size * c.context
        return {c.corpus: f"{c.n_layers} layers, d {c.d_model}, V {c.vocab_size}, {tokens / 1000:.0f}k tokens"}

    def table(self, *names: str) -> pd.DataFrame:
        """Return the tables called `names`, one below the other. Raises ValueError for a name that is unknown."""
        table = pd.concat([self[name] for name in names], ignore_index=True)
        # The untied pair is in every table that compares with it; once is enough.
        return table.drop_duplicates(ignore_index=True)

    def without_text(self) -> dict[str, str]:
        """Return the tables whose runs are on a text that is missing here, each with what `corpora.load` says of it."""
        texts, said = {config.text: config for name in self.names for config in self._configs(name)}, {}
        for text, config in texts.items():
            try:
                self._corpus(config)
            except ValueError as error:
                said[text] = str(error)
        found = {name: [said[config.text] for config in self._configs(name) if config.text in said] for name in self.names}
        return {name: words[0] for name, words in found.items() if words}

    def runs(self, *arms: str | Arm) -> list[Trained]:
        """Return the finished runs of `arms` (default: all of the profile), each seed in turn, trained if need be."""
        from tying_utils.study.trained import Trained
        from tying_utils.training.pool import train_all

        chosen = tuple(map(self.profile.arm, arms))
        wanted = self._wanted(chosen) if arms else self._wanted(*((arm,) for arm in self.profile.arms.values()))
        if missing := [pair for pair in wanted if pair not in self._trained]:
            finished = train_all([self.profile.config(*pair) for pair in missing], progress=self.progress)
            self._trained |= dict(zip(missing, finished, strict=True))
        return [Trained(arm, seed, run := self._trained[arm, seed], self._corpus(run.config)) for arm, seed in wanted]

    def train(self, names: Iterable[str], shard: Shard) -> list[Run]:
        """Train, or load, the runs of `shard` that the tables `names` are measured from, and measure nothing.

        The shards part all runs, finished or not, so that they are disjoint and leave none out whenever each is started; a
        shard that was killed goes on from its checkpoints when it is started again.
        """
        from tying_utils.training import train_all

        wanted = self._wanted(*(TABLES[name](self.profile) for name in names if name in self))
        configs = dict.fromkeys(self.profile.config(*pair) for pair in wanted)
        return train_all(shard.of([*configs]), progress=self.progress)

    def _wanted(self, *tables: Arms) -> list[tuple[Arm, int]]:
        """Return the arms of each of `tables` with the seeds that all of its arms have, each seed in turn, no pair twice."""
        pairs = dict.fromkeys((arm, seed) for arms in tables for seed in self.profile.seeds_of(*arms) for arm in arms)
        return sorted(pairs, key=lambda pair: self.profile.seeds.index(pair[1]))

    def _check(self, name: str) -> None:
        if name not in TABLES:
            raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(TABLES)}")
        if name not in self:
            here = f"the profile {self.profile.name!r} on {self.profile.corpus!r}"
            raise ValueError(f"name: {name!r} needs arms that {here} leaves out; it has {', '.join(self.names)}")

    def _runs_of(self, name: str) -> list[str]:
        from tying_utils.training import run_store

        return [run_store.run_key(config, self._corpus(config).fingerprint) for config in self._configs(name)]

    def _configs(self, name: str) -> list[TrainConfig]:
        return [self.profile.config(*pair) for pair in self._wanted(TABLES[name](self.profile))]

    def _command(self, name: str) -> str:
        profile = self.profile.name
        return f"tying-utils sweep --profile {profile}" if name in SWEEP else f"make reproduce PROFILE={profile}"

    def _measure(self, name: str) -> Measured:
        from tying_utils.study.tabulate import MEASURES

        runs = self.runs(*TABLES[name](self.profile))
        began = time.monotonic()
        with tqdm(total=len(runs), desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = MEASURES[name](runs, self.profile, bar)
        return Measured(
            table=table,
            origin=f"measured now from {len(runs)} runs",
            device=runs[0].run.record["made"]["device"],
            seconds=time.monotonic() - began,
            update=lambda manifest: self._describe(manifest, runs),
        )

    def _describe(self, manifest: Manifest, trained: Sequence[Trained]) -> None:
        """Add the profile, the runs and their corpora to the manifest, and drop the runs that no table is made from."""
        manifest["profile"] = dataclasses.asdict(self.profile)
        for one in trained:
            self._enter(manifest, one.run, arm=one.arm.name, seed=one.seed)
        in_use = {key for entry in manifest["tables"].values() for key in entry["runs"]}
        manifest["runs"] = {key: value for key, value in manifest["runs"].items() if key in in_use}
        trained_on = {run["corpus"] for run in manifest["runs"].values()}
        manifest["corpora"] = {key: value for key, value in manifest["corpora"].items() if key in trained_on}


class Results:
    """A profile's studies on all of its corpora as one: each table is the corpora's, one below the other.

    `studies` holds them by corpus. A table is made of the corpora that have it; asking for one that none has is a ValueError.
    """

    def __init__(self, profile: str, **options: bool) -> None:
        """Take as `options` those of `Study`."""
        self.profile = profiles.get(profile)
        self.studies = {corpus: Study(profile, corpus, **options) for corpus in profiles.PROFILES[profile]}

    @property
    def checksums(self) -> dict[str, str]:
        """Return the sha256 of each table on disk, by corpus/name."""
        return {key: digest for study in self.studies.values() for key, digest in study.checksums.items()}

    @property
    def scales(self) -> dict[str, str]:
        """Return what each corpus was trained at, in words."""
        return {corpus: words for study in self.studies.values() for corpus, words in study.scales.items()}

    def __contains__(self, name: object) -> bool:
        return any(name in study for study in self.studies.values())

    def __getitem__(self, name: str) -> pd.DataFrame:
        having = [study for study in self.studies.values() if name in study] or [next(iter(self.studies.values()))]
        return pd.concat([study[name] for study in having], ignore_index=True)
