"""One run in two processes, as torchrun starts them on the CPU, is the run of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tying_utils import corpora
from tying_utils.base import files
from tying_utils.training import run_store, train
from tying_utils.training.config import TrainConfig
from tying_utils.training.ranks import Ranks
from tying_utils.training.run_store import Run

ROOT = Path(__file__).resolve().parents[2]
ARMS: dict[str, dict[str, Any]] = {
    "both scaled, in parts": {"input_scale": 5, "output_scale": 0.5, "micro_batches": 2},
    "tied": {},
    "untied": {"tied": False},
    # What remembers, what steps otherwise, what holds other weights, and what changes its tables on the way.
    "smoothed": {"remedy": {"name": "norm-match", "smoothing": 0.5}, "micro_batches": 2},
    "gated": {"remedy": {"name": "rare-gate", "alpha": 0.5, "memory": 4}},
    "coupled": {"remedy": "coupled-adam"},
    "map": {"remedy": "spd-map"},
    "untied on the way": {"remedy": {"name": "untie", "at": 0.5}},
}


def torchrun(home: Path, configs: Sequence[TrainConfig], processes: int = 2) -> subprocess.Popen[str]:
    """`processes` of them training `configs` in turn, each as one run."""
    options = [option for config in configs for option in ("--config", json.dumps(config.as_dict()))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    env = {**os.environ, "TYING_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [*launcher, "-m", "tying_utils", "train", "--lines", *options]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    return out


def found(config: TrainConfig) -> Run:
    run = run_store.find(config, config.load_corpus().fingerprint)
    assert run is not None, "the key is another one under several processes"
    return run


def same(run: Run, reference: Run) -> None:
    """Metrics and tables are equal to rounding, but for the published norm, which is of one rank's share by definition."""
    assert run.key == reference.key and run.folder != reference.folder
    assert set(run.record["files"]) == set(reference.record["files"])
    of_one_rank = ["published_input_norm", "published_output_share"]
    pd.testing.assert_frame_equal(
        run.metrics.drop(columns=of_one_rank), reference.metrics.drop(columns=of_one_rank), rtol=1e-5, atol=1e-6
    )
    for step in run.checkpoints:
        for name in ("input", "output"):
            torch.testing.assert_close(
                getattr(run.tables(step), name), getattr(reference.tables(step), name), rtol=1e-5, atol=1e-5
            )


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of `tiny` with changes in one process, in a home of the module's own."""
    home = tmp_path_factory.mktemp("alone")

    def get(**changes: Any) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TYING_HOME", str(home))
            return train(tiny(**changes), progress=False)

    return get


def test_two_processes_train_the_run_of_one(home, tiny, alone):
    out = finished(torchrun(home, [tiny(**changes) for changes in ARMS.values()]))
    # One voice: the lines of one process, and each folder once.
    folders = [line for line in out.splitlines() if not line.startswith("step ")]
    assert len(folders) == len(ARMS) and out.count("step 12 ") == len(ARMS)
    for folder, changes in zip(folders, ARMS.values(), strict=True):
        run = found(tiny(**changes))
        assert str(run.folder) == folder and run.record["made"]["processes"] == 2
        same(run, alone(**changes))
    # Rank 0's share of the first batch is the first half of it: a batch of its own in one process.
    first = found(tiny()).metrics["published_input_norm"][0]
    assert first == pytest.approx(alone(batch_size=2).metrics["published_input_norm"][0], rel=1e-5)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "arm", [{"input_scale": 5}, {"remedy": {"name": "untie", "at": 0.1}}], ids=["scaled", "untied by then"]
)
def test_a_run_killed_in_two_processes_is_resumed_in_two(home, tiny, text, alone, arm):
    changes: dict[str, Any] = {"steps": 60, "checkpoint_every": 10, "micro_batches": 2, **arm}
    config = tiny(**changes)
    fingerprint = corpora.load("text", vocab_size=300, path=text).fingerprint
    record = run_store.run_folder(config, fingerprint) / "run.json"
    child = torchrun(home, [config])
    while not record.exists():
        assert child.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    child.communicate(timeout=60)
    committed = files.read_json(record)
    assert committed is not None and committed["finished"] is False and 0 < committed["step"] < 60
    finished(torchrun(home, [config]))
    same(found(config), alone(**changes))


def test_a_batch_that_the_processes_cannot_share_is_refused(home, tiny):
    child = torchrun(home, [tiny(batch_size=6, micro_batches=2)])
    _, err = child.communicate(timeout=300)
    assert child.returncode != 0
    assert "tying-utils: batch_size: 2 processes of 2 micro-batches do not divide a batch of 6" in err
    assert not list(home.rglob("run.json"))


@given(batch=st.integers(1, 60), ranks=st.integers(1, 9), data=st.data())
def test_a_share_is_whole_or_what_is_advised_would_be(batch, ranks, data):
    micro_batches = data.draw(st.sampled_from([parts for parts in range(1, batch + 1) if batch % parts == 0]))
    if batch % (ranks * micro_batches) == 0:
        assert Ranks(ranks).local_batch_size(batch, micro_batches) * ranks == batch
        return
    with pytest.raises(ValueError, match=rf"^batch_size: {ranks} processes of {micro_batches} ") as refused:
        Ranks(ranks).local_batch_size(batch, micro_batches)
    words = str(refused.value).split()
    fewer, other = int(words[words.index("start") + 1]), int(words[-1])
    assert fewer < ranks and Ranks(fewer).local_batch_size(batch, micro_batches)
    assert other > batch and Ranks(ranks).local_batch_size(other, micro_batches)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "mps"])
def test_a_device_that_cannot_be_shared_is_named(device):
    with pytest.raises(ValueError, match=rf"^device: 2 processes cannot share '{device}'"):
        Ranks(2, 1).join(device)


def test_a_process_without_a_gpu_of_its_own_is_named(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"^device: process 3 .*--nproc-per-node 2"):
        Ranks(4, 3).join("cuda")


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks, value, module = Ranks.here(), torch.ones(2), torch.nn.Linear(2, 2)
    assert ranks == Ranks(1, 0) and ranks.first
    ranks.join("mps")
    assert ranks.broadcast(value) is value and ranks.all_reduce(value) is value and ranks.data_parallel(module) is module
    assert ranks.all_gather(3) == [3] and ranks.broadcast_tensors({"a": value}, torch.device("cpu"))["a"] is value
    assert not torch.distributed.is_initialized()
