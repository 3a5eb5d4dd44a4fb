"""Pictures for sliders: what moves moves, what stands still stays to the pixel."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from synthetic_sweep import SEEDS, STEPS, synthetic_sweep

from tying_utils.base.names import PYTHON, TWO_ROLE
from tying_utils.explorer import panels
from tying_utils.explorer.panels import LiveView, Stage, SweepView


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def points(line: Any) -> list[list[float]]:
    """The (x, y) of what is drawn."""
    return np.column_stack([line.get_xdata(), line.get_ydata()]).tolist()


def test_a_stage_draws_what_moves_and_keeps_the_rest() -> None:
    figure = Figure(figsize=(2, 1))
    ax = figure.subplots()
    still, moving = ax.plot([0, 1], [0, 0])[0], ax.plot([0, 1], [0, 1])[0]
    stage = Stage(figure, [moving])
    before = pixels(stage.png())
    still.set_ydata([1, 1])
    assert (pixels(stage.png()) == before).all(), "the still line is pixels by now"
    moving.set_ydata([1, 0])
    after = pixels(stage.png())
    assert (after != before).any()
    moving.set_ydata([0, 1])
    assert (pixels(stage.png()) == before).all(), "nothing of the other state is left"


@pytest.mark.parametrize("corpus", [TWO_ROLE, PYTHON])
def test_sweep_panels_show_the_condition_and_keep_their_axes(corpus: str) -> None:
    view = SweepView(synthetic_sweep(corpus))
    figure = view.figure
    limits = [(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes]
    seen = {}
    for scales in view.sweep.conditions:
        for step in STEPS:
            for seed in (None, SEEDS[-1]):
                seen[scales, step, seed] = view.show(scales, step, seed)
    assert len(set(seen.values())) == len(seen), "every state looks like itself"
    assert limits == [(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes]
    assert view.show((10.0, 0.3), STEPS[1]) == seen[(10.0, 0.3), STEPS[1], None], "whatever was shown before"
    assert {pixels(picture).shape for picture in seen.values()} == {pixels(view.show((1.0, 1.0), 0)).shape}


def test_sweep_panels_hold_every_point_of_every_condition() -> None:
    view = SweepView(synthetic_sweep())
    for scales in view.sweep.conditions:
        view.show(scales, STEPS[-1])
        bundles = [*view.curves.values(), *view.ghosts.values()]
        for bundle in bundles:
            low, high = bundle.ax.get_ylim()
            drawn = [points(bundle.mean), *bundle.seeds.get_segments()]
            values = np.concatenate([np.asarray(part)[:, 1] for part in drawn])
            assert (values >= low).all() and (values <= high).all()


def test_one_seed_is_drawn_alone_and_the_mean_with_its_seeds() -> None:
    view, scales = SweepView(synthetic_sweep()), (10.0, 1.0)
    view.show(scales, STEPS[-1], SEEDS[1])
    curve, aligned = view.curves["output"], view.sweep.alignment(scales, "output", "corrected")
    np.testing.assert_allclose(np.array(points(curve.mean))[:, 1], aligned[1])
    assert not curve.seeds.get_segments()
    view.show(scales, STEPS[-1])
    np.testing.assert_allclose(np.array(points(curve.mean))[:, 1], aligned.mean(0))
    assert len(curve.seeds.get_segments()) == len(SEEDS)


@pytest.mark.parametrize("seed", [None, SEEDS[1]])
def test_the_bias_is_the_distance_of_the_two_curves_and_is_said_at_the_step(seed: int | None) -> None:
    view = SweepView(synthetic_sweep())
    view.show((10.0, 0.3), STEPS[2], seed)
    low, high, bias = (np.array(points(view.curves[name].mean))[:, 1] for name in ("input", "output", "bias"))
    np.testing.assert_allclose(high - low, bias, atol=1e-12)
    assert points(view.distance) == [[STEPS[2], low[2]], [STEPS[2], high[2]]]
    assert view.number.get_text() == f"{bias[2]:+.2f}".replace("-", "−")


def test_the_ordinary_tied_arm_is_a_grey_ghost_behind_every_condition_of_the_same_seeds() -> None:
    view = SweepView(synthetic_sweep())
    for seed, rows in ((None, [0, 1, 2]), (SEEDS[1], [1])):
        view.show((10.0, 0.3), STEPS[-1], seed)
        ghosts = {name: np.array(points(ghost.mean))[:, 1] for name, ghost in view.ghosts.items()}
        view.show((1.0, 1.0), STEPS[-1], seed)
        for name, ghost in ghosts.items():
            np.testing.assert_allclose(ghost, np.array(points(view.curves[name].mean))[:, 1])
        np.testing.assert_allclose(ghosts["bias"], view.sweep.bias((1.0, 1.0))[rows].mean(0))
    assert {ghost.mean.get_color() for ghost in view.ghosts.values()} == {panels.GHOST}


@pytest.mark.parametrize("swept", [None, synthetic_sweep()])
def test_the_live_panels_grow_and_take_points(swept: Any) -> None:
    view = LiveView(swept, steps=40, floor=2.0, start=6.0)
    empty = view.restart()
    first = view.grow(1, 5.9)
    assert first == empty or (pixels(first) != pixels(empty)).any()
    second = view.grow(20, 4.0)
    assert (pixels(second) != pixels(empty)).any()
    np.testing.assert_array_equal(view.curve.get_xdata(), [1, 20])
    joined = view.join(ratio=3.0, source=0.4, target=0.5, loss=0.1)
    assert (pixels(joined) != pixels(second)).any()
    assert points(view.here["source"]) == [[3.0, 0.4]]
    assert points(view.curve) == [[1, 5.9], [20, 4.0]], "the curve stays until the next run"


def test_a_point_beyond_the_axes_widens_them() -> None:
    view = LiveView(synthetic_sweep(), steps=40, floor=2.0, start=6.0)
    view.join(ratio=3.0, source=0.4, target=0.5, loss=0.1)
    before = view._limits
    view.join(ratio=9000.0, source=0.4, target=0.5, loss=9.0)
    (_, right), (_, high) = view._limits
    assert right > 9000 > before[0][1] and high > 9 > before[1][1]
    assert points(view.here["loss"]) == [[3.0, 0.1], [9000.0, 9.0]]


def test_stacked_pictures_stand_below_each_other() -> None:
    one, two = panels.words("one"), panels.words("two")
    whole = pixels(panels.stacked([one, two]))
    assert whole.shape[0] == 2 * pixels(one).shape[0] and (pixels(one) != pixels(two)).any()
