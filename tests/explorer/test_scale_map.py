"""The map: a button per swept pair that says its value, coloured by which table W leans to, ringed where it is shown."""

import pytest
from synthetic_sweep import INPUT, OUTPUT, SEEDS, synthetic_sweep

from tying_utils.base.names import PYTHON
from tying_utils.explorer.scale_map import BIAS, LOSS, ScaleMap
from tying_utils.study.sweep import Scales


@pytest.fixture
def pressed() -> list[Scales]:
    return []


@pytest.fixture
def made(pressed: list[Scales]) -> ScaleMap:
    shown = ScaleMap(synthetic_sweep(), pressed.append)
    shown.show((10.0, 0.3))
    return shown


def channels(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_there_is_a_button_for_each_pair_and_it_says_which(made: ScaleMap, pressed: list[Scales]) -> None:
    assert set(made.cells) == {(a, b) for a in INPUT for b in OUTPUT}
    for pair, cell in made.cells.items():
        cell.click()
        assert pressed.pop() == pair and f"input scale {pair[0]:g}, output scale {pair[1]:g}" in cell.tooltip


def test_only_the_pair_on_show_is_ringed_and_the_ordinary_one_is_marked(made: ScaleMap) -> None:
    for chosen in made.cells:
        made.show(chosen)
        assert [pair for pair, cell in made.cells.items() if cell.layout is made.ring] == [chosen]
        ordinary = [pair for pair, cell in made.cells.items() if cell.layout is made.ordinary]
        assert ordinary == [(1.0, 1.0)] * (chosen != (1.0, 1.0))


def test_cells_say_the_bias_after_training_and_its_side_by_colour(made: ScaleMap) -> None:
    for pair, cell in made.cells.items():
        bias = made.sweep.bias(pair)[:, -1].mean()
        assert cell.description == f"{bias:.2f}".replace("-", "−")
        red, _, blue = channels(cell.style.button_color)
        assert (red > blue) == (bias > 0)
        assert min(channels(cell.style.button_color)[1:]) > 60, "black words are legible on it"


def test_the_loss_can_be_mapped_and_one_seed(made: ScaleMap) -> None:
    made.show((1.0, 1.0), LOSS)
    losses = {pair: made.sweep.loss(pair).mean() for pair in made.cells}
    assert {pair: cell.description for pair, cell in made.cells.items()} == {at: f"{loss:.2f}" for at, loss in losses.items()}
    light = {pair: sum(channels(cell.style.button_color)) for pair, cell in made.cells.items()}
    assert sorted(light, key=lambda pair: light[pair])[0] == max(losses, key=lambda pair: losses[pair])
    assert "Loss over the floor, after training" in made.title.value
    made.show((1.0, 1.0), LOSS, SEEDS[2])
    assert made.cells[10.0, 0.3].description == f"{made.sweep.loss((10.0, 0.3))[2]:.2f}"
    text = ScaleMap(synthetic_sweep(PYTHON), lambda _: None)
    text.show((1.0, 1.0), LOSS)
    assert "<b>Loss, after training" in text.title.value


def test_a_move_sends_no_more_than_the_two_rings(made: ScaleMap) -> None:
    changed: list[str] = []
    for cell in made.cells.values():
        cell.observe(lambda change: changed.append(change["name"]))
    made.show((0.1, 1.0), BIAS)
    assert changed == ["layout"] * 2
