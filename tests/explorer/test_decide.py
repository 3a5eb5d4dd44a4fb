"""Sliders for whether to tie: every move changes the words, the table and the picture, and there is a picture without them."""

import sys
import time
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest

from tying_utils.experiments import advice, places
from tying_utils.explorer import Decide, decide
from tying_utils.study.axis import Lengths

ROOT = Path(advice.__file__).parents[2]
PUBLIC = pd.DataFrame(
    {"model": ["one"], "tied": [True], "parameters": [1_300_000_000], "share_tied": [0.1], "share_untied": [0.2]}
)
VIEW, PNG = "application/vnd.jupyter.widget-view+json", "image/png"


@pytest.fixture(scope="module")
def tables() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TYING_HOME", str(ROOT))
        yield advice.measured(places.results("laptop", only_read=True), Lengths()), PUBLIC


@pytest.fixture
def made(tables: Any) -> Decide:
    shown = decide(*tables)
    assert isinstance(shown.widget, widgets.VBox)
    return shown


def state(made: Decide) -> tuple[str, str, bytes]:
    return made.words.value, made.facts.value, bytes(made.screen.value)


def test_it_opens_at_what_was_trained_here(made: Decide) -> None:
    assert "measured near this (source of packages, V 2048, d 64, 4 layers, 20 tokens per weight)" in made.words.value
    assert "131,072 weights" in made.facts.value and "none of those listed" in made.facts.value


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 50_304), ("d_model", 2048), ("n_layers", 96)])
def test_each_size_changes_the_sentence_and_the_table(made: Decide, name: str, value: int) -> None:
    before = state(made)
    made.sizes[name].value = value
    after = state(made)
    assert all(new != old for new, old in zip(after[:2], before[:2], strict=True))
    assert "nothing measured near this" in after[0]


def test_tokens_and_memory_change_the_sentence_and_the_picture(made: Decide) -> None:
    before = state(made)
    made.tokens.value = 1e6
    moved = state(made)
    assert all(new != old for new, old in zip(moved, before, strict=True))
    made.memory.value = True
    assert made.words.value != moved[0] and "At equal parameters" in made.words.value


def test_public_models_of_its_size_are_named(made: Decide) -> None:
    made.sizes["vocab_size"].value, made.sizes["d_model"].value, made.sizes["n_layers"].value = 50_304, 2048, 16
    assert "one tied, 10 %" in made.facts.value


def test_a_move_takes_a_blink(made: Decide) -> None:
    taken = []
    for layers in (6, 8, 12, 16):
        began = time.perf_counter()
        made.sizes["n_layers"].value = layers
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.15


def test_every_control_has_a_label_and_what_lies_beyond_the_axis_is_marked_at_its_edge(made: Decide) -> None:
    assert all(control.description for control in (*made.sizes.values(), made.tokens, made.memory))
    made.tokens.value = 1e14
    assert [np.asarray(bar.get_xdata()).tolist() for bar in made.view.bars] == [[3000.0, 3000.0]] * 2


def test_there_is_a_picture_without_ipywidgets(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle, metadata = decide(*tables)._repr_mimebundle_()
    assert VIEW not in bundle and bundle[PNG].startswith(b"\x89PNG") and metadata[PNG]["alt"]


def test_it_opens_where_it_is_told_to_and_refuses_what_is_no_size(tables: Any) -> None:
    made = decide(*tables, d_model=80)
    assert made.widget and made.sizes["d_model"].value == 80 and "80" in str(made.sizes["d_model"].options)
    with pytest.raises(ValueError, match="n_layers: an integer of at least 1 is needed, got 0"):
        decide(*tables, n_layers=0)
    bad: list[dict[str, Any]] = [{"nope": 3}, {"memory": "x"}, {"tokens": 10**400}]
    for wrong in bad:
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: "):
            decide(*tables, **wrong)


@pytest.mark.parametrize("start", [{"tokens": 100}, {"tokens": 10**16}, {"memory": True}])
def test_the_sliders_open_where_the_still_picture_does(tables: Any, start: dict[str, Any]) -> None:
    made = decide(*tables, **start)
    assert made.widget and made.memory.value is start.get("memory", False)
    assert round(made.tokens.value) == made.start["tokens"] and start.items() <= made.start.items()
