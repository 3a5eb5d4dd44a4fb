"""A run that was stopped ends as one that was not, to the bit: every kind of arm, wherever it was stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_runs import contents, identical, remedied

from tying_utils import corpora
from tying_utils.base import files
from tying_utils.models.balance import REMEDIES
from tying_utils.training import TrainConfig, Trainer, run_store, train

ROOT = Path(__file__).resolve().parents[2]
SCALED, UNTIED = {"input_scale": 5}, {"tied": False}
EVERYWHERE = [[0], [1], [4], [5], [6], [10], [11], [3, 7, 10, 11]]  # of 12 steps; 5 and 10 are kept
STOPPED: list[tuple[str, dict[str, Any], list[int]]] = [
    *(("scaled", SCALED, stops) for stops in EVERYWHERE),
    *(("untied", UNTIED, stops) for stops in EVERYWHERE),
    *((name, remedied(name), [3, 8, 11]) for name in REMEDIES),
    # Untied before the checkpoint, right at it (the tables are two only from the next step on), and in the last step.
    *((f"untie at {at:.2f}", remedied("untie", at=at), [6]) for at in (0.0, 5 / 12, 0.5, 0.99)),
]


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each step that is taken."""
    steps, step = [], Trainer.step

    def noting(trainer: Trainer, number: int) -> torch.Tensor:
        steps.append(number)
        return step(trainer, number)

    monkeypatch.setattr(Trainer, "step", noting)
    return steps


@pytest.mark.parametrize(
    ("changes", "stops"), [one[1:] for one in STOPPED], ids=[f"{name}, after {stops}" for name, _, stops in STOPPED]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(home, tiny, trained_once, interrupted, stepped, changes, stops):
    config = tiny(**changes)
    reference = trained_once(config)
    stepped.clear()
    for last in stops:
        interrupted(config, last)
    run = train(config, progress=False)
    assert identical(run, reference)
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, check_exact=True)
    assert [run.tables(step).tied for step in run.checkpoints] == [config.tied_after(step) for step in run.checkpoints]
    resumed_from = max(kept for kept in (0, 5, 10) if kept <= stops[-1])
    assert stepped[-(12 - resumed_from) :] == list(range(resumed_from + 1, 13))
    assert len(stepped) == 12 + sum(last - max(kept for kept in (0, 5, 10) if kept <= last) for last in stops)


@pytest.mark.parametrize(("how", "tied"), [({}, True), ({"remedy": "untie"}, False)], ids=["tied", "untied on the way"])
def test_a_run_with_a_start_is_resumed_without_it(
    home: Path,
    tmp_path: Path,
    tiny: Callable[..., TrainConfig],
    trained_once: Any,
    interrupted: Any,
    grammar: Any,
    how: dict[str, Any],
    tied: bool,
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(grammar(400, seed=1))), encoding="utf-8")
    config = tiny(path=str(other), tied=tied, init_seed=7, start=tiny(**how))
    assert config.start is not None
    start = train(config.start, progress=False)
    interrupted(config, 7)
    (start.folder / "run.json").unlink()  # what resumes has weights of its own
    assert identical(train(config, progress=False), trained_once(config))
    assert not (start.folder / "run.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_command_ends_as_an_uninterrupted_one(home, tiny, text, trained_once):
    config = tiny(steps=300, checkpoint_every=20, **SCALED)
    fingerprint = corpora.load("text", vocab_size=300, path=text).fingerprint
    record = run_store.run_folder(config, fingerprint) / "run.json"
    command = [sys.executable, "-m", "tying_utils", "train", "--config", json.dumps(config.as_dict()), "--lines"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        while not record.exists():
            assert child.poll() is None and child.stderr is not None, "it ended before its first checkpoint"
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    committed = files.read_json(record)
    assert committed is not None and committed["finished"] is False and 0 < committed["step"] < 300
    run, reference = train(config, progress=False), trained_once(config)
    assert run.record["files"] == reference.record["files"]
    own = contents(run)
    assert {name: own[name] for name in reference.record["files"]} == contents(reference)
    pd.testing.assert_frame_equal(run.metrics, reference.metrics, check_exact=True)
