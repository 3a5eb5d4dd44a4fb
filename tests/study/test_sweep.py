"""A sweep by condition: arrays in the order of the seeds, the nearest swept scale, a line that trains what is shown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_sweep import INPUT, OUTPUT, SEEDS, STEPS, synthetic_sweep

from tying_utils.base.names import PYTHON, TIED, TWO_ROLE, WIKITEXT, crossed, scaled
from tying_utils.study import profiles, sweep
from tying_utils.study.profiles import PROFILES
from tying_utils.study.sweep import nearest


def test_the_grid_is_what_was_swept() -> None:
    swept = synthetic_sweep()
    assert (swept.input_scales, swept.output_scales, swept.seeds) == (list(INPUT), list(OUTPUT), list(SEEDS))
    assert (swept.steps, swept.spans) == (list(STEPS), list(STEPS[1:]))
    assert swept.conditions == [(a, b) for a in INPUT for b in OUTPUT]
    assert swept.has_roles and swept.has_floor
    text = synthetic_sweep(PYTHON)
    assert not text.has_roles and not text.has_floor


def test_arrays_are_those_of_the_condition_in_the_order_of_seeds_and_points() -> None:
    swept = synthetic_sweep()
    ratio = np.log10(10 / 0.3)
    seeds, points = np.array(SEEDS)[:, None], np.arange(len(STEPS))[None]
    expected = 0.4 - 0.05 * ratio * points + 0.01 * seeds
    np.testing.assert_allclose(swept.alignment((10.0, 0.3), "output"), expected)
    np.testing.assert_allclose(swept.bias((10.0, 0.3)), np.broadcast_to(0.1 - 0.1 * ratio * points, expected.shape))
    np.testing.assert_allclose(swept.share((10.0, 0.3))[:, 0], 0.6 - 0.1 * ratio + 0.01 * seeds[:, 0])
    np.testing.assert_allclose(swept.share((10.0, 0.3), "output_update_share") * 2, swept.share((10.0, 0.3)))
    np.testing.assert_allclose(swept.lens((10.0, 0.3))[0], (1.2 + 0.1 * ratio) * np.array([1, 0.5, 0]))
    np.testing.assert_allclose(swept.lens(None)[0], [1, 0.5, 0])
    np.testing.assert_allclose(swept.loss((10.0, 0.3)), 1.2 + 0.1 * ratio + 0.01 * seeds[:, 0])
    np.testing.assert_allclose(swept.loss(None), 1 + 0.01 * seeds[:, 0])
    np.testing.assert_allclose(swept.purity((10.0, 0.3), "source"), 0.4 + 0.15 * ratio)
    assert swept.purity_chance == pytest.approx(0.06)


def test_without_a_floor_the_loss_is_the_validation_loss() -> None:
    np.testing.assert_allclose(synthetic_sweep(PYTHON).loss(None), 3 + 0.01 * np.array(SEEDS))


def test_conditions_by_ratio() -> None:
    frame = synthetic_sweep().by_ratio()
    assert frame["ratio"].is_monotonic_increasing and len(frame) == len(INPUT) * len(OUTPUT)
    np.testing.assert_allclose(frame["ratio"], frame["input_scale"] / frame["output_scale"])
    np.testing.assert_allclose(frame["output_bias"], 0.1 - 0.3 * np.log10(frame["ratio"]))


@given(st.floats(1e-6, 1e6))
def test_the_nearest_scale_is_nearest_by_ratio(scale: float) -> None:
    found = nearest("input_scale", scale, INPUT)
    assert all(abs(np.log(found / scale)) <= abs(np.log(other / scale)) + 1e-12 for other in INPUT)


def test_a_swept_scale_is_its_own_nearest() -> None:
    assert [nearest("input_scale", scale, INPUT) for scale in INPUT] == [*INPUT]


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "7", None, True])
def test_a_scale_that_is_none_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match=r"input_scale: a finite number"):
        nearest("input_scale", scale, INPUT)  # type: ignore[arg-type]


def test_the_line_trains_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    from tying_utils.training import trainer

    asked = []
    monkeypatch.setattr(trainer, "train", lambda config: asked.append(config) or "the run")
    scope: dict = {}
    exec(synthetic_sweep().line((7.0, 0.3), 2), scope)
    assert scope["run"] == "the run"
    profile = PROFILES["laptop"][TWO_ROLE]
    assert asked == [profile.config(TIED, 2).replace(input_scale=7.0, output_scale=0.3)]
    exec(synthetic_sweep().line((10.0, 0.1)), scope)
    assert asked[1] == profile.config(crossed(10.0, 0.1), 0), "a swept condition is the run that was swept"


def test_a_profile_without_a_sweep_explores_the_committed_one() -> None:
    assert sweep.explored("quick") == sweep.explored("laptop") == profiles.COMMITTED[0]
    assert sweep.explored("smoke") == "smoke" and sweep.corpora("smoke") == [TWO_ROLE]
    assert sweep.corpora("quick") == [PYTHON, TWO_ROLE]
    assert sweep.study("quick").only_read and not sweep.study("smoke").only_read
    assert sweep.study("quick", TWO_ROLE).profile is PROFILES["laptop"][TWO_ROLE]
    with pytest.raises(ValueError, match="PROFILE.*huge"):
        sweep.explored("huge")
    with pytest.raises(ValueError, match=r"corpus: 'wikitext-2' has no sweep; choose one of python, two-role"):
        sweep.study("laptop", WIKITEXT)


def test_crossed_names_are_those_of_the_arms_that_are_there_already() -> None:
    assert crossed(1, 1) == TIED
    assert crossed(5, 1) == scaled(5) == "input x5" and crossed(1, 0.1) == "output x0.1"
    assert crossed(5, 0.1) == "input x5, output x0.1"
