"""The slider over input scales: every stop shows its own numbers and one picture, and nothing stacks."""

from typing import Any

import pytest
from ipywidgets import HTML, Image, SelectionSlider
from test_figures import synthetic

from tying_utils import claims, explorer
from tying_utils.profiles import SCALES


@pytest.fixture
def parts() -> tuple[SelectionSlider, HTML, Image]:
    slider, words, screen = explorer.scale_slider(synthetic()).children
    return slider, words, screen


def test_it_starts_at_the_ordinary_tied_arm(parts: Any) -> None:
    slider, words, _ = parts
    assert slider.value == 1.0 and "input scale 1</b>" in words.value
    assert not slider.continuous_update, "a drag would queue a picture for every pixel"
    assert [label for label, _ in slider.options] == [f"{scale:g}" for scale in SCALES]


def test_each_stop_shows_its_own_numbers(parts: Any) -> None:
    slider, words, _ = parts
    seen = set()
    for scale in SCALES:
        slider.value = scale
        assert f"input scale {scale:g}</b>" in words.value
        seen.add(words.value)
    assert len(seen) == len(SCALES)


def test_state_is_the_mean_over_seeds_of_the_tables() -> None:
    tables = synthetic()
    losses = claims.with_scaling(tables, "losses").query("arm == 'input x5'")["validation_loss"]
    assert explorer.state(tables, 5.0)["validation loss, nats"] == pytest.approx(losses.mean())
    bias = claims.output_bias(tables["alignment"].query("kind == 'orthogonal'"))
    assert explorer.state(tables, 1.0)["output bias"] == pytest.approx(bias.query("arm == 'tied'")["output_bias"].mean())


def test_each_stop_shows_its_own_picture_in_the_same_place(parts: Any) -> None:
    slider, _, screen = parts
    seen = set()
    for scale in (5.0, 0.1, 20.0):
        slider.value = scale
        assert bytes(screen.value).startswith(b"\x89PNG")
        seen.add(bytes(screen.value))
    assert len(seen) == 3
