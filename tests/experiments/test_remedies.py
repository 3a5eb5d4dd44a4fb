"""What remedies come to: on tables whose answers are known, and on the smoke profile's runs."""

from pathlib import Path

import pandas as pd
import pytest
from synthetic_tables import synthetic_remedies

from tying_utils.base.names import AGAIN, EQUAL, PYTHON, TIED, TWO_ROLE, UNTIED, enlarged, scaled
from tying_utils.experiments import figures, remedies
from tying_utils.experiments.remedies import EQUAL_SHAPE, EQUAL_SIZE
from tying_utils.study import Results, arms, profiles

CURE = "norm-match"
# Of each arm: bias, loss, parameters. The cure lessens the bias at a price; enlarged it has none.
TEXT = {
    UNTIED: (0.0, 4.0, 150),
    AGAIN: (-0.4, 4.1, 150),
    TIED: (0.3, 4.5, 100),
    CURE: (0.0, 4.7, 100),
    EQUAL: (0.3, 4.4, 148),
    enlarged(CURE): (0.1, 4.2, 148),
}


@pytest.mark.parametrize("corpus", [PYTHON, TWO_ROLE])
def test_an_outcome_is_what_its_tables_say(corpus: str) -> None:
    found = remedies.outcomes(synthetic_remedies(TEXT, corpus)).query("seed == 1")
    rows = {(row["shape"], row["arm"]): row for row in found.to_dict("records")}
    floor = 3.0 if corpus == TWO_ROLE else 0.0
    for arm, (bias, loss, parameters) in TEXT.items():
        if arm == UNTIED:  # what the others are compared with
            continue
        shape = EQUAL_SIZE if arm.endswith(EQUAL) else EQUAL_SHAPE
        row = rows[shape, TIED if arm == EQUAL else arm.removesuffix(f", {EQUAL}")]
        assert row["bias"] == pytest.approx(bias) and row["loss"] == pytest.approx(loss - floor)
        assert row["added"] == parameters - 100
        if shape == EQUAL_SHAPE:
            assert row["early_lens"] == pytest.approx(10 * loss - 0.5), "layers 0 and 1 of 0 to 4"
            assert row["step_ratio"] == pytest.approx(loss / 4.5)
    if corpus == TWO_ROLE:
        assert (found["target_purity"] - found["source_purity"]).to_numpy() == pytest.approx(found["bias"].to_numpy())


def test_equal_parameters_hold_what_is_as_large_as_the_untied_model() -> None:
    found = remedies.outcomes(synthetic_remedies(TEXT))
    shapes = found.groupby("shape")["arm"].agg(set)
    assert shapes[EQUAL_SHAPE] == {AGAIN, TIED, CURE} and shapes[EQUAL_SIZE] == {AGAIN, TIED, CURE}
    assert found.query("shape == @EQUAL_SIZE")["parameters"].min() == 148
    tables = synthetic_remedies(TEXT)
    small = {name: frame[~frame["arm"].str.endswith(EQUAL)] for name, frame in tables.items()}
    assert set(remedies.outcomes(small)["shape"]) == {EQUAL_SHAPE}, "no poles without anything between them"


def test_changes_are_paired_and_judged() -> None:
    change = remedies.changes(remedies.outcomes(synthetic_remedies(TEXT, spread=0.5))).query("arm == @CURE")
    rows = {(row["shape"], row["measure"]): row for row in change.to_dict("records")}
    bias = rows[EQUAL_SHAPE, "bias"]
    # The seeds differ by far more than the arms, but within a seed the difference is the same.
    assert bias["change"] == pytest.approx(-0.3) and bias["low"] == pytest.approx(-0.3)
    verdicts = {key: row["verdict"] for key, row in rows.items()}
    assert verdicts == {
        (EQUAL_SHAPE, "bias"): "supported",
        (EQUAL_SHAPE, "loss"): "refuted",
        (EQUAL_SHAPE, "early_lens"): "refuted",
        (EQUAL_SIZE, "bias"): "supported",
        (EQUAL_SIZE, "loss"): "supported",
    }


def test_the_verdicts_at_one_shape_have_a_row_per_remedy_and_what_changes() -> None:
    told = remedies.verdicts(remedies.outcomes(synthetic_remedies(TEXT)))
    cure = told[told["remedy"] == CURE].set_index("what")
    assert [what.rpartition(": ")[2] for what in cure.index] == ["bias", "loss"]
    assert cure["estimate"].iloc[0] == pytest.approx(-0.3) and [*cure["verdict"]] == ["supported", "refuted"]


def test_arms_are_named_that_lower_the_loss_or_take_half_the_bias() -> None:
    """Seeds differ in what is common to all arms, so the differences within a seed are exact."""
    means = {
        TIED: (0.4, 4.0),
        AGAIN: (-0.1, 3.9),
        "half": (0.2, 4.2),
        "less": (0.3, 4.0),
        "loss": (0.5, 3.97),
        "hardly": (0.5, 3.99),  # lower, but by less than is worth naming
        scaled(5): (0.35, 4.1),
    }
    rows = [
        {"corpus": "c", "shape": "s", "arm": arm, "seed": seed, "bias": bias, "loss": loss + 0.01 * seed, "early_lens": 1.0}
        for arm, (bias, loss) in means.items()
        for seed in range(3)
    ]
    assert remedies.telling(pd.DataFrame(rows)) == [TIED, AGAIN, "half", "loss", scaled(5)]


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Results:
    """Trained once."""
    results = Results("smoke", progress=False)
    for study in results.studies.values():
        study.complete([name for name in study.names if name.startswith("remedy_")])
    return results


def test_every_remedy_of_a_profile_is_measured(smoke: Results) -> None:
    found = remedies.outcomes(smoke)
    for corpus, study in smoke.studies.items():
        profile, part = study.profile, found[found["corpus"] == corpus]
        at_shape = part.query("shape == @EQUAL_SHAPE")
        assert set(at_shape["arm"]) == {arm.name for arm in profile.remedied} - {UNTIED}
        assert part[["bias", "loss", "parameters"]].notna().all(axis=None)
        assert at_shape[["early_lens", "step_ratio"]].notna().all(axis=None) and (at_shape["step_ratio"] > 0).all()
        assert (at_shape.loc[at_shape["arm"] == TIED, "step_ratio"] == 1).all()
        assert set(part["seed"]) == {*profile.seeds_of(AGAIN)}
    assert set(found["shape"][found["corpus"] == PYTHON]) == {EQUAL_SHAPE, EQUAL_SIZE}
    sizes = found.query("corpus == 'python' and shape == @EQUAL_SIZE")
    assert set(sizes["arm"]) == {AGAIN, TIED, "input x5", "norm-match", "untie"}


def test_the_figures_show_the_corpora_and_shapes_that_there_are(smoke: Results) -> None:
    drawn = figures.draw("09_pareto", smoke)
    assert [ax.get_title() for ax in drawn.axes] == [
        "Python source: which lowers both?",
        "two-role language: which lowers both?",
    ]
    assert len(figures.draw("09_changes", smoke).axes) == 4


def test_another_untied_model_leans_to_the_input_by_its_own_training_alone(smoke: Results) -> None:
    study = smoke.studies[PYTHON]
    again, untied = study.runs(AGAIN)[0].run, study.runs(UNTIED)[0].run
    assert again.config.data_seed == untied.config.data_seed and again.config.init_seed != untied.config.init_seed
    assert study.profile.config(AGAIN, 0).init_seed == study.profile.config(TIED, 0).init_seed


@pytest.mark.parametrize("profile", [p for of in profiles.PROFILES.values() for p in of.values() if p.remedies], ids=repr)
def test_remedies_start_where_the_tied_arm_does(profile: profiles.Profile) -> None:
    tied = profile.config(TIED, profile.seeds[0])
    for arm in profile.remedies:
        config = profile.config(arm, profile.seeds[0])
        changed = {name for name, value in config.as_dict().items() if value != tied.as_dict()[name]}
        assert changed == {name for name, value in arm.changes.items() if value != arms.TIED.changes[name]}, arm
    for arm in profile.enlarged:
        config = profile.config(arm, profile.seeds[0])
        assert config.init_seed == tied.init_seed
        assert all(getattr(config, name) == value for name, value in profile.equal.items())


def test_what_is_compared_has_the_seeds_in_common() -> None:
    profile = profiles.get("laptop", PYTHON)
    seeds = profile.seeds_of(*profile.remedied)
    assert seeds == profile.seeds[: profile.few] and len(seeds) >= 3
    assert profile.seeds_of(TIED, UNTIED) == profile.seeds == profile.seeds_of()
