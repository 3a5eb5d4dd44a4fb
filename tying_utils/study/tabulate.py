"""Runs to tidy tables: what makes each table of a study. Of which arms, `study_tables` says."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from tying_utils.base.console import tqdm
from tying_utils.study import of_language, of_models, of_poles, of_runs, of_tables, of_training, transfer
from tying_utils.study.profile import Profile
from tying_utils.study.trained import PLACED, SWEPT, Measure, Trained


def _labelled(measure: Measure, columns: tuple[str, ...]) -> Measure:
    """Return `measure` of runs whose rows are labelled by `columns`."""

    def measured(runs: Sequence[Trained], profile: Profile, bar: "tqdm[Any]") -> pd.DataFrame:
        return measure([dataclasses.replace(run, columns=columns) for run in runs], profile, bar)

    return measured


MEASURES: dict[str, Measure] = {
    "alignment": of_tables.align,
    "neighbors": of_tables.overlap_neighbors,
    "cosines": of_tables.cosines,
    "control_alignment": of_tables.align,
    "poles": of_poles.poles,
    "losses": of_runs.losses,
    "sizes": of_runs.losses,
    "gradients": of_runs.gradients,
    "lens": of_models.lenses,
    "lens_budget": of_models.lens_budgets,
    "residual": of_models.residual_stream,
    "ablation": of_models.ablations,
    "scaling_alignment": of_tables.align,
    "scaling_neighbors": of_tables.overlap_neighbors,
    "scaling_losses": of_runs.losses,
    "scaling_lens": of_models.lenses,
    "drift": of_tables.move,
    "displacement": of_training.displacement,
    "frequency": of_tables.norms,
    "roles": of_language.all_roles,
    "sweep_alignment": _labelled(of_tables.align_over_training, SWEPT),
    "sweep_share": _labelled(of_runs.output_share, SWEPT),
    "sweep_lens": _labelled(of_models.lenses, SWEPT),
    "sweep_losses": _labelled(of_runs.losses, SWEPT),
    "sweep_roles": of_language.all_roles,
    "remedy_losses": of_runs.losses,
    "remedy_alignment": of_tables.align_at_the_input,
    "remedy_roles": of_language.all_roles,
    "remedy_lens": of_models.lenses,
    "remedy_steps": of_models.step_times,
    "architecture_alignment": _labelled(of_tables.align_orthogonal, PLACED),
    "architecture_share": _labelled(of_runs.output_share_by_tenths, PLACED),
    "architecture_lens": _labelled(of_models.lenses, PLACED),
    "architecture_losses": _labelled(of_runs.losses, PLACED),
    "architecture_roles": _labelled(of_language.all_roles, PLACED),
    "grid_alignment": _labelled(of_tables.align_orthogonal, PLACED),
    "grid_share": _labelled(of_runs.output_share_by_tenths, PLACED),
    "grid_lens": _labelled(of_models.lenses, PLACED),
    "grid_losses": _labelled(of_runs.losses, PLACED),
    "language": of_language.transitions,
    "unigrams": of_language.unigrams,
    "transfer_losses": transfer.losses,
    "transfer_forgetting": transfer.forgetting,
    "transfer_probe": transfer.probes,
}
