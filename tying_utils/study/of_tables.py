"""What is measured of token tables: how they align, whose neighbours they share, how they move, how their norms go."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor

from tying_utils.base.names import TIED
from tying_utils.measures import alignment, drift, neighbors
from tying_utils.study import columns
from tying_utils.study.columns import labelled
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, references, side_by_side


@dataclass(frozen=True)
class _Pair:
    """Two tables of one seed that are compared; the labels are of the run that the target belongs to, and of the tables."""

    labels: dict[str, Any]
    source: Tensor
    target: Tensor


def _pairs(runs: Sequence[Trained]) -> list[_Pair]:
    """Return each run's table or tables beside the untied pair of its place; that pair too where the tied arm is there."""
    found = references(runs)
    with_own = any(run.arm.kind == TIED for run in runs)  # in one table of a study is enough
    pairs = []
    for run in runs:
        own = run.tables()
        if found[run.place] is not run:
            reference = found[run.place].tables()
        elif with_own:
            reference, own = {"input": own["input"]}, {"output": own["output"]}
        else:
            continue
        for target, table in own.items():
            for source, other in reference.items():
                pairs.append(_Pair({**run.labels, "source": source, "target": target}, other, table))
    return pairs


def _aligned(kinds: Sequence[alignment.Kind], pair: _Pair, profile: Profile) -> pd.DataFrame:
    return columns.aligned(pair.labels, pair.source, pair.target, kinds, profile.permutations)


def _overlap(pair: _Pair, profile: Profile) -> pd.DataFrame:
    score = neighbors.overlap(pair.source, pair.target, k=10, permutations=profile.permutations)
    return pd.DataFrame([{**pair.labels, "k": 10, **columns.scores(score)}])


def _cosines(pair: _Pair, profile: Profile) -> pd.DataFrame:
    return columns.cosines(pair.labels, pair.source, pair.target)


def _compared(runs: Sequence[Trained]) -> list[tuple[Trained, Trained]]:
    """Return each run beside the untied run of its place."""
    found = references(runs)
    return [(run, found[run.place]) for run in runs if found[run.place] is not run]


def orthogonal(source: Tensor, target: Tensor, profile: Profile) -> dict[str, float]:
    """Return the orthogonal score alone, beside chance from few permutations."""
    value = alignment.align(source, target, "orthogonal")
    chance = alignment.chance(source, target, "orthogonal", permutations=max(2, profile.permutations // 10))
    scores = {"value": value, "chance": chance.mean, "chance_low": chance.low, "chance_high": chance.high}
    return scores | {"corrected": alignment.corrected(value, chance.mean)}


def _at_the_input(compared: tuple[Trained, Trained], profile: Profile) -> pd.DataFrame:
    """Return how the table that embeds a run's input aligns with the untied pair."""
    run, reference = compared
    name, own = next(iter(run.tables().items()))
    rows = [
        {**run.labels, "source": source, "target": name, **orthogonal(table, own, profile)}
        for source, table in reference.tables().items()
    ]
    return pd.DataFrame(rows)


def _over_training(compared: tuple[Trained, Trained], profile: Profile) -> pd.DataFrame:
    """Return how a tied table aligns with the untied pair of its seed after as many steps."""
    (run, reference), rows = compared, []
    for step in spaced(run.run.checkpoints):
        table = run.tables(step)["tied"]
        for source, other in reference.tables(step).items():
            labels = {**run.labels, "step": step, "source": source, "target": "tied"}
            rows.append({**labels, **orthogonal(other, table, profile)})
    return pd.DataFrame(rows)


def spaced(steps: Sequence[int]) -> list[int]:
    """Return of `steps` in order the first, then each that lies half as far again as the one before it, and the last."""
    kept = [steps[0]]
    for step in steps[1:-1]:
        if step >= 1.5 * kept[-1] and steps[-1] >= 1.25 * step:
            kept.append(step)
    return [*kept, steps[-1]]


def _drift(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return how far each table is from its start and from its last checkpoint (Figure 3)."""
    kept = {step: run.tables(step) for step in run.run.checkpoints}
    series = {name: {step: tables[name] for step, tables in kept.items()} for name in kept[0]}
    return pd.concat([labelled(run.labels | {"table": name}, drift.drift(tables)) for name, tables in series.items()])


def _norms(run: Trained, profile: Profile) -> pd.DataFrame:
    """Return row norms by how often the token occurs (Figure 5)."""
    counts = run.corpus.counts[run.used.numpy()]
    return pd.concat([columns.norms(run.labels | {"table": name}, table, counts) for name, table in run.tables().items()])


align = each(partial(_aligned, ("identity", "orthogonal", "linear")), side_by_side, _pairs)
align_orthogonal = each(partial(_aligned, ("orthogonal",)), side_by_side, _pairs)
align_at_the_input = each(_at_the_input, side_by_side, _compared)
align_over_training = each(_over_training, side_by_side, _compared)
overlap_neighbors = each(_overlap, side_by_side, _pairs)
cosines, move, norms = each(_cosines, of=_pairs), each(_drift), each(_norms)
