"""What is measured by running the models of the smoke profile: which rows, beside the measures called by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tqdm.auto import tqdm

from tying_utils.base.names import TIED, TWO_ROLE, UNTIED
from tying_utils.measures import ablation, lens
from tying_utils.measures.perplexity import perplexity
from tying_utils.study import of_models
from tying_utils.study.study import Study
from tying_utils.study.trained import Measure, Trained

LABELS = ["corpus", "arm", "input_scale", "seed"]


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Study:
    return Study("smoke", TWO_ROLE, progress=False)


@pytest.fixture(scope="module")
def runs(smoke: Study) -> list[Trained]:
    return [*smoke.runs(UNTIED), *smoke.runs(TIED)]


def measured(measure: Measure, runs: list[Trained], study: Study) -> pd.DataFrame:
    table = measure(runs, study.profile, tqdm(disable=True))
    assert list(table.columns[:4]) == LABELS and not table.isna().any(axis=None)
    assert {*zip(table["arm"], table["seed"], strict=True)} == {(run.arm.name, run.seed) for run in runs}
    return table


def test_the_loss_without_each_part_of_each_run(smoke: Study, runs: list[Trained]) -> None:
    table = measured(of_models.ablations, runs, smoke)
    for run, (_, own) in zip(runs, table.groupby(["arm", "seed"], sort=False), strict=True):
        held_out = run.held_out(smoke.profile.evaluation_windows)
        expected = ablation.loss_without_layers(run.model(), held_out)
        pd.testing.assert_frame_equal(own.drop(columns=LABELS).reset_index(drop=True), expected, atol=1e-6)
        whole = perplexity(run.model(), held_out, progress=False).loss
        np.testing.assert_allclose(own["loss"] - own["increase"], whole, atol=1e-6)


def test_a_lens_by_its_steps_on_both_texts_and_below_it_the_converged_one(smoke: Study, runs: list[Trained]) -> None:
    table, profile = measured(of_models.lens_steps, runs, smoke), smoke.profile
    of_run = table.groupby(["arm", "seed"], sort=False)
    expected = [("stopped", steps) for steps in profile.lens_budgets] + [("converged", profile.lens["steps"])]
    layers = runs[0].run.config.n_layers + 1
    for _, own in of_run:
        points = own[["lens", "steps", "text", "layer"]].itertuples(index=False, name=None)
        texts = ("held-out", "training")
        assert list(points) == [(*e, text, layer) for e in expected for text in texts for layer in range(layers)]
        assert (own[own["layer"] == layers - 1]["kl_bits"] == 0).all()
    held_out = table[table["text"] == "held-out"]
    plain = measured(of_models.lens_budgets, runs, smoke)
    stopped = held_out[held_out["lens"] == "stopped"]
    pd.testing.assert_frame_equal(stopped[plain.columns].reset_index(drop=True), plain)
    lenses = measured(of_models.lenses, runs, smoke).query("lens == 'tuned' and indexing == 'matched'")
    converged = held_out[held_out["lens"] == "converged"]
    np.testing.assert_array_equal(converged["kl_bits"], lenses["kl_bits"])


def test_both_texts_have_as_many_windows(smoke: Study, runs: list[Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    kl, judged = lens.kl_by_layer, []
    monkeypatch.setattr(lens, "kl_by_layer", lambda model, of, ids, **options: judged.append(ids) or kl(model, of, ids))
    measured(of_models.lens_steps, runs[:1], smoke)
    profile, run = smoke.profile, runs[0]
    held_out, training = run.held_out(profile.evaluation_windows), judged[1]
    assert len(judged) == 2 * (len(profile.lens_budgets) + 1) and training.shape == held_out.shape
    own = {row.tobytes() for row in run.corpus.windows("train", profile.lens_windows, run.run.config.context)}
    assert {row.tobytes() for row in training} <= own
