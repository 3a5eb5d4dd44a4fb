"""A study's tables: made from runs, kept, read back, verified."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from tying_utils import models
from tying_utils.base import files, paths
from tying_utils.base.names import PYTHON, SHARED_START, TIED, TWO_ROLE, UNTIED
from tying_utils.study import Results, Study, profiles, study, study_tables
from tying_utils.study.arms import Arm
from tying_utils.study.profile import Profile
from tying_utils.study.profiles import PROFILES
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig

COMMITTED = Path(study.__file__).parents[2] / "data" / "results"


@pytest.fixture(scope="module")
def smoke(smoke_home: Path) -> Study:
    """The smoke profile, with its cheap tables measured once."""
    return Study("smoke", progress=False).complete(("losses", "alignment", "gradients"))


def test_tables_have_a_row_for_each_arm_and_seed(smoke: Study) -> None:
    losses = smoke["losses"]
    assert set(zip(losses["arm"], losses["seed"], strict=True)) == {(a, s) for a in (UNTIED, TIED) for s in (0, 1)}
    alignment = smoke["alignment"]
    pairs = set(zip(alignment["arm"], alignment["source"], alignment["target"], strict=True))
    assert pairs == {(UNTIED, "input", "output"), (TIED, "input", "tied"), (TIED, "output", "tied")}
    steps = PROFILES["smoke"][PYTHON].config(TIED, 0).steps
    assert len(smoke["gradients"]) == 4 * steps


def test_a_table_is_read_back_not_measured_again(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "_measure", lambda *_: pytest.fail("measured again"))
    again = Study("smoke", progress=False)
    pd.testing.assert_frame_equal(again["alignment"], smoke["alignment"])
    assert "read from alignment.csv" in again.origin["alignment"]


def test_fresh_measures_again_from_the_same_runs(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import tying_utils.training.trainer as training

    monkeypatch.setattr(training.Trainer, "run", lambda *_: pytest.fail("a finished run was trained again"))
    fresh = Study("smoke", fresh=True, progress=False)
    pd.testing.assert_frame_equal(fresh["losses"], smoke["losses"])
    assert fresh.origin["losses"] == "measured now from 4 runs"


def test_a_damaged_table_is_named_set_aside_and_measured_again(smoke: Study) -> None:
    path = smoke.folder / "losses.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.warns(UserWarning, match=r"losses\.csv"):
        again = Study("smoke", progress=False)["losses"]
    pd.testing.assert_frame_equal(again, smoke["losses"])
    assert path.read_bytes() == whole and path.with_name("losses.csv.damaged-1").exists()


def test_a_table_of_other_runs_is_not_taken_for_this_profile(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    own = PROFILES["smoke"][PYTHON]
    other = dataclasses.replace(own, training=dict(own.training, learning_rate=1e-3))
    monkeypatch.setitem(PROFILES, "smoke", {PYTHON: other})
    assert Study("smoke", progress=False)._read("losses") is None


def test_a_committed_profile_is_read_whatever_the_runs(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "COMMITTED", ("smoke",))
    monkeypatch.setattr(Study, "_runs_of", lambda *_: ["no such run"])
    assert Study("smoke", progress=False)._read("losses") is not None


def test_the_manifest_says_how_the_tables_were_made(smoke: Study) -> None:
    manifest = json.loads((smoke.folder / "manifest.json").read_text())
    assert manifest["profile"]["name"] == "smoke"
    assert {"torch", "transformers", "tuned-lens"} <= set(manifest["packages"])
    run = manifest["runs"][manifest["tables"]["losses"]["runs"][0]]
    assert run["config"]["d_model"] == 32 and run["made"]["seconds"] > 0
    assert manifest["corpora"][run["corpus"]]["name"] == "python"


def test_unknown_names_are_refused(smoke: Study) -> None:
    with pytest.raises(ValueError, match="nothing.*alignment"):
        smoke.table("nothing")
    with pytest.raises(ValueError, match="PROFILE.*huge.*quick"):
        Study("huge")
    with pytest.raises(ValueError, match="'roles' needs arms that the profile 'smoke' on 'python' leaves out"):
        smoke.table("roles")
    with pytest.raises(ValueError, match="CORPUS.*wikitext-2.*python, two-role"):
        Study("smoke", "wikitext-2")


def test_arms_differ_in_what_they_are_named_for_alone() -> None:
    profile = PROFILES["laptop"][PYTHON]

    def differing(a: str, b: str | Arm) -> set[str]:
        first, second = profile.config(a, 0).as_dict(), profile.config(b, 0).as_dict()
        return {name for name in first if first[name] != second[name]}

    assert differing(UNTIED, TIED) == {"tied", "init_seed"}
    assert differing(UNTIED, SHARED_START) == {"tied"}
    assert all(differing(TIED, arm) == {"input_scale"} for arm in profile.scaled)
    seeds = [profile.config(arm, seed) for arm in (UNTIED, TIED) for seed in profile.seeds]
    assert len({config.init_seed for config in seeds}) == len(seeds)


def test_quick_shares_its_runs_with_laptop() -> None:
    for corpus, quick in PROFILES["quick"].items():
        laptop = PROFILES["laptop"][corpus]
        assert all(quick.config(arm, seed) == laptop.config(arm, seed) for arm in quick.arms for seed in quick.seeds)


@pytest.mark.parametrize("profile", profiles.COMMITTED)
def test_committed_tables_are_whole_and_complete(profile: str) -> None:
    top = COMMITTED / profile
    assert {folder.name for folder in top.iterdir() if folder.is_dir()} == {*PROFILES[profile], "miniatures"}
    for corpus in PROFILES[profile]:
        expected, folder = set(Study(profile, corpus).names), top / corpus
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["tables"]) == expected
        assert {path.stem for path in folder.glob("*.csv")} == expected
        for name, entry in manifest["tables"].items():
            assert files.intact(folder / f"{name}.csv", entry["sha256"]), name
            assert entry["format"] == study.FORMAT, name
        assert not any(run["config"]["path"] for run in manifest["runs"].values()), "where the text lay is nobody's business"
    assert sum(path.stat().st_size for path in top.rglob("*") if path.is_file()) < 8e6


@pytest.mark.parametrize("profile", profiles.COMMITTED)
def test_committed_runs_keep_their_keys(profile: str) -> None:
    """What was trained and measured once is found by the configuration that it was trained with."""
    for corpus in PROFILES[profile]:
        manifest = json.loads((COMMITTED / profile / corpus / "manifest.json").read_text())
        assert manifest["runs"]
        for key, run in manifest["runs"].items():
            config, fingerprint = TrainConfig.from_dict(run["config"]), manifest["corpora"][run["corpus"]]
            assert run_store.run_key(config, fingerprint) == key


def test_results_lie_under_the_home(smoke: Study) -> None:
    assert smoke.folder == paths.root() / "data" / "results" / "smoke" / "python"


def test_rows_of_tokens_that_never_occur_are_left_out(smoke: Study) -> None:
    arm = smoke.runs(TIED)[0]
    unused = int((arm.corpus.counts == 0).sum())
    assert unused > 0, "a byte-level vocabulary holds bytes that Python source does not"
    assert len(arm.tables()["tied"]) == arm.run.config.vocab_size - unused
    assert set(smoke["alignment"]["tokens"]) == {arm.run.config.vocab_size - unused}


def test_what_is_only_read_is_never_measured(smoke: Study) -> None:
    reading = Study("smoke", only_read=True)
    pd.testing.assert_frame_equal(reading["losses"], smoke["losses"])
    with pytest.raises(ValueError, match=r"drift\.csv: missing.*make reproduce PROFILE=smoke"):
        reading.table("drift")


def test_results_are_the_corpora_together(smoke: Study) -> None:
    results = Results("smoke", progress=False)
    losses = results["losses"]
    assert list(losses["corpus"].unique()) == [PYTHON, TWO_ROLE]
    assert losses.query("corpus == 'python'")["floor"].isna().all()
    two_role = losses.query("corpus == 'two-role'")
    assert (two_role["floor"] > 0.5).all() and (two_role["validation_loss"] > two_role["floor"]).all()
    assert "roles" in results and set(results["roles"]["corpus"]) == {TWO_ROLE}
    assert set(results.scales) == {PYTHON, TWO_ROLE} and "d 32" in results.scales[PYTHON]


def test_roles_are_those_of_the_language_that_a_run_was_trained_on(smoke: Study) -> None:
    study = Study("smoke", TWO_ROLE, progress=False)
    roles = study["roles"]
    assert set(roles["agreement"]) == {0.0, 1.0} and set(roles["table"]) == {"input", "output", "tied"}
    alike = roles.query("agreement == 1").pivot_table(index=["arm", "seed", "table"], columns="role", values="purity")
    assert (alike["source"] == alike["target"]).all(), "where the roles are one, so are their purities"
    assert set(roles["output_scale"]) == {0.1, 1.0}
    languages = {arm.run.config.language for arm in study.runs(TIED)}
    assert len(languages) == len(study.profile.seeds), "a language a seed"


@pytest.mark.parametrize("profile", [p for of in PROFILES.values() for p in of.values()], ids=lambda p: f"{p.name}-{p.corpus}")
def test_every_arm_is_a_condition_of_its_own(profile: Profile) -> None:
    configs = {arm: profile.config(arm, profile.seeds[0]) for arm in profile.arms}
    assert len(set(configs.values())) == len(configs)
    assert {arm.name for wanted in study_tables.TABLES.values() for arm in wanted(profile)} == set(configs)


@pytest.mark.parametrize("profile", ["quick", "laptop"])
def test_equal_parameters_are_equal(profile: str) -> None:
    for of in PROFILES[profile].values():
        counts = {(arm.place, arm.kind, arm.enlarged): parameters(of.config(arm, 0)) for arm in of.sized}
        for place in {arm.place for arm in of.sized}:
            assert counts[place, TIED, True] == pytest.approx(counts[place, UNTIED, False], rel=0.035)


def parameters(config: TrainConfig) -> int:
    return sum(p.numel() for p in models.build(config.arch, tied=config.tied, **config.sizes).parameters())
