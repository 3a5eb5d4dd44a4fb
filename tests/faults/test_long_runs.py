"""Long runs: memory stays flat, and the store holds what `budget.disk` says and no more."""

import sys
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

from tying_utils.training import budget, run_store
from tying_utils.training.config import TrainConfig

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def of_steps(steps: int, **changes: Any) -> TrainConfig:
    """A small model on the two-role language, with some fifteen checkpoints on the way."""
    small = {"vocab_size": 64, "d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, "batch_size": 4, "warmup_steps": 10}
    language = {"classes": 8, "length": 20_000}
    every = {"checkpoint_every": steps // 15, "validation_every": steps // 15, "validation_sequences": 8}
    return TrainConfig(corpus="two-role", language=language, steps=steps, device="cpu", **{**small, **every, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"input_scale": 5}, {"tied": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("steps", [1_500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_and_the_store_as_large_as_it_says(tmp_path, steps, changes, tally):
    config = of_steps(steps, **changes)
    home = tmp_path / "home"
    samples, folder = jobs.result(jobs.train_watching_memory, home, config, steps // 50, timeout=1200)
    resident = np.array(samples)
    assert len(resident) == 50
    warm = resident[10:20].max()  # by then every kind of step, validation and checkpoint has been
    assert resident[20:].max() <= 1.05 * warm, resident.tolist()
    run = run_store.opened(folder)
    assert len(run.metrics) == steps
    kept, _ = budget.disk(config)
    sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
    tensors = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    assert tensors <= kept, "budget.disk says what the tensor files take"
    rows = 13 * 8 * steps  # the metrics: one row per step of thirteen numbers
    assert sum(sizes.values()) - tensors <= rows + 40_000
    tally[f"runs of {steps:,} steps"] += 1
