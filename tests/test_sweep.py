"""A sweep by condition: arrays in the order of the seeds, the nearest swept scale, a line that trains what is shown."""

import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils import profiles, sweep
from tying_utils.names import PYTHON, TIED, TWO_ROLE, UNTIED, WIKITEXT, crossed, output_scaled, scaled
from tying_utils.profiles import PROFILES
from tying_utils.sweep import Sweep, nearest

INPUT, OUTPUT, SEEDS, STEPS, LAYERS = (0.1, 1.0, 10.0), (0.3, 1.0), (0, 1, 2), (0, 1, 10, 40), 2


@functools.cache
def synthetic_sweep(corpus: str = TWO_ROLE, seeds: tuple[int, ...] = SEEDS) -> Sweep:
    """A sweep whose values say where they come from: see the formulas."""
    tables: dict[str, list[dict]] = {}
    for a in INPUT:
        for b in OUTPUT:
            ratio = np.log10(a / b)
            for seed in seeds:
                labels = {"corpus": corpus, "arm": crossed(a, b), "input_scale": a, "output_scale": b, "seed": seed}
                for at, step in enumerate(STEPS):
                    for source, sign in (("input", 1), ("output", -1)):
                        value = 0.3 + 0.05 * sign * ratio * at + 0.01 * seed + 0.1 * (sign < 0)
                        row = {
                            **labels,
                            "step": step,
                            "source": source,
                            "target": "tied",
                            "value": value,
                            "corrected": value - 0.1,
                        }
                        row |= {"chance": 0.1, "chance_low": 0.09, "chance_high": 0.11}
                        tables.setdefault("sweep_alignment", []).append(row)
                for step in STEPS[1:]:
                    share = 0.6 - 0.1 * ratio + 0.01 * seed
                    row = {**labels, "step": step, "output_share": share, "output_update_share": share / 2}
                    tables.setdefault("sweep_share", []).append(row)
    for a, b in (None, None), *((a, b) for a in INPUT for b in OUTPUT):
        arm = UNTIED if a is None or b is None else crossed(a, b)
        for seed in seeds:
            labels = {"corpus": corpus, "arm": arm, "input_scale": a or 1.0, "output_scale": b or 1.0, "seed": seed}
            cost = 0.0 if a is None or b is None else 0.2 + 0.1 * abs(np.log10(a / b))
            floor = 2.0 if corpus == TWO_ROLE else np.nan
            losses = {"validation_loss": 3.0 + cost + 0.01 * seed, "floor": floor}
            tables.setdefault("sweep_losses", []).append(labels | losses)
            for kind, indexing in (("tuned", "matched"), ("tuned", "published"), ("logit", "matched")):
                for layer in range(LAYERS + 1):
                    kl = (1 + cost) * (1 - layer / LAYERS) + (kind == "logit") + 2 * (indexing == "published")
                    lens = {"lens": kind, "indexing": indexing, "layer": layer, "kl_bits": kl}
                    tables.setdefault("sweep_lens", []).append(labels | lens)
            for table in ("input", "output") if arm == UNTIED else ("tied",):
                lean = 0.0 if a is None or b is None else 0.15 * np.log10(a / b)
                for role, sign in (("source", 1), ("target", -1)):
                    row = labels | {"table": table, "role": role, "purity": 0.4 + sign * lean, "chance": 0.06}
                    tables.setdefault("sweep_roles", []).append(row | {"tied": arm != UNTIED, "agreement": 0.0})
    if corpus != TWO_ROLE:
        del tables["sweep_roles"]
    # In any order: a table says where its rows belong.
    frames = {name: pd.DataFrame(rows).sample(frac=1, random_state=0) for name, rows in tables.items()}
    return Sweep("laptop", corpus, frames)


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


@pytest.mark.parametrize("scale", INPUT)
def test_a_swept_scale_is_its_own_nearest(scale: float) -> None:
    assert nearest("input_scale", scale, INPUT) == scale


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "7", None, True])
def test_a_scale_that_is_none_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match=r"input_scale: a finite number"):
        nearest("input_scale", scale, INPUT)  # type: ignore[arg-type]


def test_the_line_trains_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    from tying_utils import training

    asked = []
    monkeypatch.setattr(training, "train", lambda config: asked.append(config) or "the run")
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
    assert crossed(5, 1) == scaled(5) and crossed(1, 0.1) == output_scaled(0.1)
    assert crossed(5, 0.1) == "input x5, output x0.1"
