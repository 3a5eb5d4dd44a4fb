"""Where a table lies between two others that are trained alike: a second untied model's input and output table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tying_utils.base.names import LOG_COUNT
from tying_utils.measures import frequency
from tying_utils.study import columns
from tying_utils.study.profile import Profile
from tying_utils.study.trained import Trained, each, references, side_by_side


@dataclass(frozen=True)
class _Compared:
    """The tables of a run, or what counts alone make of one, beside the untied pair of its place."""

    labels: dict[str, Any]
    tables: dict[str, Tensor]
    reference: Trained


def _compared(runs: Sequence[Trained]) -> list[_Compared]:
    found = references(runs)
    compared = []
    for run in runs:
        reference = found.get(run.place)
        if reference is None:
            continue  # a tied model may be as large as the untied one by its width, and tables of two widths do not rotate
        if run is reference:
            alone = frequency.count_table(run.seen[run.used.numpy()], run.run.config.d_model)
            compared.append(_Compared(run.labels | {"arm": LOG_COUNT}, {LOG_COUNT: alone}, reference))
        else:
            compared.append(_Compared(run.labels, run.tables(), reference))
    return compared


def _poles(pair: _Compared, profile: Profile) -> pd.DataFrame:
    """Return how tables align with the untied pair of their place, as they are and without what counts predict of them.

    Of the tokens that the run was asked to predict at all: the rows of others look alike, as nothing has told them apart.
    """
    reference = pair.reference
    counts = reference.seen[reference.used.numpy()]
    met = torch.from_numpy(counts > 0)
    rows = []
    for frequency_out in (False, True):
        if frequency_out and LOG_COUNT in pair.tables:
            continue  # of what is made of counts nothing is left
        for target, table in pair.tables.items():
            for source, other in reference.tables().items():
                both = [other[met], table[met]]
                if frequency_out:
                    both = [frequency.without_frequency(one, counts[counts > 0]) for one in both]
                labels = pair.labels | {"source": source, "target": target, "frequency_out": frequency_out}
                rows.append(columns.aligned(labels, both[0], both[1], ("orthogonal",), profile.permutations))
    return pd.concat(rows, ignore_index=True)


def _with_tuned_rate(runs: Sequence[Trained]) -> list[_Compared]:
    """Return the tables of the others beside the pair of the run that is among them for its tables' own learning rates."""
    (reference,) = (run for run in runs if run.arm.kind == "table-rates")
    return [_Compared(run.labels, run.tables(), reference) for run in runs if run is not reference]


poles, poles_at_tuned_rate = each(_poles, side_by_side, _compared), each(_poles, side_by_side, _with_tuned_rate)
