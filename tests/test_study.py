"""A study's tables: made from runs, kept, read back, verified."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tying_utils import paths, profiles, study
from tying_utils.profiles import PROFILES, SCALED, SHARED_START, TIED, UNTIED
from tying_utils.study import TABLES, Study


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home in which the smoke profile's cheap tables are measured once."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(home))
        made = Study("smoke", progress=False)
        for name in ("losses", "alignment", "gradients"):
            made.table(name)
        yield made


def test_tables_have_a_row_for_each_arm_and_seed(smoke: Study) -> None:
    losses = smoke["losses"]
    assert set(zip(losses["arm"], losses["seed"], strict=True)) == {(a, s) for a in (UNTIED, TIED) for s in (0, 1)}
    alignment = smoke["alignment"]
    pairs = set(zip(alignment["arm"], alignment["source"], alignment["target"], strict=True))
    assert pairs == {(UNTIED, "input", "output"), (TIED, "input", "tied"), (TIED, "output", "tied")}
    steps = PROFILES["smoke"].config(TIED, 0).steps
    assert len(smoke["gradients"]) == 4 * steps


def test_a_table_is_read_back_not_measured_again(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> pd.DataFrame:
        raise AssertionError("measured again")

    monkeypatch.setattr(Study, "_measure", never)
    again = Study("smoke", progress=False)
    pd.testing.assert_frame_equal(again["alignment"], smoke["alignment"])
    assert "read from alignment.csv" in again.origin["alignment"]


def test_fresh_measures_again_from_the_same_runs(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import tying_utils.training as training

    monkeypatch.setattr(training._Trainer, "run", lambda *_: pytest.fail("a finished run was trained again"))
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
    changed = dict(PROFILES["smoke"].training, learning_rate=1e-3)
    other = profiles.Profile(**{**vars(PROFILES["smoke"]), "training": changed})
    monkeypatch.setitem(PROFILES, "smoke", other)
    assert Study("smoke", progress=False)._read("losses") is None


def test_a_committed_profile_is_read_whatever_the_runs(smoke: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "COMMITTED", ("smoke",))
    monkeypatch.setattr(Study, "_keys", lambda *_: ["no such run"])
    assert Study("smoke", progress=False)._read("losses") is not None


def test_the_manifest_says_how_the_tables_were_made(smoke: Study) -> None:
    manifest = json.loads((smoke.folder / "manifest.json").read_text())
    assert manifest["profile"]["name"] == "smoke" and manifest["corpus"]["name"] == "python"
    assert {"torch", "transformers", "tuned-lens"} <= set(manifest["packages"])
    run = manifest["runs"][manifest["tables"]["losses"]["runs"][0]]
    assert run["config"]["d_model"] == 32 and run["made"]["seconds"] > 0


def test_unknown_names_are_refused(smoke: Study) -> None:
    with pytest.raises(ValueError, match="nothing.*alignment"):
        smoke.table("nothing")
    with pytest.raises(ValueError, match="PROFILE.*huge.*quick"):
        Study("huge")
    with pytest.raises(ValueError, match="shared start.*smoke"):
        smoke.table("control_alignment")


def test_arms_differ_in_what_they_are_named_for_alone() -> None:
    profile = PROFILES["laptop"]

    def differing(a: str, b: str) -> set[str]:
        first, second = profile.config(a, 0).as_dict(), profile.config(b, 0).as_dict()
        return {name for name in first if first[name] != second[name]}

    assert differing(UNTIED, TIED) == {"tied", "init_seed"}
    assert differing(UNTIED, SHARED_START) == {"tied"}
    assert all(differing(TIED, arm) == {"input_scale"} for arm in SCALED)
    seeds = [profile.config(arm, seed) for arm in (UNTIED, TIED) for seed in profile.seeds]
    assert len({config.init_seed for config in seeds}) == len(seeds)


def test_quick_shares_its_runs_with_laptop() -> None:
    quick, laptop = PROFILES["quick"], PROFILES["laptop"]
    assert all(quick.config(arm, seed) == laptop.config(arm, seed) for arm in quick.arms for seed in quick.seeds)


@pytest.mark.parametrize("profile", profiles.COMMITTED)
def test_committed_tables_are_whole_and_complete(profile: str) -> None:
    folder = Path(study.__file__).parents[1] / "data" / "results" / profile
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["tables"]) == set(TABLES)
    assert {path.stem for path in folder.glob("*.csv")} == set(TABLES)
    for name, entry in manifest["tables"].items():
        assert study.files.intact(folder / f"{name}.csv", entry["sha256"]), name
        assert entry["format"] == study.FORMAT, name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6


def test_results_lie_under_the_home(smoke: Study) -> None:
    assert smoke.folder == paths.root() / "data" / "results" / "smoke"
