"""The paper's own comparisons on public checkpoints, or on their miniatures: tidy tables, each beside the published value.

Tables are read alone, one family at a time; only the lenses load models, whole and one after another.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from tying_utils.base import paths
from tying_utils.base.table_store import TableStore
from tying_utils.corpora import store, vocabulary
from tying_utils.experiments import alignment as experiment
from tying_utils.experiments import published, shares
from tying_utils.experiments.judge import Statistic
from tying_utils.measures import alignment, drift, frequency, integrity, lens, neighbors, perplexity, spectral
from tying_utils.models import architectures as models
from tying_utils.models import checkpoints
from tying_utils.models.families import Family, Model, families
from tying_utils.study import columns, profiles

MINIATURES, PUBLIC = "miniatures", "public"
# Part of every table's record: raise it when a measure would give other numbers.
FORMAT = 1
PAIRS = (("input", "output"), ("input", "tied"), ("output", "tied"))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on one set of models: text that is read, draws of chance, neighbours of a graph."""

    text: str = "python"  # a name of `corpora.documents`
    characters: int = 3_000_000  # of each part of it
    context: int = 64  # tokens a window
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


class Public:
    """The measured tables of the paper's model families by name (see `TABLES`), each read where it is there, or measured.

    models: "miniatures", trained here where they are missing, or "public", whose tables come from the hub. profile decides
    where the tables lie and how large the miniatures are. `families` chooses some of `checkpoints.families()` by name. `fresh`
    measures anew; `only_read` never measures. `origin` says in words where each table came from.
    Raises ValueError for an unknown profile, set of models or family.
    """

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
        self.models, self.fresh, self.only_read, self.progress = models, fresh, only_read, progress
        self.effort = _EFFORTS.get(PUBLIC if models == PUBLIC else profile, Effort())
        self.store = TableStore(paths.results(profile) / models)
        self.folder = self.store.folder
        self.origin: dict[str, str] = {}
        self.sources: dict[str, dict[str, Any]] = {}  # what each checkpoint that was read turned out to hold
        self._tables: dict[str, pd.DataFrame] = {}
        self._read: dict[tuple[Model, str | None], checkpoints.CheckpointTables] = {}
        self._joined: dict[str, Joined] = {}
        self._tokens: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of each table on disk, by set of models/name."""
        return self.store.checksums

    def __contains__(self, name: object) -> bool:
        return name in TABLES

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in TABLES:
            raise ValueError(f"name: {name!r} is unknown; choose one of {', '.join(TABLES)}")
        if name not in self._tables:
            found = None if self.fresh else self.store.read(name, self._current, keep=self.only_read)
            if found is not None:
                self._tables[name], self.origin[name] = found
            elif self.only_read:
                made = "make reproduce PROFILE=" + self.profile.name
                raise ValueError(f"{self.folder / name}.csv: missing, or not as its manifest says; run `{made}`")
            else:
                self._tables[name] = self._measured(name)
        return self._tables[name]

    def complete(self) -> "Public":
        """Read or measure every table, and return itself."""
        for name in TABLES:
            self[name]
        return self

    def _current(self, entry: dict[str, Any]) -> bool:
        if entry["families"] != list(self.families):
            return False
        if self.only_read or self.profile.name in profiles.COMMITTED:
            return True
        return entry["format"] == FORMAT and entry["runs"] == self._runs

    def _measured(self, name: str) -> pd.DataFrame:
        began = time.monotonic()
        with tqdm(total=len(self.families), desc=f"measuring {name}", disable=not self.progress, leave=False) as bar:
            table = TABLES[name](self, bar)
        entry = {"format": FORMAT, "families": list(self.families), "runs": self._runs}
        from tying_utils.training.trainer import choose_hardware

        device = choose_hardware().device.type
        self.origin[name] = f"measured now on the {'public models' if self.models == PUBLIC else 'miniatures'}"
        return self.store.write(name, table, entry, device=device, seconds=time.monotonic() - began, update=self._described)

    def _described(self, manifest: dict[str, Any]) -> None:
        """Which checkpoints the tables were measured on."""
        manifest["models"] = self.models
        manifest["sources"] = {**manifest.get("sources", {}), **self.sources}

    @cached_property
    def _runs(self) -> list[str]:
        """Keys of the miniatures' runs, as the profile means them today; public models have none."""
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
        """Where `model` is read from: its id on the hub, or the folder of its miniature, trained if need be."""
        return model.source if self.models == PUBLIC else self._folders[model.name]

    def read(self, model: Model, revision: str | None = None) -> checkpoints.CheckpointTables:
        """The tables of `model`, every row of them, memory-mapped: verified once, and held at no cost."""
        if (model, revision) not in self._read:
            self._read[model, revision] = self._found(model, revision)
        return self._read[model, revision]

    def _found(self, model: Model, revision: str | None) -> checkpoints.CheckpointTables:
        found = checkpoints.read_tables(self.source(model), revision, progress=self.progress)
        (V, d), dtype = found.input.shape, str(found.input.dtype).removeprefix("torch.")
        about = {"tied": found.tied, "rows": V, "width": d, "dtype": dtype, "commit": found.commit}
        self.sources[model.name + (f" at {revision}" if revision else "")] = about
        return found

    def joined(self, family: Family) -> Joined:
        """The three tables of a family on the tokens that its two models share, on the GPU where there is one."""
        if family.name not in self._joined:
            self._joined.clear()  # one family at a time: Qwen3's tables alone are 3 GB
            found = {model.name: vocabulary.read(self.source(model)) for model in (family.tied, family.untied)}
            tied_rows, untied_rows = vocabulary.join(found[family.tied.name], found[family.untied.name])
            tied, untied = self.read(family.tied), self.read(family.untied)
            from tying_utils.training.trainer import choose_hardware

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
        parts = store.documents(self.effort.text)
        return _leading(parts[0], self.effort.characters), _leading(parts[1], self.effort.characters)

    def tokens(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """The text that lenses learn on and tokens are counted in, and the held-out text, as `model`'s tokenizer reads them."""
        if model.name not in self._tokens:
            own = vocabulary.tokenizer(self.source(model))
            self._tokens[model.name] = vocabulary.encode(own, self._texts[0]), vocabulary.encode(own, self._texts[1])
        return self._tokens[model.name]


def _leading(documents: store.Documents, characters: int) -> list[str]:
    """The texts, each cut at the share that leaves about so many characters in all."""
    share = min(1.0, characters / sum(len(text) for _, text in documents))
    return [text[: math.ceil(share * len(text))] for _, text in documents]


def rows(table: Tensor, wanted: np.ndarray) -> Tensor:
    """The `wanted` rows of a table (V, d): a view where they are the first ones, in order."""
    if np.array_equal(wanted, np.arange(len(wanted))):
        return table[: len(wanted)]
    return table[torch.from_numpy(wanted)]


def _chosen(names: tuple[str, ...] | None) -> dict[str, Family]:
    known = families()
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"families: {', '.join(unknown)} unknown; choose of {', '.join(known)}")
    return {name: family for name, family in known.items() if names is None or name in names}


def _beside(table: pd.DataFrame, paper: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """`table` with the published value of each row, nan where there is none, and the difference to it."""
    table = table.merge(paper.rename(columns={"value": "published"}), how="left", on=on)
    return table.assign(difference=table["value"] - table["published"])


def _by_pair(paper: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """A published table of pairs with our names, each pair in the order that we measure it in."""
    paper = paper.replace(regex="^untied ", value="").rename(columns={"models": "family", a: "source", b: "target"})
    pairs = zip(paper["source"], paper["target"], strict=True)
    ordered = [pair if pair in PAIRS else pair[::-1] for pair in pairs]
    return paper.assign(source=[one for one, _ in ordered], target=[other for _, other in ordered])


def _checkpoints(public: Public, bar: Any) -> pd.DataFrame:
    """What the checkpoints hold, and the megabytes that were read to know it (0 where they had been read before)."""
    found = []
    for family in public.families.values():
        for model in (family.tied, family.untied):
            held = public.read(model)
            about = public.sources[model.name]
            size = held.bytes_read / 1e6
            found.append({"family": family.name, "model": model.name, "source": model.source, **about, "megabytes_read": size})
        bar.update()
    return pd.DataFrame(found)


def _alignment(public: Public, bar: Any) -> pd.DataFrame:
    """Table 1. Maps that keep the width are fitted where both tables have it; the linear one needs more tokens than d + 1."""
    found = []
    for family in public.families.values():
        tables = public.joined(family).tables
        for source, target in PAIRS:
            one, other = tables[source], tables[target]
            kinds = ["identity", "orthogonal"] if one.shape[1] == other.shape[1] else []
            for kind in [*kinds, "linear"]:
                score = alignment.alignment(one, other, kind, permutations=public.effort.permutations)  # type: ignore[arg-type]
                labels = {"family": family.name, "source": source, "target": target, "kind": kind}
                more = {"held_out": score.held_out, "gaussian": score.gaussian, "tokens": score.tokens}
                found.append({**labels, **columns.scores(score), **more})
        bar.update()
    paper = _by_pair(published.alignment(), "source", "target")
    table = _beside(pd.DataFrame(found), paper, ["family", "source", "target", "kind"])
    return table.assign(published_corrected=[_corrected(row) for row in table.to_dict("records")])


def _corrected(row: Mapping[Any, Any]) -> float:
    """The published value less the chance of Gaussian tables of its size, which is too high where row norms are uneven."""
    if pd.isna(row["published"]):
        return math.nan
    tokens, width = published.SIZES[row["family"]]
    return alignment.corrected(row["published"], alignment.gaussian_chance(tokens, width, row["kind"]))


def output_bias(table: pd.DataFrame) -> pd.DataFrame:
    """The output bias of each family by fit: alignment of W with U less that with E, a row a family and kind.

    table: of `Public`, "alignment". Columns: corrected, held_out, and published_corrected where there is a published value.
    There is one model of each kind: no interval over training runs.
    """
    fits = table[table["kind"] != "identity"]
    columns = ("corrected", "held_out", "published_corrected")
    bias = {column: experiment.output_bias(fits, column).set_index(["family", "kind"])["output_bias"] for column in columns}
    return pd.DataFrame(bias).reset_index()


def verdicts(public: Public) -> pd.DataFrame:
    """C1 judged over families, each one pair of models: columns as `claims.verdicts`, "seeds" being the number of families.

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


def _neighbors(public: Public, bar: Any) -> pd.DataFrame:
    """Table 5; each table's graph is built once for its two pairs."""
    found = []
    for family in public.families.values():
        joined = public.joined(family).tables
        for (source, target), score in neighbors.overlaps(joined, 10, permutations=public.effort.permutations).items():
            labels = {"family": family.name, "source": source, "target": target, "k": 10}
            found.append({**labels, **columns.scores(score), "tokens": score.tokens})
        bar.update()
    return _beside(pd.DataFrame(found), _by_pair(published.knn(), "a", "b"), ["family", "source", "target"])


def _spectral(public: Public, bar: Any) -> pd.DataFrame:
    """Appendix B, with a null."""
    found, effort = [], public.effort
    for family in public.families.values():
        joined = public.joined(family).tables
        scores = spectral.spectrals(joined, effort.k, effort.components, permutations=effort.spectral_permutations)
        for (source, target), score in scores.items():
            chance = {"chance": score.chance, "chance_low": score.chance_range.low, "chance_high": score.chance_range.high}
            labels = {"family": family.name, "source": source, "target": target, "k": effort.k, "components": effort.components}
            found.append({**labels, "value": score.value, **chance, "closeness": score.closeness, "tokens": score.tokens})
        bar.update()
    return _beside(pd.DataFrame(found), _by_pair(published.spectral(), "a", "b"), ["family", "source", "target"])


def _cosines(public: Public, bar: Any) -> pd.DataFrame:
    """Figure 1: per-token cosines of the linear fits of both untied tables to the tied one, as a density over 50 bins."""
    found = []
    for family in public.families.values():
        tables = public.joined(family).tables
        for source in ("input", "output"):
            cosines = alignment.token_cosines(tables[source], tables["tied"], "linear").cpu().numpy()
            labels = {"family": family.name, "source": source, "target": "tied"}
            found.append(pd.DataFrame({**labels, **columns.density(cosines)}))
        bar.update()
    return pd.concat(found, ignore_index=True)


def _norms(public: Public, bar: Any) -> pd.DataFrame:
    """Figure 5: row norms by how often the token occurs in the text, which is read by each model's own tokenizer."""
    found = []
    for family in public.families.values():
        joined = public.joined(family)
        for model, own_rows, names in (
            (family.untied, joined.untied_rows, ("input", "output")),
            (family.tied, joined.tied_rows, ("tied",)),
        ):
            counts = np.bincount(public.tokens(model)[0], minlength=int(own_rows.max()) + 1)[own_rows]
            for name in names:
                frame = frequency.norm_by_frequency(joined.tables[name].cpu(), counts)
                labels = {"family": family.name, "model": model.name, "table": name, "spearman": frequency.spearman(frame)}
                found.append(frequency.binned(frame).assign(**labels))
        bar.update()
    table = pd.concat(found, ignore_index=True)
    first = ["family", "model", "table", "spearman"]
    return table[[*first, *(column for column in table.columns if column not in first)]]


class _Series(Mapping[int, Tensor]):
    """step -> one table of a model's checkpoints, read from disk when asked for."""

    def __init__(self, public: Public, model: Model, part: str, revisions: Mapping[int, str], real: np.ndarray) -> None:
        self.public, self.model, self.part, self.revisions, self.real = public, model, part, revisions, real

    def __getitem__(self, step: int) -> Tensor:
        return rows(getattr(self.public.read(self.model, self.revisions[step]), self.part), self.real)

    def __iter__(self) -> Iterator[int]:
        return iter(self.revisions)

    def __len__(self) -> int:
        return len(self.revisions)


def _evolution(public: Public, bar: Any) -> pd.DataFrame:
    """Figures 3, 8 and 9. A checkpoint that is not what its name says stands in the table with its problem and no cosine."""
    found = []
    for family in public.families.values():
        for model in family.evolution:
            there = checkpoints.steps(public.source(model))
            steps = published.evolution().query("model == @model.name")["step"].unique() if public.models == PUBLIC else there
            revisions = {int(step): there[int(step)] for step in steps if int(step) in there}
            real = vocabulary.real_rows(vocabulary.read(public.source(model)), len(public.read(model).input))
            for part in ("input", "output"):
                series = _Series(public, model, part, revisions, real)
                final = rows(getattr(public.read(model), part), real)
                problems = integrity.suspects(series, final)
                sound = {step: series.revisions[step] for step in problems.loc[problems["problem"] == "", "step"]}
                moved = drift.drift(_Series(public, model, part, sound, real))
                frame = problems.merge(moved, how="left", on="step").assign(family=family.name, model=model.name, table=part)
                found.append(frame.assign(revision=frame["step"].map(revisions)))
        bar.update()
    table = pd.concat(found, ignore_index=True)
    first = ["family", "model", "table", "step", "revision", "to_start", "to_previous", "problem"]
    paper = published.evolution().rename(columns={"to_start": "published_to_start", "to_previous": "published_to_previous"})
    table = table[first].merge(paper, how="left", on=["model", "table", "step"])
    return table.assign(problem=table["problem"].replace("", np.nan))  # as a file holds it


def _lens(public: Public, bar: Any) -> pd.DataFrame:
    """Figures 2, 6 and 7: whole models, one at a time, in bfloat16 where the GPU computes in it."""
    found = []
    paper = published.lens().set_index(["model", "layer"])["kl_bits"]
    for family in public.families.values():
        for model in (family.tied, family.untied):
            for indexing, curve in _lens_curves(public, model).items():
                for layer, bits in enumerate(curve):
                    value = paper.get((model.name, layer), np.nan) if public.models == PUBLIC else np.nan
                    labels = {"family": family.name, "model": model.name, "tied": model.tied, "indexing": indexing}
                    found.append({**labels, "layer": layer, "kl_bits": bits, "published": value})
        bar.update()
    return pd.DataFrame(found)


def _lens_curves(public: Public, model: Model) -> dict[str, Any]:
    """Lens KL by layer under each indexing."""
    effort = public.effort
    counts = effort.lens_windows, effort.evaluation_windows
    learned, held_out = (store.windows(*part, effort.context) for part in zip(public.tokens(model), counts, strict=True))
    with _whole(public, model) as whole:
        tuned = lens.train_lens(whole, learned, progress=public.progress, **effort.lens)
        return {indexing: lens.kl_by_layer(whole, tuned, held_out, indexing=indexing) for indexing in ("matched", "published")}


def _perplexity(public: Public, bar: Any) -> pd.DataFrame:
    """Held-out loss of both models of a family; nats a token compare where the tokenizer is one, bits a byte everywhere."""
    found = []
    for family in public.families.values():
        for model in (family.tied, family.untied):
            with _whole(public, model) as whole:
                windows = store.windows(public.tokens(model)[1], public.effort.evaluation_windows, public.effort.context)
                score = perplexity.perplexity(whole, windows, progress=False)
            read = vocabulary.tokenizer(public.source(model)).decode_batch(windows[:, 1:].tolist(), skip_special_tokens=False)
            size = sum(len(text.encode()) for text in read)
            labels = {"family": family.name, "model": model.name, "tied": model.tied}
            nats = {"loss": score.loss, "low": score.interval.low, "high": score.interval.high}
            bits = perplexity.bits_per_byte(score.nats, size)
            found.append({**labels, **nats, "perplexity": score.perplexity, "bits_per_byte": bits, "tokens": score.tokens})
        bar.update()
    return pd.DataFrame(found)


@contextmanager
def _whole(public: Public, model: Model) -> Iterator[Any]:
    """A whole model in the dtype that the hardware computes in; its memory is given back at the end."""
    from tying_utils.training.trainer import choose_hardware

    hardware = choose_hardware()
    with models.without_bars() if public.models == MINIATURES else nullcontext():
        whole = load_model(public.source(model), device=hardware.device, dtype=hardware.dtype)
    try:
        yield whole
    finally:
        del whole
        gc.collect()
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()


def load_model(
    source: str | Path, revision: str | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """A whole causal language model from the hub or a local folder, in evaluation mode; code that comes with it is not run."""
    from transformers import AutoModelForCausalLM

    more = {"revision": revision} if revision else {}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **more)
    return model.to(device=device).eval()  # type: ignore[call-arg]


def _shares(public: Public, bar: Any) -> pd.DataFrame:
    """Tables 3 and 4: the tables' share of all parameters by size, of every model in `families.MODELS`, without weights."""
    return shares.table()


TABLES: dict[str, Callable[[Public, Any], pd.DataFrame]] = {
    "checkpoints": _checkpoints,
    "alignment": _alignment,
    "cosines": _cosines,
    "neighbors": _neighbors,
    "spectral": _spectral,
    "norms": _norms,
    "evolution": _evolution,
    "lens": _lens,
    "perplexity": _perplexity,
    "shares": _shares,
}
