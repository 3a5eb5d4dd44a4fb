"""Numerical sentinels: what stops a run, what it says, and what is left on disk."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tying_utils.__main__ import main
from tying_utils.base import files
from tying_utils.training import METRICS, run_store, sentinels, train
from tying_utils.training import trainer as training
from tying_utils.training.config import TrainConfig
from tying_utils.training.sentinels import Diverged

ABSURD = {"learning_rate": 1e30, "warmup_steps": 0}


@pytest.fixture(params=[False, True], ids=["cpu", "as on a gpu"])
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps are looked at when they are made, or before the next checkpoint, as where nothing may wait for a device."""
    monkeypatch.setattr(training.Hardware, "on_gpu", request.param)
    monkeypatch.setattr(training, "compile_where_it_pays", lambda *_, **__: (False, "eager"))
    return request.param


def stored(config: TrainConfig) -> tuple[Path, dict[str, Any] | None]:
    folder = run_store.run_folder(config, config.load_corpus().fingerprint)
    return folder, files.read_json(folder / "run.json")


def all_finite(folder: Path, record: dict[str, Any]) -> bool:
    tensors = [load_file(folder / name) for name in record["files"] if name.endswith(".safetensors")]
    return all(bool(value.isfinite().all()) for held in tensors for value in held.values())


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Call it to have the gradient of one weight of the trunk hold `value` at a step, once, though the loss is sound."""

    def arrange(at: int, value: float) -> None:
        step = training.Trainer.step
        spoilt = []

        def spoiling(trainer: Any, number: int) -> torch.Tensor:
            if number == at and not spoilt:
                spoilt.append(number)
                handle = trainer.parameters[-1].register_hook(lambda gradient: torch.full_like(gradient, value))
                try:
                    return step(trainer, number)
                finally:
                    handle.remove()
            return step(trainer, number)

        monkeypatch.setattr(training.Trainer, "step", spoiling)

    return arrange


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("at", "value"), [(1, math.nan), (5, math.inf), (6, math.nan), (12, math.inf)])
def test_a_spoilt_gradient_stops_the_run_which_ends_as_if_there_had_been_none(
    home, tiny, trained_once, spoil, on_gpu, tied, at, value
):
    config = tiny(tied=tied)
    spoil(at, value)
    with pytest.raises(Diverged, match=rf"^step {at}: the gradient norm is (nan|inf); ") as caught:
        train(config, progress=False)
    error, (folder, record) = caught.value, stored(config)
    assert (error.step, error.checkpoint) == (at, max(step for step in (0, 5, 10) if step < at))
    if error.checkpoint:
        assert record is not None and record["step"] == error.checkpoint and not record["finished"]
        assert all_finite(folder, record)
        assert error.weights == folder / f"weights/step-{error.checkpoint:06d}.safetensors"
        assert str(error.weights) in str(error) and f"last good checkpoint is step {error.checkpoint}" in str(error)
    else:
        assert record is None and error.weights is None and "there is no checkpoint yet" in str(error)
    again = train(config, progress=False)
    if not on_gpu:  # there the loss is summed in chunks
        assert again.record["files"] == trained_once(config).record["files"]


def test_a_learning_rate_that_no_weight_survives_is_named(home, tiny, on_gpu, capsys, monkeypatch):
    config = tiny(**ABSURD)
    with pytest.raises(FloatingPointError, match=r"^step \d+: the (loss|gradient norm) is nan; .*learning_rate below 1e\+30"):
        train(config, progress=False)
    _, record = stored(config)
    assert record is None, "a poisoned step was committed"
    changes = '{"corpus": "text", "learning_rate": 1e30, "warmup_steps": 0}'
    monkeypatch.setattr(TrainConfig, "from_dict", lambda _: config)
    assert main(["train", "--lines", "--config", changes]) == 2
    assert "tying-utils: step " in capsys.readouterr().err


def test_weights_that_the_last_update_lost_are_not_committed(home, tiny, on_gpu, monkeypatch):
    """The losses and gradients up to a checkpoint are sound, the weights that it would hold are not."""
    rate = TrainConfig.learning_rate_at
    monkeypatch.setattr(TrainConfig, "learning_rate_at", lambda self, step: math.inf if step == 10 else rate(self, step))
    config = tiny(validation_every=100, table_snapshots=1)
    said = r"^step 10: its update leaves NaN or infinity in [\w.]+ and \d+ more; .*step 5, "
    with pytest.raises(Diverged, match=said) as caught:
        train(config, progress=False)
    folder, record = stored(config)
    assert record is not None and record["step"] == caught.value.checkpoint == 5
    assert all_finite(folder, record)


def test_a_validation_loss_that_is_lost_stops_the_run(home, tiny, on_gpu, monkeypatch):
    monkeypatch.setattr(training.Trainer, "validate", lambda _: math.nan)
    with pytest.raises(Diverged, match=r"^step 5: the validation loss is nan; there is no checkpoint yet"):
        train(tiny(), progress=False)


def metrics(losses: list[float]) -> pd.DataFrame:
    frame = pd.DataFrame({name: np.ones(len(losses)) for name in METRICS})
    return frame.assign(step=np.arange(1, len(losses) + 1), loss=losses, learning_rate=0.5)


@pytest.mark.parametrize(("dtype", "last"), [("auto", "a clip below 5"), ("bfloat16", "dtype='float32'")])
def test_the_first_bad_step_is_named_and_what_would_do(tiny, dtype, last):
    with pytest.raises(Diverged) as caught:
        sentinels.check_metrics(metrics([6, 5, 9, 200, math.nan, math.nan]), tiny(clip=5.0, dtype=dtype), 0, None)
    words = "step 5: the loss is nan; there is no checkpoint yet. What would do: a learning_rate below 0.003, "
    assert str(caught.value) == f"{words}more warmup_steps than 3, or {last}"
    again = pickle.loads(pickle.dumps(caught.value))  # as a worker process hands it on
    assert str(again) == str(caught.value) and again.step == 5


def test_values_that_may_be_missing_stop_nothing(tiny):
    missing = ("validation_loss", "cosine", "output_share", "output_update_share")
    frame = metrics([6, 5, 4]).assign(**dict.fromkeys(missing, math.nan))
    sentinels.check_metrics(frame, tiny(), 0, None)
    with pytest.raises(Diverged, match=r"^step 3: the validation loss is nan"):
        sentinels.check_metrics(frame, tiny(validation_every=3), 0, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_bad_entry_of_what_is_to_be_kept_is_found(tiny, bad, dtype):
    held = {"a": torch.zeros(3, 4, dtype=dtype), "b": torch.tensor(1.0), "c": torch.arange(3)}
    sentinels.check_state(held, 2, tiny(), 0, None)
    held["a"][2, 1] = bad
    with pytest.raises(Diverged, match=r"^step 2: its update leaves NaN or infinity in a; there is no checkpoint"):
        sentinels.check_state(held, 2, tiny(), 0, None)
    with pytest.raises(Diverged, match="in z and 1 more"):
        sentinels.check_state({"z": held["a"], **held}, 2, tiny(), 0, None)
