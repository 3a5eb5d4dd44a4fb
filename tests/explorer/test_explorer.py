"""The sliders: every stop shows its own numbers and one picture, a scale that was not swept snaps and says so."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import pytest
from synthetic_sweep import INPUT, OUTPUT, SEEDS, STEPS, synthetic_sweep

from tying_utils.base.names import PYTHON, TWO_ROLE
from tying_utils.explorer import Explore, explore, sliders
from tying_utils.study import sweep
from tying_utils.study.sweep import Sweep

VIEW, PNG = "application/vnd.jupyter.widget-view+json", "image/png"


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic sweeps in place of the committed ones."""
    monkeypatch.setattr(Sweep, "of", lambda study: synthetic_sweep(study.profile.corpus))


@pytest.fixture
def explorer_(swept: None) -> Explore:
    made = explore(corpus=TWO_ROLE)
    assert isinstance(made.widget, widgets.VBox)
    return made


def every(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def test_it_opens_at_the_ordinary_tied_arm_after_training(explorer_: Explore) -> None:
    assert (explorer_.input_scale.value, explorer_.output_scale.value) == (1.0, 1.0)
    assert explorer_.step.value == STEPS[-1] and explorer_.seed.label == sliders.MEAN
    assert [value for _, value in explorer_.input_scale.options] == list(INPUT)
    assert [value for _, value in explorer_.output_scale.options] == list(OUTPUT)
    assert [value for _, value in explorer_.step.options] == list(STEPS)


def test_every_stop_shows_its_own_picture_and_words(explorer_: Explore) -> None:
    pictures, words = set(), set()
    for scale in INPUT:
        explorer_.input_scale.value = scale
        for step in STEPS:
            explorer_.step.value = step
            pictures.add(bytes(explorer_.screen.value))
            words.add(explorer_.state.value)
            assert f"input scale {scale:g}," in explorer_.state.value and f"after step {step} " in explorer_.state.value
    assert len(pictures) == len(words) == len(INPUT) * len(STEPS)
    explorer_.seed.value = SEEDS[1]
    assert f"seed {SEEDS[1]}" in explorer_.state.value and bytes(explorer_.screen.value) not in pictures
    explorer_.seed.value = sliders.MEAN
    assert "mean of 3 seeds" in explorer_.state.value and bytes(explorer_.screen.value) in pictures


def test_the_words_are_the_numbers_of_the_sweep() -> None:
    swept, scales = synthetic_sweep(), (10.0, 0.3)
    words = sliders.described(swept, scales, STEPS[-1])
    assert f"output bias {swept.bias(scales)[:, -1].mean():+.3f}" in words
    assert f"lens KL at the input {swept.lens(scales)[:, 0].mean():.2f} bits (untied 1.00)" in words
    assert f"loss over the floor {swept.loss(scales).mean():.3f} nats" in words
    one = sliders.described(swept, scales, STEPS[-1], SEEDS[2])
    assert f"loss over the floor {swept.loss(scales)[2]:.3f} nats" in one
    assert "output share" not in sliders.described(swept, scales, 0), "before the first step there is none"
    assert "validation loss" in sliders.described(synthetic_sweep(PYTHON), scales, 1)


@pytest.mark.parametrize(("typed", "nearest"), [("7", 10.0), (" 0.2 ", 0.1), ("1e9", 10.0), ("1", 1.0)])
def test_a_typed_scale_snaps_to_the_nearest_and_says_so(explorer_: Explore, typed: str, nearest: float) -> None:
    explorer_.typed.value = typed
    assert explorer_.input_scale.value == nearest
    said = f"input scale {float(typed):g} was not swept: {nearest:g} is the nearest." in explorer_.note.value
    assert said == (float(typed) != nearest)
    explorer_.input_scale.value = INPUT[0] if nearest != INPUT[0] else INPUT[1]
    assert not explorer_.note.value, "the next move is no snap"


@pytest.mark.parametrize("typed", ["seven", "0", "-3", "nan", "inf"])
def test_what_is_no_scale_is_refused_in_words(explorer_: Explore, typed: str) -> None:
    before = bytes(explorer_.screen.value)
    explorer_.typed.value = typed
    assert f"a number above 0 is needed, as 7 or 0.5, got &#x27;{typed}&#x27;" in explorer_.note.value
    assert 'role="alert"' in explorer_.note.value and bytes(explorer_.screen.value) == before


def test_it_opens_where_it_is_told_to(swept: None) -> None:
    made = explore(corpus=PYTHON, input_scale=7, output_scale=0.3)
    assert made.widget and made.corpus.value == PYTHON
    assert (made.input_scale.value, made.output_scale.value) == (10.0, 0.3)
    assert "7 was not swept: 10 is the nearest" in made.note.value and "Live" in made.note.value


def test_another_corpus_keeps_the_scales(explorer_: Explore) -> None:
    explorer_.input_scale.value = 10.0
    explorer_.corpus.value = PYTHON
    assert explorer_.input_scale.value == 10.0 and "python, input scale 10" in explorer_.state.value
    assert f'config("tied", {SEEDS[0]})' in explorer_.line.value and '"python"' in explorer_.line.value


def test_copy_hands_the_line_to_the_browser(explorer_: Explore) -> None:
    explorer_.output_scale.value = 0.3
    explorer_.copy.click()
    explorer_.copy.click()
    (output,) = explorer_._clipboard.outputs
    script = output["data"]["application/javascript"]
    assert script.startswith("navigator.clipboard.writeText(") and "output_scale=0.3" in script
    assert "Copied" in explorer_.note.value


def test_every_control_has_a_label(explorer_: Explore) -> None:
    silent = widgets.HTML | widgets.Image | widgets.Output | widgets.Box
    controls = [control for control in every(explorer_.widget) if not isinstance(control, silent)]
    assert len(controls) == 11 + len(INPUT) * len(OUTPUT) and all(control.description for control in controls)


def test_large_numbers_are_those_of_the_ordinary_arm_and_of_the_condition(explorer_: Explore) -> None:
    swept, scales = synthetic_sweep(), (10.0, 0.3)
    numbers = sliders.compared(swept, scales, STEPS[1], SEEDS[2])
    assert numbers["output bias after step 1"] == (swept.bias((1.0, 1.0))[2, 1], swept.bias(scales)[2, 1])
    name = "loss over the floor at the end, nats per token"
    assert numbers[name] == (swept.loss((1.0, 1.0))[2], swept.loss(scales)[2])
    assert numbers["purity, target role"] == (pytest.approx(0.4), swept.purity(scales, "target")[2])
    assert len(sliders.compared(synthetic_sweep(PYTHON), scales, STEPS[1])) == 2, "no roles there"
    explorer_.input_scale.value = 10.0
    assert "0.10 →</span> <b>−0.20</b>" in explorer_.numbers.value and "1.21 →</span> <b>1.31</b>" in explorer_.numbers.value


def test_a_press_on_the_map_loads_that_pair(explorer_: Explore) -> None:
    before = bytes(explorer_.screen.value)
    explorer_.map(TWO_ROLE).cells[10.0, 0.3].click()
    assert (explorer_.input_scale.value, explorer_.output_scale.value) == (10.0, 0.3)
    assert "input scale 10, output scale 0.3" in explorer_.state.value and bytes(explorer_.screen.value) != before
    explorer_.corpus.value = PYTHON
    assert [explorer_.map(PYTHON).widget] == list(explorer_.place.children)


def test_play_takes_the_input_scale_there_and_back(explorer_: Explore) -> None:
    seen = []
    for count in range(1, explorer_.play.max + 1):
        explorer_.play.value = count
        seen.append(explorer_.input_scale.value)
    assert seen == [10.0, 1.0, 0.1, 1.0]
    explorer_.play.value = 0
    assert explorer_.input_scale.value == 1.0, "its stop moves nothing"


def test_reset_returns_to_the_ordinary_tied_arm(explorer_: Explore) -> None:
    first = bytes(explorer_.screen.value)
    explorer_.input_scale.value, explorer_.output_scale.value, explorer_.step.value = 10.0, 0.3, STEPS[1]
    explorer_.seed.value, explorer_.play.value = SEEDS[1], 1
    explorer_.reset.click()
    assert bytes(explorer_.screen.value) == first and explorer_.play.value == 0
    assert (explorer_.input_scale.value, explorer_.output_scale.value, explorer_.seed.value) == (1.0, 1.0, sliders.MEAN)


def test_loading_is_said_while_a_corpus_opens_and_only_then(explorer_: Explore) -> None:
    noted: list[str] = []
    explorer_.note.observe(lambda change: noted.append(change["new"]), names="value")
    explorer_.corpus.value = PYTHON
    assert "loading python ..." in noted[0] and explorer_.note.value == ""
    noted.clear()
    explorer_.corpus.value = TWO_ROLE
    assert not noted


def test_in_a_running_loop_the_other_corpora_are_opened_soon(swept: None) -> None:
    async def cell() -> Explore:
        made = explore(corpus=TWO_ROLE)
        assert made.widget and list(made._maps) == [TWO_ROLE]
        await asyncio.sleep(1.5)
        return made

    assert set(asyncio.run(cell())._maps) == {TWO_ROLE, PYTHON}


def test_a_notebook_gets_the_widget_and_a_still_picture(explorer_: Explore, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, metadata = explorer_._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == explorer_.widget.model_id
    assert bundle[PNG].startswith(b"\x89PNG") and metadata[PNG]["alt"] == bundle["text/plain"]
    monkeypatch.setitem(sys.modules, "google.colab", object())
    bundle, _ = explorer_._repr_mimebundle_()
    assert VIEW in bundle and PNG not in bundle


def test_without_ipywidgets_there_are_still_panels(swept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle, _ = explore(corpus=TWO_ROLE)._repr_mimebundle_()
    assert VIEW not in bundle and bundle[PNG].startswith(b"\x89PNG")


def test_a_missing_sweep_is_named_with_the_command_that_makes_it(home: Any) -> None:
    made = explore("quick")
    assert made.widget and made.still().startswith(b"\x89PNG")
    assert "sweep_alignment.csv: missing" in made.note.value and "tying-utils sweep --profile laptop" in made.note.value
    made.typed.value = "3"  # and no control fails
    made.corpus.value = TWO_ROLE
    made.reset.click()
    made.play.value = 1
    made.mapped.value = "loss"
    made.copy.click()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"profile": "huge"}, "PROFILE.*huge"),
        ({"corpus": "latin"}, "corpus.*latin.*python, two-role"),
        ({"input_scale": 0}, "input_scale"),
        ({"output_scale": float("nan")}, "output_scale"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        explore(**arguments)


def test_the_committed_sweeps_can_be_explored() -> None:
    for corpus in sweep.corpora("quick"):
        swept = Sweep.of(sweep.study("quick", corpus))
        assert len(swept.seeds) >= 3 and (1.0, 1.0) in swept.conditions
        assert sliders.described(swept, (1.0, 1.0), swept.steps[-1])
