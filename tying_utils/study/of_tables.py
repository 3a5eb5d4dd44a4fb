"""What is measured of token tables: how they align, whose neighbours they share, how they move, how their norms go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from tying_utils.base.names import TIED
from tying_utils.measures import alignment, drift, neighbors
from tying_utils.study import columns
from tying_utils.study.columns import in_turn, labelled, tabulated
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Measure, Trained, references, side_by_side


@dataclass(frozen=True)
class _Pair:
    """Two tables of one seed that are compared; the labels are of the run that the target belongs to, and of the tables."""

    labels: dict[str, Any]
    source: torch.Tensor
    target: torch.Tensor


def _pairs(runs: Sequence[Trained]) -> list[_Pair]:
    """Return each run's table or tables beside the untied pair of its place; that pair too where the tied arm is there."""
    found, others = references(runs)
    with_own = any(run.arm.kind == TIED for run in runs)  # in one table of a study is enough
    pairs = []
    for run in runs:
        own = run.tables()
        if run in others:
            reference = found[run.place].tables()
        elif with_own:
            reference, own = {"input": own["input"]}, {"output": own["output"]}
        else:
            continue
        for target, table in own.items():
            for source, other in reference.items():
                pairs.append(_Pair({**run.labels, "source": source, "target": target}, other, table))
    return pairs


def _compared(
    rows: Callable[[_Pair, Profile], pd.DataFrame],
    how: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = side_by_side,
) -> Measure:
    """Return the measure that takes `rows` of every pair."""

    def measure(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
        return tabulated(lambda pair: rows(pair, profile), _pairs(runs), bar, how)

    return measure


def _aligned(*kinds: alignment.Kind) -> Measure:
    return _compared(lambda pair, of: columns.aligned(pair.labels, pair.source, pair.target, kinds, of.permutations))


def _neighbors_of(pair: _Pair, profile: Profile) -> pd.DataFrame:
    score = neighbors.overlap(pair.source, pair.target, k=10, permutations=profile.permutations)
    return pd.DataFrame([{**pair.labels, "k": 10, **columns.scores(score)}])


align, align_orthogonal = _aligned("identity", "orthogonal", "linear"), _aligned("orthogonal")
overlap_neighbors = _compared(_neighbors_of)
spread_cosines = _compared(lambda pair, _: columns.cosines(pair.labels, pair.source, pair.target), in_turn)


def _orthogonal_score(source: torch.Tensor, target: torch.Tensor, permutations: int) -> dict[str, float]:
    """Return the orthogonal score alone, beside chance from `permutations`."""
    value = alignment.align(source, target, "orthogonal")
    chance = alignment.chance(source, target, "orthogonal", permutations=permutations)
    scores = {"value": value, "chance": chance.mean, "chance_low": chance.low, "chance_high": chance.high}
    return scores | {"corrected": alignment.corrected(value, chance.mean)}


def align_at_the_input(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Align the untied pair with the table that embeds each run's input; orthogonal fit, chance from few permutations."""
    found, others = references(runs)
    permutations = max(2, profile.permutations // 10)

    def one(run: Trained) -> pd.DataFrame:
        name, own = next(iter(run.tables().items()))
        return pd.DataFrame(
            {**run.labels, "source": source, "target": name, **_orthogonal_score(table, own, permutations)}
            for source, table in found[run.place].tables().items()
        )

    return tabulated(one, others, bar, side_by_side)


def align_over_training(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Align each tied table with the untied pair of its seed after as many steps; as `align_at_the_input`."""
    found, tied = references(runs)
    permutations = max(2, profile.permutations // 10)

    def one(run: Trained) -> pd.DataFrame:
        rows = []
        for step in spaced(run.run.checkpoints):
            table = run.tables(step)["tied"]
            for source, other in found[run.place].tables(step).items():
                scores = _orthogonal_score(other, table, permutations)
                rows.append({**run.labels, "step": step, "source": source, "target": "tied", **scores})
        return pd.DataFrame(rows)

    return tabulated(one, tied, bar, side_by_side)


def spaced(steps: Sequence[int]) -> list[int]:
    """Return of `steps` in order the first, then each that lies half as far again as the one before it, and the last."""
    kept = [steps[0]]
    for step in steps[1:-1]:
        if step >= 1.5 * kept[-1] and steps[-1] >= 1.25 * step:
            kept.append(step)
    return [*kept, steps[-1]]


def move(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure how far each table is from its start and from its last checkpoint (Figure 3)."""

    def one(run: Trained) -> pd.DataFrame:
        kept = {step: run.tables(step) for step in run.run.checkpoints}
        series = {name: {step: tables[name] for step, tables in kept.items()} for name in kept[0]}
        frames = [labelled(run.labels | {"table": name}, drift.drift(tables)) for name, tables in series.items()]
        return pd.concat(frames, ignore_index=True)

    return tabulated(one, runs, bar)


def norms(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
    """Measure row norms by how often the token occurs (Figure 5)."""

    def one(run: Trained) -> pd.DataFrame:
        counts = run.corpus.counts[run.used.numpy()]
        frames = [columns.norms(run.labels | {"table": name}, table, counts) for name, table in run.tables().items()]
        return pd.concat(frames, ignore_index=True)

    return tabulated(one, runs, bar)
