"""What is measured on the paper's model families: each table beside the published value. `public.Public` holds them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.quiet import quiet
from tying_utils.corpora import corpus, vocabulary
from tying_utils.experiments import published, shares
from tying_utils.experiments.public_models import MINIATURES, PUBLIC, PublicModels, rows
from tying_utils.measures import alignment, drift, integrity, lens, neighbors, perplexity, spectral
from tying_utils.models import checkpoints
from tying_utils.models.families import Family, Model
from tying_utils.study import columns

PAIRS = (("input", "output"), ("input", "tied"), ("output", "tied"))


def _beside(table: pd.DataFrame, paper: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """Return `table` with the published value of each row, nan where there is none."""
    return table.merge(paper.rename(columns={"value": "published"}), how="left", on=on)


def _by_pair(paper: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Return a published table of pairs with our names, each pair in the order that we measure it in."""
    paper = paper.replace(regex="^untied ", value="").rename(columns={"models": "family", a: "source", b: "target"})
    pairs = zip(paper["source"], paper["target"], strict=True)
    ordered = [pair if pair in PAIRS else pair[::-1] for pair in pairs]
    return paper.assign(source=[one for one, _ in ordered], target=[other for _, other in ordered])


def _checkpoints(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return what the checkpoints hold, and the megabytes that were read to know it (0 where they had been read before)."""
    found = []
    for model in (family.tied, family.untied):
        held = public.read(model)
        labels = {"family": family.name, "model": model.name, "source": model.source}
        found.append({**labels, **public.sources[model.name], "megabytes_read": held.bytes_read / 1e6})
    return pd.DataFrame(found)


def _alignment(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return Table 1. Maps that keep the width are fitted where both tables have it; the linear one needs d + 2 tokens."""
    tables, found = public.joined(family).tables, []
    for source, target in PAIRS:
        one, other = tables[source], tables[target]
        kinds: tuple[alignment.Kind, ...] = ("identity", "orthogonal") if one.shape[1] == other.shape[1] else ()
        labels = {"family": family.name, "source": source, "target": target}
        found.append(columns.aligned(labels, one, other, (*kinds, "linear"), public.effort.permutations))
    return pd.concat(found)


def _beside_table_1(table: pd.DataFrame) -> pd.DataFrame:
    table = _beside(table, _by_pair(published.alignment(), "source", "target"), ["family", "source", "target", "kind"])
    return table.assign(published_corrected=[_corrected(row) for row in table.to_dict("records")])


def _corrected(row: Mapping[Any, Any]) -> float:
    """Return the published value minus the chance of Gaussian tables of its size: too high a one where row norms are uneven."""
    if pd.isna(row["published"]):
        return math.nan
    tokens, width = published.SIZES[row["family"]]
    return alignment.corrected(row["published"], alignment.gaussian_chance(tokens, width, row["kind"]))


def _neighbors(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return Table 5; each table's graph is built once for its two pairs."""
    found = neighbors.overlaps(public.joined(family).tables, 10, permutations=public.effort.permutations)
    rows = [
        {"family": family.name, "source": one, "target": other, "k": 10, **columns.scores(score), "tokens": score.tokens}
        for (one, other), score in found.items()
    ]
    return pd.DataFrame(rows)


def _spectral(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return the distances of Appendix B, with a null."""
    found, effort = [], public.effort
    tables = public.joined(family).tables
    scores = spectral.spectrals(tables, effort.k, effort.components, permutations=effort.spectral_permutations)
    for (source, target), score in scores.items():
        chance = {"chance": score.chance, "chance_low": score.chance_range.low, "chance_high": score.chance_range.high}
        labels = {"family": family.name, "source": source, "target": target, "k": effort.k, "components": effort.components}
        found.append({**labels, "value": score.value, **chance, "closeness": score.closeness, "tokens": score.tokens})
    return pd.DataFrame(found)


def _cosines(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return Figure 1: per-token cosines of the linear fits of both untied tables to the tied one."""
    tables = public.joined(family).tables
    found = [
        columns.cosines({"family": family.name, "source": source, "target": "tied"}, tables[source], tables["tied"])
        for source in ("input", "output")
    ]
    return pd.concat(found)


def _norms(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return Figure 5: row norms by how often the token occurs in the text, which each model's own tokenizer reads."""
    joined, found = public.joined(family), []
    for model, own_rows, names in (
        (family.untied, joined.untied_rows, ("input", "output")),
        (family.tied, joined.tied_rows, ("tied",)),
    ):
        counts = np.bincount(public.tokens(model)[0], minlength=int(own_rows.max()) + 1)[own_rows]
        for name in names:
            labels = {"family": family.name, "model": model.name, "table": name}
            found.append(columns.norms(labels, joined.tables[name], counts))
    return pd.concat(found)


class _Series(Mapping[int, Tensor]):
    """Maps a step to one table of a model's checkpoints, read from disk when asked for."""

    def __init__(self, public: PublicModels, model: Model, part: str, revisions: Mapping[int, str], real: np.ndarray) -> None:
        self.public, self.model, self.part, self.revisions, self.real = public, model, part, revisions, real

    def __getitem__(self, step: int) -> Tensor:
        return rows(getattr(self.public.read(self.model, self.revisions[step]), self.part), self.real)

    def __iter__(self) -> Iterator[int]:
        return iter(self.revisions)

    def __len__(self) -> int:
        return len(self.revisions)


def _evolution(public: PublicModels, bar: Any) -> pd.DataFrame:
    """Return Figures 3, 8 and 9. A checkpoint that is not what its name says has its problem here, and no cosine."""

    def one(item: tuple[Family, Model, str]) -> pd.DataFrame:
        family, model, part = item
        there = checkpoints.steps(public.source(model))
        steps = published.evolution().query("model == @model.name")["step"].unique() if public.models == PUBLIC else there
        revisions = {int(step): there[int(step)] for step in steps if int(step) in there}
        real = vocabulary.real_rows(vocabulary.read(public.source(model)), len(public.read(model).input))
        final = rows(getattr(public.read(model), part), real)
        problems = integrity.suspects(_Series(public, model, part, revisions, real), final)
        sound = {step: revisions[step] for step in problems.loc[problems["problem"] == "", "step"]}
        moved = drift.drift(_Series(public, model, part, sound, real))
        frame = problems.merge(moved, how="left", on="step").assign(family=family.name, model=model.name, table=part)
        return frame.assign(revision=frame["step"].map(revisions))

    followed = [(of, model, part) for of in public.families.values() for model in of.evolution for part in ("input", "output")]
    table = columns.tabulated(one, followed, bar)
    first = ["family", "model", "table", "step", "revision", "to_start", "to_previous", "problem"]
    paper = published.evolution().rename(columns={"to_start": "published_to_start", "to_previous": "published_to_previous"})
    table = table[first].merge(paper, how="left", on=["model", "table", "step"])
    return table.assign(problem=table["problem"].replace("", np.nan))  # as a file holds it


def _lens(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return Figures 2, 6 and 7: whole models, one at a time, in bfloat16 where the GPU computes in it."""
    found, effort = [], public.effort
    paper = published.lens().set_index(["model", "layer"])["kl_bits"]
    counts = effort.lens_windows, effort.evaluation_windows
    for model in (family.tied, family.untied):
        learned, held_out = (corpus.windows(*part, effort.context) for part in zip(public.tokens(model), counts, strict=True))
        with _whole(public, model) as whole:
            tuned = lens.train_lens(whole, learned, progress=public.progress, **effort.lens)
            labels = {"family": family.name, "model": model.name, "tied": model.tied}
            curves = columns.lens_curves(labels, whole, tuned, held_out)
        printed = [paper.get((model.name, layer), np.nan) if public.models == PUBLIC else np.nan for layer in curves["layer"]]
        found.append(curves.assign(published=printed))
    return pd.concat(found)


def _perplexity(public: PublicModels, family: Family) -> pd.DataFrame:
    """Return the held-out loss of both models; nats per token compare where the tokenizer is one, bits per byte everywhere."""
    found = []
    for model in (family.tied, family.untied):
        with _whole(public, model) as whole:
            windows = corpus.windows(public.tokens(model)[1], public.effort.evaluation_windows, public.effort.context)
            score = perplexity.perplexity(whole, windows, progress=False)
        read = vocabulary.tokenizer(public.source(model)).decode_batch(windows[:, 1:].tolist(), skip_special_tokens=False)
        size = sum(len(text.encode()) for text in read)
        labels = {"family": family.name, "model": model.name, "tied": model.tied}
        nats = {"loss": score.loss, "low": score.interval.low, "high": score.interval.high}
        bits = perplexity.bits_per_byte(score.nats, size)
        found.append({**labels, **nats, "perplexity": score.perplexity, "bits_per_byte": bits, "tokens": score.tokens})
    return pd.DataFrame(found)


@contextmanager
def _whole(public: PublicModels, model: Model) -> Iterator[Any]:
    """Hold a whole model in the dtype that the hardware computes in; its memory is given back at the end."""
    from tying_utils.training.hardware import choose_hardware

    hardware = choose_hardware()
    with nullcontext() if public.progress and public.models != MINIATURES else quiet():
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
    """Return a causal language model of the hub or a local folder, in evaluation mode; code that comes with it is not run."""
    from transformers import AutoModelForCausalLM

    more = {"revision": revision} if revision else {}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False, **more)
    return model.to(device=device).eval()  # type: ignore[call-arg]


Measure = Callable[[PublicModels, Any], pd.DataFrame]


def _by_family(
    one: Callable[[PublicModels, Family], pd.DataFrame], then: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
) -> Measure:
    """Return the measure that takes `one` of each family, and `then` puts what is published beside them."""
    return lambda public, bar: then(columns.tabulated(partial(one, public), [*public.families.values()], bar))


_PAIR = ["family", "source", "target"]
TABLES: dict[str, Measure] = {
    "checkpoints": _by_family(_checkpoints),
    "alignment": _by_family(_alignment, _beside_table_1),
    "cosines": _by_family(_cosines),
    "neighbors": _by_family(_neighbors, lambda table: _beside(table, _by_pair(published.knn(), "a", "b"), _PAIR)),
    "spectral": _by_family(_spectral, lambda table: _beside(table, _by_pair(published.spectral(), "a", "b"), _PAIR)),
    "norms": _by_family(_norms),
    "evolution": _evolution,
    "lens": _by_family(_lens),
    "perplexity": _by_family(_perplexity),
    # Tables 3 and 4: counted of every model in `families.MODELS`, without weights.
    "shares": lambda public, bar: shares.table(),
}
