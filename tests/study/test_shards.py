"""A sweep shared out to processes that see one folder: no run twice, none lost, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tying_utils.base.names import TWO_ROLE
from tying_utils.study.study import SWEEP, Shard, Study
from tying_utils.training import trainer

ROOT = Path(__file__).resolve().parents[2]


@given(count=st.integers(1, 9), items=st.lists(st.integers()))
def test_shards_part_a_list(count, items):
    parts = [Shard(index, count).of(items) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_is_read_from_text():
    assert Shard.parse("3/16") == Shard(3, 16) and Shard.parse("1/1").of([5, 6]) == [5, 6]


def start(home: Path, shard: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tying_utils", "sweep", "--profile", "smoke", "--corpus", TWO_ROLE, "--shard", shard]
    env = {**os.environ, "TYING_HOME": str(home), "OMP_NUM_THREADS": "1"}
    # A core, so that each trains its runs in turn, in one process.
    script = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); os.execv(sys.argv[1], sys.argv[1:])"
    one_core = [sys.executable, "-c", script] if hasattr(os, "sched_setaffinity") else []
    command = [*one_core, *command]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def folders(child: subprocess.Popen[str]) -> list[str]:
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err[-3000:]
    return out.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_two_processes_train_a_sweep_between_them(home, monkeypatch):
    killed, other = start(home, "1/2"), start(home, "2/2")
    while not list(home.rglob("run.json")):
        assert killed.poll() is None and other.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    first, second = folders(start(home, "1/2")), folders(other)
    assert not set(first) & set(second)
    study = Study("smoke", TWO_ROLE, progress=False)
    wanted = [study.profile.config(arm, seed) for seed in (0, 1) for arm in ("untied", *study.profile.sweep)]
    assert len(first) + len(second) == len(wanted) == 14
    # The call that measures finds all of them.
    monkeypatch.setattr(trainer.Trainer, "run", lambda *_: pytest.fail("a run was lost"))
    runs = study.train(SWEEP, Shard(1, 1))
    assert {str(run.folder) for run in runs} == {*first, *second}
    assert {run.config for run in runs} == {*wanted}
    assert not (study.folder / "sweep_share.csv").exists(), "a shard measures nothing"
