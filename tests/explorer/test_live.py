"""Training in the kernel: one run at a time, a curve, a Stop button that works, and a point at the end."""

import dataclasses
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_sweep import synthetic_sweep

from tying_utils.base.names import TIED, TWO_ROLE, crossed
from tying_utils.explorer import live as room
from tying_utils.explorer.live import Live, live
from tying_utils.study.profiles import PROFILES
from tying_utils.study.sweep import Sweep
from tying_utils.training import trainer


@pytest.fixture
def made(home: Path, monkeypatch: pytest.MonkeyPatch) -> Live:
    """Controls over the smoke profile's small runs, beside a synthetic sweep."""
    monkeypatch.setattr(Sweep, "of", lambda study: synthetic_sweep())
    shown = live("smoke", input_scale=7)
    assert shown.widget
    return shown


class Gate:
    """A training run that stands still at a step until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        own = trainer.train

        def train(config: Any, *, progress: bool, on_step: Any) -> Any:
            def step(number: int, loss: float) -> None:
                on_step(number, loss)
                self.reached.set()
                assert self.open.wait(60)
                on_step(number, loss)

            return own(config, progress=progress, on_step=step)

        monkeypatch.setattr(room.trainer, "train", train)


def test_train_trains_the_scale_and_joins_its_point(made: Live) -> None:
    before, noted = bytes(made.screen.value), []
    made.note.observe(lambda change: noted.append(change["new"]), names="value")
    made.exact[0].value = 7.3
    made.train.click()
    assert "Preparing input scale 7.3, output scale 1, seed 0" in noted[0], "at once"
    made.wait(120)
    assert not made.training
    assert "Training input scale 7.3, output scale 1, seed 0: step 1 of 20, loss " in noted[1]
    (run,) = made.runs
    assert run.config == PROFILES["smoke"][TWO_ROLE].config(TIED, 0).replace(input_scale=7.3)
    assert "Joined" in made.note.value and "input scale 7.3, output scale 1, seed 0" in made.note.value
    (point,) = made.view.points
    assert point["ratio"] == 7.3 and 0 <= point["source"] <= 1 and 0 <= point["target"] <= 1 and point["loss"] > 0
    assert f"loss {point['loss']:.3f} nats" in made.note.value
    assert made.bar.value == made.bar.max == run.config.steps
    assert len(np.asarray(made.view.curve.get_xdata())) == run.config.steps
    assert bytes(made.screen.value) != before


def test_what_takes_seconds_to_import_is_there_before_train_is_pressed() -> None:
    code = "import sys; from tying_utils.explorer.live import live; live().widget; print('{}' in sys.modules)"
    command = [sys.executable, "-c", code.format("transformers.models.olmo.modeling_olmo")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["True"]


def test_a_run_that_was_trained_before_is_loaded(made: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    made.train.click()
    made.wait(120)
    monkeypatch.setattr(trainer.Trainer, "run", lambda *_: pytest.fail("trained again"))
    made.train.click()
    made.wait(120)
    assert len(made.runs) == 1 and "1 trained here" in made.note.value, "the same run is counted once"
    assert made.view.points[0] == made.view.points[1]


def test_a_second_press_queues_nothing_and_says_so(made: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    made.train.click()
    assert gate.reached.wait(60) and made.training
    made.train.click()
    assert "nothing was queued" in made.note.value and "step 1 of 20" in made.note.value
    gate.open.set()
    made.wait(120)
    assert len(made.runs) == 1 and threading.active_count() < 20
    made.stop.click()
    assert "Joined" in made.note.value, "what the run gave stays to be read"


def test_stop_stops(made: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    made.train.click()
    assert gate.reached.wait(60)
    made.stop.click()
    assert "Stopping" in made.note.value
    gate.open.set()
    made.wait(120)
    assert not made.training and made.runs == [] and made.view.points == []
    assert "Stopped at step 1 of 20" in made.note.value


def test_after_a_stop_the_same_run_can_be_trained(made: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        made.train.click()
        assert gate.reached.wait(60)
        made.stop.click()
        gate.open.set()
        made.wait(120)
    made.train.click()
    made.wait(120)
    assert len(made.runs) == 1


def test_a_run_that_fails_says_why(made: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(room.trainer, "train", fail)
    made.train.click()
    made.wait(60)
    assert "The run failed: the disk is full" in made.note.value and 'role="alert"' in made.note.value


def test_any_scale_above_0_can_be_typed_and_the_slider_follows_without_rounding_it(made: Live) -> None:
    slider, exact = made.sliders[0], made.exact[0]
    exact.value = 6.789123
    assert exact.value == 6.789123 and slider.value == pytest.approx(6.789123)
    slider.value = 10**0.85  # what a browser's slider makes of it, and sends back
    assert exact.value == 6.789123
    exact.value = 1e6
    assert exact.value == 1e6, "beyond the slider too"
    slider.value = 3.1622776
    assert exact.value == 3.16
    exact.value = 0.0
    slider.value = 3.5
    assert exact.value == 3.5


@pytest.mark.parametrize("scale", [0.0, -2.0, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused_in_words(made: Live, scale: float) -> None:
    made.exact[1].value = scale
    made.train.click()
    assert "output scale: a finite number" in made.note.value and not made.training


@pytest.mark.parametrize("name", ["input_scale", "output_scale"])
def test_bad_arguments_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: a finite number above 0 is needed, got 0"):
        room.Live("quick", *(float(name != other) for other in ("input_scale", "output_scale")))
    with pytest.raises(ValueError, match=r"PROFILE.*huge"):
        live("huge")


def test_without_a_sweep_it_says_which_file_and_still_trains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = PROFILES["smoke"][TWO_ROLE].training
    of = PROFILES["laptop"]
    monkeypatch.setitem(PROFILES, "laptop", of | {TWO_ROLE: dataclasses.replace(of[TWO_ROLE], training=small)})
    made = live("quick")
    assert made.widget and "sweep_alignment.csv: missing" in made.note.value
    assert "tying-utils sweep --profile laptop" in made.note.value
    made.train.click()
    made.wait(120)
    assert len(made.runs) == 1 and "Joined" in made.note.value


def test_live_trains_what_was_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "of", lambda study: synthetic_sweep())
    made, profile = live("quick"), PROFILES["laptop"][TWO_ROLE]
    assert made.config(10.0, 0.1, 3) == profile.config(crossed(10.0, 0.1), 3)
    bundle, metadata = made._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG") and metadata["image/png"]["alt"]


def test_stop_before_any_run_says_that_nothing_is_trained(made: Live) -> None:
    made.stop.click()
    assert "Nothing is being trained" in made.note.value
