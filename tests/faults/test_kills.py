"""Processes that train and sweep, killed and started again: nothing is lost, nothing is done twice.

The short form kills before a few file events, the same each time. Of the long form's kills half are at instants, drawn over
the time that the undisturbed job takes, the others before file events, drawn over those that it has, so that every place
between two files gets its turn. SIGKILL gives a process no last word in either case.
"""

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jobs
import pytest

from tying_utils.base import files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")
slow = pytest.mark.slow


def finished(home: Path) -> dict[Path, tuple[int, int]]:
    """The record of every finished run below `home`, and which file it is: one that is written again is another."""
    found = {}
    for path in home.rglob("run.json"):
        record = files.read_json(path)
        assert record is not None, f"{path} is damaged"
        if record["finished"]:
            found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def assert_sound(home: Path) -> None:
    """What is committed is intact, and nothing was set aside."""
    assert not list(home.rglob("*.damaged-*"))
    for path in home.rglob("run.json"):
        record = files.read_json(path)
        assert record is not None
        assert [name for name, digest in record["files"].items() if not files.intact(path.parent / name, digest)] == []


def moments(parts: Sequence[float], seed: int, events: float, seconds: float) -> Iterator[tuple[int | None, float]]:
    """When to kill, without end: before which file event of the first `events`, or after how many of the first `seconds`.

    Before the event at each of `parts` in turn; drawn where there are none.
    """
    draw, at = random.Random(seed), itertools.cycle(parts)
    while True:
        if parts or draw.random() < 0.5:
            yield int(events * (next(at) if parts else draw.random())), 600
        else:
            yield None, draw.uniform(0, seconds)


def tried(home: Path, kills: int, parts: Sequence[float], within: float, job: Callable[..., Any], *arguments: Any) -> int:
    """Start `job` and kill it until `kills` have met a living process; where it comes through, it starts in another home.

    `moments` gives them, of the first part `within` of what the job takes undisturbed. Returns how many homes it took.
    """
    homes, met = 0, 0
    events, seconds = jobs.result(jobs.events_of, home / "undisturbed", job, arguments)
    when = moments(parts, kills, within * events, within * seconds)
    while met < kills:
        here = home / f"home-{homes}"
        homes += 1
        alive = True
        while alive and met < kills:
            before = finished(here)
            event, until = next(when)
            process = jobs.start(job, here, *arguments, dies_at=event)
            process.join(until)
            process.kill()
            process.join()
            alive = process.exitcode != 0  # of what was killed
            assert process.exitcode in (0, -9), "it failed of itself"
            met += alive
            assert_sound(here)
            after = finished(here)
            assert {path: after[path] for path in before} == before, "a finished run was repeated or lost"
    return homes


@pytest.mark.parametrize(("kills", "parts"), [(4, (0.1, 0.35, 0.6, 0.8)), pytest.param(140, (), marks=slow)])
def test_a_training_process_that_is_killed_ends_as_one_that_was_not(tmp_path, tiny, kills, parts, tally):
    config = tiny(steps=60, checkpoint_every=7, input_scale=5)
    homes = tried(tmp_path, kills, parts, 1.0, jobs.train, config)
    expected = jobs.result(jobs.train, tmp_path / "undisturbed", config)
    for number in range(homes):
        home = tmp_path / f"home-{number}"
        assert jobs.result(jobs.train, home, config) == expected
        (record,) = finished(home)
        held = {p.relative_to(record.parent).as_posix() for p in record.parent.rglob("*") if p.is_file() and p != record}
        assert held == set(expected), "something half-written was left"
        assert all(files.intact(record.parent / name, digest) for name, digest in expected.items())
    tally["kills of a training process"] += kills


@pytest.mark.parametrize(("kills", "parts", "seeds"), [(3, (0.2, 0.55, 0.8), (0,)), pytest.param(60, (), (0, 1), marks=slow)])
def test_a_sweep_that_is_killed_trains_each_run_once_and_measures_the_same(tmp_path, kills, parts, seeds, tally):
    tables = ["sweep_losses", "sweep_share"]
    homes = tried(tmp_path, kills, parts, 0.3, jobs.sweep, tables, seeds)
    expected = jobs.result(jobs.sweep, tmp_path / "undisturbed", tables, seeds)
    for number in range(homes):
        home = tmp_path / f"home-{number}"
        runs = jobs.result(jobs.sweep, home, tables, seeds)
        assert len(runs) == len(expected) == len(finished(home)) == 7 * len(seeds)
        for own, other in zip(map(Path, runs), map(Path, expected), strict=True):
            one, two = (files.read_json(folder / "run.json") for folder in (own, other))
            assert one and two and own.name == other.name and one["files"] == two["files"]
        for name in tables:
            there, undisturbed = (next(place.rglob(f"{name}.csv")) for place in (home, tmp_path / "undisturbed"))
            assert there.read_bytes() == undisturbed.read_bytes()
        assert not list(home.rglob(".*.tmp")) and not list(home.rglob(".model.*"))
    tally["kills of a sweep"] += kills


@slow
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_sweep_whose_workers_live_on_is_started_again_beside_them(tmp_path, tiny, seed, tally):
    """The parent dies, its workers do not know yet: the next one waits for the runs that they hold."""
    configs = [tiny(steps=400, data_seed=seed) for seed in range(4)]
    process = jobs.start(jobs.side_by_side, tmp_path / "home", configs)
    draw = random.Random(seed)
    while len(list((tmp_path / "home").rglob("run.json"))) < 2:
        assert process.exitcode is None
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 1))
    process.kill()
    process.join()
    before = finished(tmp_path / "home")
    found = jobs.result(jobs.side_by_side, tmp_path / "home", configs)
    assert found == jobs.result(jobs.one_by_one, tmp_path / "undisturbed", configs)
    after = finished(tmp_path / "home")
    assert {path: after[path] for path in before} == before
    assert_sound(tmp_path / "home")
    tally["kills of a parent of workers"] += 1
