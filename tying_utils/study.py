"""A profile's runs, measured: tidy tables under data/results, made when they are missing and read when they are there."""

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from tying_utils import corpora, files, paths, profiles, run_store
from tying_utils.corpora import Corpus
from tying_utils.measures import alignment, drift, frequency, lens, lens_budget, neighbors, residual
from tying_utils.profiles import SCALED, SHARED_START, TIED, UNTIED, Profile
from tying_utils.run_store import Run
from tying_utils.training import choose_hardware, train_all

# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 1


@dataclass(frozen=True)
class Arm:
    """One run of a study with its place in it."""

    name: str
    seed: int
    run: Run
    corpus: Corpus

    @property
    def labels(self) -> dict[str, Any]:
        return {"arm": self.name, "input_scale": self.run.config.input_scale, "seed": self.seed}


Measure = Callable[[Sequence[Arm], Profile, "tqdm[Any]"], pd.DataFrame]


def _reference(arms: Sequence[Arm], seed: int) -> Run:
    return next(arm.run for arm in arms if arm.name == UNTIED and arm.seed == seed)


def _pairs(arms: Sequence[Arm]) -> list[tuple[dict[str, Any], str, str, torch.Tensor, torch.Tensor]]:
    """Each tied table beside the untied pair of its seed, and that pair itself: labels, source, target, their tables."""
    pairs = []
    for arm in arms:
        untied = _reference(arms, arm.seed).tables()
        if arm.name == UNTIED:
            pairs.append((arm.labels, "input", "output", untied.input, untied.output))
        else:
            tied = arm.run.tables().table
            pairs.append((arm.labels, "input", "tied", untied.input, tied))
            pairs.append((arm.labels, "output", "tied", untied.output, tied))
    return pairs


def _alignment(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for labels, source, target, a, b in _pairs(arms):
        for kind in ("identity", "orthogonal", "linear"):
            value = alignment.align(a, b, kind)
            chance = alignment.chance(a, b, kind, permutations=profile.permutations)
            corrected = alignment.corrected(value, chance.mean)
            rows.append({**labels, "source": source, "target": target, "kind": kind, "value": value})
            rows[-1] |= {
                "chance": chance.mean,
                "chance_low": chance.low,
                "chance_high": chance.high,
                "corrected": corrected,
            }
        bar.update()
    return pd.DataFrame(rows)


def _neighbors(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for labels, source, target, a, b in _pairs(arms):
        value, chance = neighbors.knn_overlap(a, b, k=10), neighbors.knn_chance(len(a), 10)
        rows.append({**labels, "source": source, "target": target, "k": 10, "value": value, "chance": chance})
        bar.update()
    return pd.DataFrame(rows)


def _cosines(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Figure 1: how the per-token cosines of the linear fit are distributed, as a density over 50 bins."""
    rows = []
    for labels, source, target, a, b in _pairs(arms):
        cosines = alignment.token_cosines(a, b, "linear").numpy()
        density, edges = np.histogram(cosines, bins=50, range=(-0.25, 1.0), density=True)
        centres = (edges[:-1] + edges[1:]) / 2
        rows.append(pd.DataFrame({**labels, "source": source, "target": target, "cosine": centres, "density": density}))
        bar.update()
    return pd.concat(rows, ignore_index=True)


def _losses(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        metrics = arm.run.metrics
        rows.append({**arm.labels, "validation_loss": metrics["validation_loss"].iloc[-1]})
        rows[-1] |= {
            "training_loss": metrics["loss"].tail(20).mean(),
            "parameters": arm.run.record["made"]["parameters"],
        }
        bar.update()
    return pd.DataFrame(rows)


_GRADIENT_COLUMNS = ["step", "input_norm", "output_norm", "cosine", "output_share", "output_update_share", "clip"]
_GRADIENT_COLUMNS += ["published_input_norm", "published_output_share", "loss"]


def _gradients(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        rows.append(arm.run.metrics[_GRADIENT_COLUMNS].assign(**arm.labels))
        bar.update()
    labels = list(arms[0].labels)
    return pd.concat(rows, ignore_index=True)[labels + _GRADIENT_COLUMNS]


def _lens(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Figure 2: bits that each layer lacks of the model's own prediction, through the tuned lens and the logit lens."""
    device = choose_hardware().device

    def one(arm: Arm) -> list[dict[str, Any]]:
        model = arm.run.model(device=device)
        context = arm.run.config.context
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = arm.corpus.windows("train", profile.lens_windows, context)
        tuned = lens.train_lens(model, tokens, seed=arm.seed, progress=False, **profile.lens)
        curves = [("tuned", indexing, lens.kl_by_layer(model, tuned, held_out, indexing=indexing))
                  for indexing in ("matched", "published")]  # fmt: skip
        curves.append(("logit", "matched", lens.kl_by_layer(model, lens.logit_lens(model), held_out)))
        bar.update()
        return [
            {**arm.labels, "lens": name, "indexing": indexing, "layer": layer, "kl_bits": kl}
            for name, indexing, curve in curves
            for layer, kl in enumerate(curve)
        ]

    return pd.DataFrame([row for rows in _side_by_side(one, arms, device) for row in rows])


def _lens_budget(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """What Figure 2 becomes when the lens is stopped early."""
    device = choose_hardware().device

    def one(arm: Arm) -> pd.DataFrame:
        context = arm.run.config.context
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, context)
        tokens = arm.corpus.windows("train", profile.lens_windows, context)
        curves = lens_budget.kl_by_budget(
            arm.run.model(device=device), tokens, held_out, budgets=profile.lens_budgets, seed=arm.seed, progress=False
        )
        bar.update()
        return curves.assign(**arm.labels)

    table = pd.concat(_side_by_side(one, arms, device), ignore_index=True)
    return table[[*arms[0].labels, "steps", "layer", "kl_bits"]]


def _residual(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        held_out = arm.corpus.windows("validation", profile.evaluation_windows, arm.run.config.context)
        rows.append(residual.contributions(arm.run.model(), held_out).assign(**arm.labels))
        bar.update()
    table = pd.concat(rows, ignore_index=True)
    return table[[*arms[0].labels, *(c for c in table.columns if c not in arms[0].labels)]]


def _own_tables(arm: Arm, step: int | None = None) -> dict[str, torch.Tensor]:
    tables = arm.run.tables(step)
    return {"tied": tables.table} if tables.tied else {"input": tables.input, "output": tables.output}


def _drift(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        kept = {step: _own_tables(arm, step) for step in arm.run.checkpoints}
        for name in kept[0]:
            frame = drift.drift({step: tables[name] for step, tables in kept.items()})
            rows.append(frame.assign(**arm.labels, table=name))
        bar.update()
    return pd.concat(rows, ignore_index=True)[[*arms[0].labels, "table", "step", "to_start", "to_previous"]]


def _frequency(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        for name, table in _own_tables(arm).items():
            frame = frequency.norm_by_frequency(table, arm.corpus.counts)
            binned = frequency.binned(frame)
            rows.append(binned.assign(**arm.labels, table=name, spearman=frequency.spearman(frame)))
        bar.update()
    table = pd.concat(rows, ignore_index=True)
    first = [*arms[0].labels, "table", "spearman"]
    return table[[*first, *(c for c in table.columns if c not in first)]]


def _side_by_side(function: Callable[[Arm], Any], arms: Sequence[Arm], device: torch.device) -> list[Any]:
    """`function` of each arm, in order: on the CPU in as many threads as it has cores, each computing on one."""
    if device.type != "cpu":
        return [function(arm) for arm in arms]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, min(threads, len(arms))), initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(function, arms))


# Each table with what makes it and the arms that it needs.
_PAIR = (UNTIED, TIED)
TABLES: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "alignment": (_alignment, _PAIR),
    "neighbors": (_neighbors, _PAIR),
    "cosines": (_cosines, _PAIR),
    "control_alignment": (_alignment, (UNTIED, SHARED_START)),
    "losses": (_losses, _PAIR),
    "gradients": (_gradients, _PAIR),
    "lens": (_lens, _PAIR),
    "lens_budget": (_lens_budget, _PAIR),
    "residual": (_residual, _PAIR),
    "scaling_alignment": (_alignment, (UNTIED, *SCALED)),
    "scaling_neighbors": (_neighbors, (UNTIED, *SCALED)),
    "scaling_losses": (_losses, SCALED),
    "scaling_lens": (_lens, SCALED),
    "drift": (_drift, _PAIR),
    "frequency": (_frequency, _PAIR),
}


class Study:
    """The tidy tables of one profile, by name (see `TABLES`).

    A table that is there and intact is read: on a committed profile as it was committed, elsewhere if it was made from the
    runs that the profile means today. Otherwise its runs are trained, or loaded where they are finished, and measured.
    `fresh` measures anew from the runs in any case. `origin` says in words, for each table asked for, where it came from.
    """

    def __init__(self, profile: str, *, fresh: bool = False, progress: bool = True) -> None:
        self.profile = profiles.get(profile)
        self.fresh, self.progress = fresh, progress
        self.folder = paths.results(profile)
        self.origin: dict[str, str] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._runs: dict[tuple[str, int], Run] = {}

    def table(self, *names: str) -> pd.DataFrame:
        """The tables called `names`, one below the other. Raises ValueError for a name that is unknown."""
        parts = [self._table(name) for name in names]
        table = pd.concat(parts, ignore_index=True)
        # The untied pair stands in every table that compares with it; once is enough.
        return table.drop_duplicates(ignore_index=True)

    @cached_property
    def corpus(self) -> Corpus:
        """What every arm trains on."""
        config = self.profile.config(TIED, self.profile.seeds[0])
        return corpora.load(config.corpus, vocab_size=config.vocab_size, path=config.path)

    def runs(self, *arms: str) -> list[Arm]:
        """The finished runs of `arms` (default: all of the profile), each seed in turn, trained if need be."""
        wanted = [(arm, seed) for seed in self.profile.seeds for arm in arms or self.profile.arms]
        if missing := [pair for pair in wanted if pair not in self._runs]:
            finished = train_all([self.profile.config(*pair) for pair in missing], progress=self.progress)
            self._runs |= dict(zip(missing, finished, strict=True))
        return [Arm(arm, seed, self._runs[arm, seed], self.corpus) for arm, seed in wanted]

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.table(name)

    def _table(self, name: str) -> pd.DataFrame:
        if name not in TABLES:
            raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(TABLES)}")
        if name not in self._tables:
            read = None if self.fresh else self._read(name)
            self._tables[name] = self._measure(name) if read is None else read
        return self._tables[name]

    def _read(self, name: str) -> pd.DataFrame | None:
        entry = (self.manifest or {}).get("tables", {}).get(name)
        if entry is None:
            return None
        path = self.folder / f"{name}.csv"
        if not files.intact(path, entry["sha256"]):
            files.set_aside(path, "it is missing or does not match its checksum")
            return None
        committed = self.profile.name in profiles.COMMITTED
        if not committed and (entry["format"] != FORMAT or entry["runs"] != self._keys(name)):
            return None
        made = entry["made"]
        self.origin[name] = f"read from {path.name}, measured on {made['date']} (Python {made['python']}, {made['device']})"
        return pd.read_csv(path)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """How the tables were made; None where there are none."""
        path = self.folder / "manifest.json"
        manifest = files.read_json(path)
        if manifest is None and path.exists():
            files.set_aside(path, "its content does not match its checksum")
        return manifest

    def _keys(self, name: str) -> list[str]:
        """Of the runs that the table is made from, as the profile means them today."""
        configs = [self.profile.config(arm, seed) for seed in self.profile.seeds for arm in TABLES[name][1]]
        return [run_store.run_key(config, self.corpus.fingerprint) for config in configs]

    def _measure(self, name: str) -> pd.DataFrame:
        measure, needed = TABLES[name]
        if missing := [arm for arm in needed if arm not in self.profile.arms]:
            raise ValueError(f"name: {name!r} needs the arm {missing[0]!r}, which the profile {self.profile.name!r} leaves out")
        arms = self.runs(*needed)
        began = time.monotonic()
        total = len(_pairs(arms)) if measure in (_alignment, _neighbors, _cosines) else len(arms)
        with tqdm(total=total, desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = measure(arms, self.profile, bar)
        self._write(name, table, arms, time.monotonic() - began)
        self.origin[name] = f"measured now from {len(arms)} runs"
        # As the file holds it, so that a notebook shows the same digits the first time and every time after.
        return pd.read_csv(self.folder / f"{name}.csv")

    def _write(self, name: str, table: pd.DataFrame, arms: Sequence[Arm], seconds: float) -> None:
        path = self.folder / f"{name}.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            digest = files.write_with(path, lambda p: table.to_csv(p, index=False, float_format="%.6g", lineterminator="\n"))
            manifest = self.manifest or {"tables": {}, "runs": {}}
            made = arms[0].run.record["made"]
            manifest |= {
                "profile": dataclasses.asdict(self.profile),
                "corpus": arms[0].run.fingerprint,
                "packages": {p: version(p) for p in ("torch", "transformers", "transformer-lens", "tuned-lens", "numpy")},
            }
            for arm in arms:
                entry = {
                    "arm": arm.name,
                    "seed": arm.seed,
                    "config": arm.run.config.as_dict(),
                    "made": arm.run.record["made"],
                }
                manifest["runs"][arm.run.key] = entry
            manifest["tables"][name] = {
                "sha256": digest,
                "rows": len(table),
                "format": FORMAT,
                "runs": [arm.run.key for arm in arms],
                "made": {
                    "date": time.strftime("%Y-%m-%d"),
                    "python": platform.python_version(),
                    "device": made["device"],
                    "cores": torch.get_num_threads(),
                    "seconds": round(seconds, 1),
                },
            }
            in_use = {key for entry in manifest["tables"].values() for key in entry["runs"]}
            manifest["runs"] = {key: value for key, value in manifest["runs"].items() if key in in_use}
            files.write_json(self.folder / "manifest.json", manifest)
