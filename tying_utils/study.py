"""A profile's runs on one corpus, measured: tidy tables under data/results, made when missing and read when they are there."""

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

from tying_utils import files, paths, profiles, run_store
from tying_utils.config import TrainConfig
from tying_utils.corpora import Corpus
from tying_utils.measures import alignment, drift, frequency, lens, lens_budget, neighbors, residual
from tying_utils.profiles import PAIR, SHARED_START, TIED, TWO_ROLE, UNTIED, Profile
from tying_utils.run_store import Run
from tying_utils.training import choose_hardware, train_all
from tying_utils.two_role import Language

# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 2


@dataclass(frozen=True)
class Arm:
    """One run of a study with its place in it."""

    name: str
    seed: int
    run: Run
    corpus: Corpus

    @property
    def labels(self) -> dict[str, Any]:
        scale = self.run.config.input_scale
        return {"corpus": self.corpus.name, "arm": self.name, "input_scale": scale, "seed": self.seed}

    @cached_property
    def used(self) -> torch.Tensor:
        """The tokens that occur in the training text: the others' rows are no embeddings, and all untrained rows look alike."""
        return torch.from_numpy(self.corpus.counts.nonzero()[0])

    def tables(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """Rows of the used tokens by table: "tied", or "input" and "output"."""
        tables = self.run.tables(step)
        named = {"tied": tables.table} if tables.tied else {"input": tables.input, "output": tables.output}
        return {name: table[self.used] for name, table in named.items()}

    @cached_property
    def language(self) -> Language | None:
        """The two-role language that the run was trained on; None for a text."""
        config = self.run.config
        return Language(config.vocab_size, config.language) if config.language else None


Measure = Callable[[Sequence[Arm], Profile, "tqdm[Any]"], pd.DataFrame]


@dataclass(frozen=True)
class _Pair:
    """Two tables of one seed that are compared: the names of both, and the labels of the arm that they belong to."""

    labels: dict[str, Any]
    source: str
    target: str
    tables: tuple[torch.Tensor, torch.Tensor]

    @property
    def names(self) -> dict[str, Any]:
        return {**self.labels, "source": self.source, "target": self.target}


def _pairs(arms: Sequence[Arm]) -> list[_Pair]:
    """Each tied table beside the untied pair of its seed; and, where the tied arm itself is among them, that pair itself."""
    untied = {arm.seed: arm.tables() for arm in arms if arm.name == UNTIED}
    with_own = any(arm.name == TIED for arm in arms)  # in one table of a study is enough
    pairs = []
    for arm in arms:
        reference = untied[arm.seed]
        if arm.name != UNTIED:
            tied = arm.tables()["tied"]
            pairs += [_Pair(arm.labels, source, "tied", (table, tied)) for source, table in reference.items()]
        elif with_own:
            pairs.append(_Pair(arm.labels, "input", "output", (reference["input"], reference["output"])))
    return pairs


def _scores(score: alignment.Alignment | neighbors.Overlap) -> dict[str, float]:
    return {
        "value": score.value,
        "low": score.interval.low,
        "high": score.interval.high,
        "chance": score.chance,
        "chance_low": score.chance_range.low,
        "chance_high": score.chance_range.high,
        "corrected": score.corrected,
    }


def _alignment(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    def one(pair: _Pair) -> list[dict[str, Any]]:
        rows = []
        for kind in ("identity", "orthogonal", "linear"):
            score = alignment.alignment(*pair.tables, kind, permutations=profile.permutations)
            rows.append({**pair.names, "kind": kind, **_scores(score)})
            rows[-1] |= {"held_out": score.held_out, "gaussian": score.gaussian, "tokens": score.tokens}
        bar.update()
        return rows

    return pd.DataFrame([row for rows in _side_by_side(one, _pairs(arms), torch.device("cpu")) for row in rows])


def _neighbors(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    def one(pair: _Pair) -> dict[str, Any]:
        score = neighbors.overlap(*pair.tables, k=10, permutations=profile.permutations)
        bar.update()
        return {**pair.names, "k": 10, **_scores(score)}

    return pd.DataFrame(_side_by_side(one, _pairs(arms), torch.device("cpu")))


def _cosines(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Figure 1: how the per-token cosines of the linear fit are distributed, as a density over 50 bins."""
    rows = []
    for pair in _pairs(arms):
        cosines = alignment.token_cosines(*pair.tables, "linear").numpy()
        density, edges = np.histogram(cosines, bins=50, range=(-0.25, 1.0), density=True)
        centres = (edges[:-1] + edges[1:]) / 2
        rows.append(pd.DataFrame({**pair.names, "cosine": centres, "density": density}))
        bar.update()
    return pd.concat(rows, ignore_index=True)


def _losses(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Loss, the floor where the language is known, and how many weights the model spends on its tables."""
    rows = []
    for arm in arms:
        config, metrics = arm.run.config, arm.run.metrics
        tables = config.vocab_size * config.d_model * (1 if config.tied else 2)
        rows.append(
            {
                **arm.labels,
                "d_model": config.d_model,
                "n_layers": config.n_layers,
                "validation_loss": metrics["validation_loss"].iloc[-1],
                "floor": _floor(arm),
                "training_loss": metrics["loss"].tail(20).mean(),
                "parameters": arm.run.record["made"]["parameters"],
                "table_parameters": tables,
            }
        )
        bar.update()
    return pd.DataFrame(rows)


def _floor(arm: Arm) -> float:
    """What the language itself scores on the run's held-out windows, nats a token; nan for a text, whose floor nobody knows."""
    if arm.language is None:
        return float("nan")
    config = arm.run.config
    return arm.language.loss(arm.corpus.windows("validation", config.validation_sequences, config.context + 1))


def _roles(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """How pure each table's neighbourhoods are in each hidden role, and the loss above the language's own."""
    rows = []
    for arm in arms:
        language, config = arm.language, arm.run.config
        assert language is not None
        over = arm.run.metrics["validation_loss"].iloc[-1] - _floor(arm)
        for name, table in arm.tables().items():
            for role, labels in (("source", language.source), ("target", language.target)):
                own = labels[arm.used.numpy()]
                rows.append(
                    {
                        **arm.labels,
                        "output_scale": config.output_scale,
                        "agreement": language.settings.agreement,
                        "tied": config.tied,
                        "table": name,
                        "role": role,
                        "purity": neighbors.purity(table, own),
                        "chance": neighbors.purity_chance(own),
                        "over_floor": over,
                    }
                )
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


def _drift(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        kept = {step: arm.tables(step) for step in arm.run.checkpoints}
        for name in kept[0]:
            frame = drift.drift({step: tables[name] for step, tables in kept.items()})
            rows.append(frame.assign(**arm.labels, table=name))
        bar.update()
    return pd.concat(rows, ignore_index=True)[[*arms[0].labels, "table", "step", "to_start", "to_previous"]]


def _frequency(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    rows = []
    for arm in arms:
        for name, table in arm.tables().items():
            frame = frequency.norm_by_frequency(table, arm.corpus.counts[arm.used.numpy()])
            binned = frequency.binned(frame)
            rows.append(binned.assign(**arm.labels, table=name, spearman=frequency.spearman(frame)))
        bar.update()
    table = pd.concat(rows, ignore_index=True)
    first = [*arms[0].labels, "table", "spearman"]
    return table[[*first, *(c for c in table.columns if c not in first)]]


def _language(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """How much likelier a target class is after a source class than at large, for the first seed's language."""
    language = arms[0].language
    assert language is not None
    after = np.stack([language.transition[:, language.target == c].sum(1) for c in range(language.settings.classes)], axis=1)
    base = np.bincount(language.target, language.unigram)
    ratio = np.log(after / base)
    bar.update(len(arms))
    rows = [{"source": s, "target": t, "log_ratio": ratio[s, t]} for s, t in np.ndindex(ratio.shape)]
    return pd.DataFrame(rows).assign(corpus=profile.corpus, seed=arms[0].seed, entropy_rate=language.entropy_rate)


def _unigrams(arms: Sequence[Arm], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """The Zipfian weight of each token of the first seed's language, and how often it occurs in the long run."""
    language = arms[0].language
    assert language is not None
    order = np.argsort(-language.weights, kind="stable")
    bar.update(len(arms))
    columns = {"rank": np.arange(1, len(order) + 1), "weight": language.weights[order], "unigram": language.unigram[order]}
    return pd.DataFrame(columns).assign(corpus=profile.corpus, seed=arms[0].seed)


def _side_by_side(function: Callable[[Any], Any], items: Sequence[Any], device: torch.device) -> list[Any]:
    """`function` of each item, in order: on the CPU in as many threads as it has cores, each computing on one."""
    if device.type != "cpu":
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, min(threads, len(items))), initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(function, items))


def _pair(profile: Profile) -> tuple[str, ...]:
    return PAIR


def _with_untied(arms: tuple[str, ...]) -> tuple[str, ...]:
    return (UNTIED, *arms) if arms else ()


def _role_arms(profile: Profile) -> tuple[str, ...]:
    return (*PAIR, *profile.scaled, *profile.output_scaled, *profile.agreeing) if profile.corpus == TWO_ROLE else ()


# Each table with what makes it and the arms of a profile that it needs: none where the profile has no such table.
TABLES: dict[str, tuple[Measure, Callable[[Profile], tuple[str, ...]]]] = {
    "alignment": (_alignment, _pair),
    "neighbors": (_neighbors, _pair),
    "cosines": (_cosines, _pair),
    "control_alignment": (_alignment, lambda profile: (UNTIED, SHARED_START) if profile.shared_start else ()),
    "losses": (_losses, _pair),
    "sizes": (_losses, lambda profile: profile.sized),
    "gradients": (_gradients, _pair),
    "lens": (_lens, _pair),
    "lens_budget": (_lens_budget, _pair),
    "residual": (_residual, _pair),
    "scaling_alignment": (_alignment, lambda profile: _with_untied(profile.scaled)),
    "scaling_neighbors": (_neighbors, lambda profile: _with_untied(profile.scaled)),
    "scaling_losses": (_losses, lambda profile: profile.scaled),
    "scaling_lens": (_lens, lambda profile: profile.scaled),
    "drift": (_drift, _pair),
    "frequency": (_frequency, _pair),
    "roles": (_roles, _role_arms),
    "language": (_language, lambda profile: (UNTIED,) if profile.corpus == TWO_ROLE else ()),
    "unigrams": (_unigrams, lambda profile: (UNTIED,) if profile.corpus == TWO_ROLE else ()),
}


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
        self.origin: dict[str, str] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._runs: dict[tuple[str, int], Run] = {}
        self._corpora: dict[Any, Corpus] = {}

    @property
    def names(self) -> list[str]:
        """Of the tables that this profile has on this corpus."""
        return [name for name, (_, arms) in TABLES.items() if arms(self.profile)]

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

    def complete(self) -> "Study":
        """Make or read every table, training whatever is missing, and return the study."""
        for name in self.names:
            self._table(name)
        return self

    def runs(self, *arms: str) -> list[Arm]:
        """The finished runs of `arms` (default: all of the profile), each seed in turn, trained if need be."""
        wanted = [(arm, seed) for seed in self.profile.seeds for arm in arms or self.profile.arms]
        if missing := [pair for pair in wanted if pair not in self._runs]:
            finished = train_all([self.profile.config(*pair) for pair in missing], progress=self.progress)
            self._runs |= dict(zip(missing, finished, strict=True))
        return [Arm(arm, seed, run := self._runs[arm, seed], self._corpus(run.config)) for arm, seed in wanted]

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.table(name)

    def _corpus(self, config: TrainConfig) -> Corpus:
        key = config.vocab_size, config.language
        if key not in self._corpora:
            self._corpora[key] = config.load_corpus()
        return self._corpora[key]

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
        entry = (self.manifest or {}).get("tables", {}).get(name)
        if entry is None:
            return None
        path = self.folder / f"{name}.csv"
        if not files.intact(path, entry["sha256"]):
            if not self.only_read:
                files.set_aside(path, "it is missing or does not match its checksum")
            return None
        as_it_is = self.only_read or self.profile.name in profiles.COMMITTED
        if not as_it_is and (entry["format"] != FORMAT or entry["runs"] != self._keys(name)):
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

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each table on disk, by corpus/name."""
        tables = (self.manifest or {}).get("tables", {})
        return {f"{self.profile.corpus}/{name}": entry["sha256"] for name, entry in tables.items()}

    def _keys(self, name: str) -> list[str]:
        """Of the runs that the table is made from, as the profile means them today."""
        arms = TABLES[name][1](self.profile)
        configs = [self.profile.config(arm, seed) for seed in self.profile.seeds for arm in arms]
        return [run_store.run_key(config, self._corpus(config).fingerprint) for config in configs]

    def _measure(self, name: str) -> pd.DataFrame:
        if self.only_read:
            path = self.folder / f"{name}.csv"
            raise ValueError(f"{path}: missing, or not as its manifest says; run `make reproduce PROFILE={self.profile.name}`")
        measure, needed = TABLES[name]
        arms = self.runs(*needed(self.profile))
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
            manifest = self.manifest or {"tables": {}, "runs": {}, "corpora": {}}
            made = arms[0].run.record["made"]
            manifest |= {
                "profile": dataclasses.asdict(self.profile),
                "packages": {p: version(p) for p in ("torch", "transformers", "transformer-lens", "tuned-lens", "numpy")},
            }
            for arm in arms:
                fingerprint = arm.run.fingerprint
                manifest["corpora"][fingerprint["sha256"]] = fingerprint
                manifest["runs"][arm.run.key] = {
                    "arm": arm.name,
                    "seed": arm.seed,
                    "corpus": fingerprint["sha256"],
                    "config": arm.run.config.as_dict(),
                    "made": arm.run.record["made"],
                }
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
            trained_on = {run["corpus"] for run in manifest["runs"].values()}
            manifest["corpora"] = {key: value for key, value in manifest["corpora"].items() if key in trained_on}
            files.write_json(self.folder / "manifest.json", manifest)


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
