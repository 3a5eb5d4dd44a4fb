"""What a study measures of its runs: the tables of the sweep against the others, which other code makes of the same runs."""

import dataclasses
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils import __main__ as command
from tying_utils.base.names import PYTHON, TIED, TWO_ROLE, UNTIED, crossed
from tying_utils.study import of_language, of_tables, profiles
from tying_utils.study.study import SWEEP, Study
from tying_utils.study.sweep import Sweep


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Study:
    """The smoke profile's sweep, made by the command line."""
    assert command.main(["sweep", "--profile", "smoke"]) == 0
    return Study("smoke", TWO_ROLE, progress=False)


def test_the_command_makes_every_table_and_says_where(smoke: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sweep", "--profile", "smoke", "--corpus", TWO_ROLE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SWEEP) and all("read from sweep_" in line for line in lines), "finished: read, not made again"
    assert {path.stem for path in Path(smoke.folder).glob("*.csv")} == set(SWEEP)
    assert smoke.manifest and set(smoke.manifest["tables"]) == set(SWEEP)


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--profile", "quick"), "quick"), (("--corpus", "wikitext-2"), "wikitext-2"), (("--profile", "huge"), "PROFILE")],
)
def test_what_has_no_sweep_is_refused(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], named: str) -> None:
    assert command.main(["sweep", *options]) == 2
    assert named in capsys.readouterr().err


def test_every_pair_of_scales_and_seed_is_there(smoke: Study) -> None:
    profile, swept = smoke.profile, Sweep.of(smoke)
    assert swept.conditions == [(a, b) for a in profile.input_scales for b in sorted(profile.swept)]
    steps, depth = len(swept.steps), profile.config(TIED, 0).n_layers + 1
    for scales in swept.conditions:
        assert swept.bias(scales).shape == (2, steps) and swept.lens(scales).shape == (2, depth)
        assert swept.loss(scales).shape == swept.purity(scales, "source").shape == (2,)
    assert swept.steps[0] == 0 and swept.steps[-1] == swept.spans[-1] == profile.config(TIED, 0).steps


def test_the_last_step_agrees_with_the_tables_of_the_ordinary_arms(smoke: Study) -> None:
    swept = Sweep.of(smoke)
    alignment = smoke["alignment"].query("kind == 'orthogonal' and arm == 'tied'").sort_values("seed")
    for source in ("input", "output"):
        own = alignment.query("source == @source")
        np.testing.assert_allclose(swept.alignment((1.0, 1.0), source)[:, -1], own["value"], rtol=1e-5)
    losses = smoke["losses"].sort_values("seed")
    for name, scales in ((TIED, (1.0, 1.0)), (UNTIED, None)):
        own = losses[losses["arm"] == name]
        np.testing.assert_allclose(swept.loss(scales), own["validation_loss"] - own["floor"], rtol=1e-4)


def test_unrelated_tables_start_at_chance(smoke: Study) -> None:
    swept = Sweep.of(smoke)
    start = np.array([swept.bias(scales)[:, 0] for scales in swept.conditions])
    assert np.abs(start).max() < 0.15, "V 96 and d 32 leave much to chance, but not this much"
    np.testing.assert_array_equal(start, np.broadcast_to(start[0], start.shape), err_msg="all arms of a seed start alike")


def test_spans_hold_every_step_once(smoke: Study) -> None:
    swept = Sweep.of(smoke)
    widths = np.diff([0, *swept.spans])
    for arm in smoke.runs(crossed(10.0, 0.1)):
        own = swept.share((10.0, 0.1))[swept.seeds.index(arm.seed)]
        assert np.average(own, weights=widths) == pytest.approx(arm.run.metrics["output_share"].mean(), rel=1e-5)


def test_roles_of_a_text_are_unknown(smoke: Study) -> None:
    arm, text = smoke.runs(TIED)[0], profiles.get("smoke", PYTHON).config(TIED, 0)
    run = dataclasses.replace(arm.run, config=text)
    with pytest.raises(ValueError, match=r"arm: a run on the two-role language is needed, this one is on 'python'"):
        of_language.roles(dataclasses.replace(arm, run=run, corpus=dataclasses.replace(arm.corpus, name="python")))


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60, unique=True))
def test_spaced_steps_start_end_and_grow(steps: list[int]) -> None:
    steps = [0, *sorted(steps)]
    kept = of_tables.spaced(steps)
    assert kept[0] == 0 and kept[-1] == steps[-1] and set(kept) <= set(steps)
    inner = kept[1:]
    assert all(later >= 1.25 * earlier for earlier, later in pairwise(inner))
    assert len(kept) <= 3 + np.log(max(steps)) / np.log(1.25)


@pytest.mark.parametrize(
    "measure", ["of_models.lenses", "of_models.lens_budgets", "of_models.lens_steps", "of_models.ablations", "transfer.losses"]
)
def test_threads_that_build_models_find_the_libraries_imported(measure: str) -> None:
    code = f"""
import sys
import pandas as pd
from tqdm import tqdm
from tying_utils.study import of_models, trained, transfer
assert "transformers" not in sys.modules, "reading tables must not load it"
def check(function, items):
    assert {{"transformers", "tuned_lens"}} <= set(sys.modules)
    print("imported")
    return [pd.DataFrame()]
trained.side_by_side = check
{measure}([], None, tqdm(disable=True))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"


def test_a_lens_that_diverges_names_its_run_and_makes_no_table(smoke: Study) -> None:
    study = Study("smoke", TWO_ROLE, fresh=True, progress=False)
    study.profile = dataclasses.replace(study.profile, lens={**study.profile.lens, "learning_rate": 1e5})
    before = (study.folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=r"^learning_rate: the lens diverged .* \(arm '(un)?tied', seed [01]\)$"):
        study.table("lens")
    assert not (study.folder / "lens.csv").exists() and (study.folder / "manifest.json").read_bytes() == before
