"""Several runs side by side: the same runs as one by one, and no process outlives the call."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from small_runs import identical

from tying_utils.base import files
from tying_utils.training import pool, run_store, train, train_all

ROOT = Path(__file__).resolve().parents[2]
ABSURD = {"learning_rate": 1e30, "warmup_steps": 0}


def test_side_by_side_equals_one_by_one(home, tiny, trained_once, capsys):
    changes = [{}, {"tied": False}, {"data_seed": 1}]
    done = train(tiny(**changes[2]), progress=False)
    configs = [tiny(**change) for change in (*changes, changes[0])]
    runs = train_all(configs, workers=2)
    assert [run.config for run in runs] == configs
    assert runs[2].record == done.record
    assert runs[0].folder == runs[3].folder
    for run in runs:
        assert run.folder.is_relative_to(home) and identical(run, trained_once(run.config))
    assert "2 runs: 100%" in capsys.readouterr().err, "one bar for both, over all of their steps"
    assert not multiprocessing.active_children()


def test_one_worker_trains_here(home, tiny, trained_once, monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a process was started"))
    torch.manual_seed(int(time.time()))  # which no byte may depend on
    runs = train_all([tiny(tied=False), tiny()], progress=False, workers=1)
    assert [run.config.tied for run in runs] == [False, True]
    assert all(identical(run, trained_once(run.config)) for run in runs)


def test_a_failing_run_is_named_and_the_others_are_finished(home, tiny):
    configs = [tiny(**ABSURD), tiny(tied=False), tiny(data_seed=1)]
    said = r"^1 of 3 runs failed:\ntied, seed 0: Diverged: step \d+: .* is nan; .*below 1e\+30"
    with pytest.raises(RuntimeError, match=said):
        train_all(configs, progress=False, workers=2)
    assert [run_store.is_finished(config, config.load_corpus().fingerprint) for config in configs] == [False, True, True]
    assert not multiprocessing.active_children()


def committed(home: Path) -> list[Path]:
    return [path for path in home.rglob("run.json") if (files.read_json(path) or {}).get("step", 0) > 0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "workers killed"])
def test_no_worker_outlives_an_interrupt_and_what_they_committed_stays(home, tiny, killed, request):
    """An interrupt that reaches this process alone, as a notebook's; or workers that the system ends, as for memory."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    configs = [tiny(steps=100_000, checkpoint_every=100, table_snapshots=2, data_seed=seed) for seed in range(2)]

    def strike() -> None:
        while len(committed(home)) < 2:
            time.sleep(0.01)
        if killed:
            # Of one alone the pool may hear only once another is done: it lists those to watch before the last one starts.
            for worker in multiprocessing.active_children():
                worker.kill()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=strike, daemon=True).start()
    said = r"^2 of 2 runs failed:\n.*BrokenProcessPool" if killed else "^training was interrupted with 0 of 2 runs finished; "
    with pytest.raises(RuntimeError if killed else KeyboardInterrupt, match=said):
        train_all(configs, progress=False, workers=2)
    assert not multiprocessing.active_children()
    assert all((files.read_json(path) or {})["finished"] is False for path in committed(home))


SCRIPT = """
import json, os, sys
sys.path.insert(0, {root!r})
from tying_utils.training import TrainConfig, train_all
os.chdir(os.path.dirname(__file__))
print("began")
runs = train_all([TrainConfig.from_dict(values) for values in json.loads({configs!r})], progress=False, workers=2)
print(json.dumps([run.record["files"] for run in runs]))
"""


def test_a_script_without_a_guard_runs_once_with_the_package_on_its_path_alone(home, tiny, trained_once, tmp_path):
    """Workers run no script anew, and find the package where their parent does, here on a path that is relative."""
    configs = [tiny(), tiny(tied=False)]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=ROOT.name, configs=json.dumps([config.as_dict() for config in configs])))
    done = subprocess.run([sys.executable, "-I", str(script)], cwd=ROOT.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    began, told = done.stdout.splitlines()
    assert began == "began" and json.loads(told) == [trained_once(config).record["files"] for config in configs]


@pytest.mark.parametrize("console", ["ascii", "cp1252"])
def test_no_console_ends_training_side_by_side(home, tiny, tmp_path, monkeypatch, console):
    """In a folder that the console cannot print, with bars."""
    monkeypatch.setenv("TYING_HOME", str(home / "日本 –"))
    monkeypatch.setenv("PYTHONIOENCODING", console)
    configs = [tiny(), tiny(tied=False)]
    script = tmp_path / "script.py"
    values = json.dumps([config.as_dict() for config in configs])
    script.write_text(SCRIPT.format(root=str(ROOT), configs=values).replace("progress=False, ", ""), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(run_store.is_finished(config, config.load_corpus().fingerprint) for config in configs)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_end_with_a_parent_that_is_killed(home, tiny, tmp_path):
    configs = [tiny(steps=100_000, checkpoint_every=100, table_snapshots=2, data_seed=seed) for seed in range(2)]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), configs=json.dumps([config.as_dict() for config in configs])))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while len(committed(home)) < 2:
            assert child.poll() is None
            time.sleep(0.02)
        workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
        child.kill()
    until = time.monotonic() + 30
    while time.monotonic() < until and any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        time.sleep(0.05)
    assert workers and not [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are not granted one by one here")
def test_no_more_workers_than_granted_cores(monkeypatch, tiny):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert pool.workers_for([tiny()]) == 3 and pool.workers_for([tiny(threads=2)]) == pool.workers_for([tiny(threads=4)]) == 1
