"""Disks that are full or read-only, clocks that jump, and several processes on one store."""

import errno
import os
import random
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from test_kills import assert_sound, finished

from tying_utils.base import files
from tying_utils.training import run_store, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mounts, limits and forks")


def in_a_mount_of_its_own(job: Any, home: Path, *arguments: Any) -> Any:
    """The job's result; a skip where a process may not mount."""
    home.mkdir(exist_ok=True)
    try:
        return jobs.result(job, home, *arguments)
    except AssertionError as error:
        if "jobs.NotAllowed" in str(error):
            pytest.skip("a mount of one's own is not allowed here")
        raise


# No room


@pytest.mark.parametrize("spare", [0, 3_000, 30_000, 60_000])
def test_a_full_disk_is_named_and_the_run_goes_on_where_there_is_room_again(tmp_path, tiny, spare):
    """`spare` bytes are left: enough for nothing, for a small file, for some of the files of a checkpoint."""
    config = tiny(steps=20)
    words, step, left, again = in_a_mount_of_its_own(jobs.train_on_a_full_disk, tmp_path / "home", config, spare)
    assert words.startswith(f"[Errno {errno.ENOSPC}] there is no room to write it; make some and start again"), words
    assert "/data/runs/olmo-tied-" in words and step == 5
    assert left == [], "half-written files take room where there is none"
    assert again == jobs.result(jobs.train, tmp_path / "elsewhere", config)


def test_a_limit_on_the_size_of_files_is_named_and_the_run_goes_on_without(tmp_path, tiny):
    config = tiny()
    words = jobs.result(jobs.train_with_small_files_only, tmp_path / "home", config, 8_000)
    assert "there is no room to write it" in words and not list((tmp_path / "home").rglob("run.json"))
    assert jobs.result(jobs.train, tmp_path / "home", config) == jobs.result(jobs.train, tmp_path / "elsewhere", config)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no"),
        OSError(errno.EDQUOT, "no"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        Exception("File too large (os error 27)"),
    ],
    ids=repr,
)
def test_whatever_a_library_makes_of_a_full_disk_is_one_error(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match=r"no room to write it.*start again.*file") as caught, files.replacing(tmp_path / "file"):
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is error
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.EIO, "no"), KeyboardInterrupt()], ids=repr)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.replacing(tmp_path / "file"):
        raise error
    assert caught.value is error


# No leave to write


def test_a_read_only_store_is_named_and_nothing_of_it_is_lost(tmp_path, tiny):
    """A run that is not there cannot be made; one that is there stays, and trains on where it may be written again."""
    config, other = tiny(), tiny(data_seed=1)
    home = tmp_path / "home"
    whole = jobs.result(jobs.train, home, config)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    words, opened = in_a_mount_of_its_own(jobs.train_on_a_read_only_disk, home, other)
    assert words.startswith((f"[Errno {errno.EROFS}]", f"[Errno {errno.EACCES}]")) and str(home) in words
    assert opened == whole, "a finished run can be read where nothing can be written"
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert jobs.result(jobs.train, home, other) == jobs.result(jobs.train, tmp_path / "elsewhere", other)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_leave_to_write_is_named(tmp_path, tiny):
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data").chmod(0o555)
    with pytest.raises(AssertionError, match=rf"PermissionError.*{home}"):
        jobs.result(jobs.train, home, tiny())


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, tiny):
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data" / "runs").write_text("not a folder")
    with pytest.raises(AssertionError, match=r"(NotADirectory|FileExists)Error.*data/runs"):
        jobs.result(jobs.train, home, tiny())
    assert (home / "data" / "runs").read_text() == "not a folder"


# The clock


def test_a_clock_that_jumps_changes_no_byte_and_loses_no_run(tmp_path, tiny):
    config = tiny()
    home = tmp_path / "home"
    assert jobs.result(jobs.train_with_a_jumping_clock, home, config, 0) == jobs.result(jobs.train, tmp_path / "calm", config)
    draw = random.Random(0)
    for path in home.rglob("*"):  # and files from the future and from 1970
        when = draw.choice([0, 2**33])
        os.utime(path, (when, when))
    before = finished(home)
    assert len(before) == 1
    jobs.result(jobs.train_with_a_jumping_clock, home, config, 1)
    assert finished(home) == before
    record = files.read_json(next(iter(before)))
    assert record is not None and 0 <= record["made"]["seconds"] < 300, "time that was trained is no time of day"
    assert_sound(home)


# Company


def test_processes_that_want_the_same_runs_at_once_train_each_of_them_once(tmp_path, tiny):
    """From an empty folder, so that they also meet over the text's tokens."""
    configs = [tiny(data_seed=seed) for seed in range(3)]
    home = tmp_path / "home"
    orders = [configs, configs[::-1], configs[1:] + configs[:1], configs]
    together = [jobs.start(jobs.counting_commits, home, order, str(tmp_path / f"{i}.json")) for i, order in enumerate(orders)]
    for process in together:
        process.join(300)
        assert process.exitcode == 0
    told = [files.json.loads((tmp_path / f"{i}.json").read_text()) for i in range(len(orders))]
    for config in configs:
        answers = {files.json.dumps(found[str(config.data_seed)]["files"]) for found in told}
        assert len(answers) == 1
        assert sum(found[str(config.data_seed)]["commits"] for found in told) == len(config.checkpoint_steps)
    assert_sound(home)
    expected = jobs.result(jobs.one_by_one, tmp_path / "elsewhere", configs)
    assert [told[0][str(config.data_seed)]["files"] for config in configs] == expected


def test_a_run_that_another_process_holds_is_waited_for(tmp_path, tiny, monkeypatch):
    config = tiny(steps=200)
    home = tmp_path / "home"
    monkeypatch.setenv("TYING_HOME", str(home))
    process = jobs.start(jobs.train, home, config)
    while not list(home.rglob("run.json")):
        assert process.exitcode is None
    found = run_store.find(config, config.load_corpus().fingerprint)
    assert found is None or found.record["finished"], "it was taken before it was finished"
    assert train(config, progress=False).record["finished"]  # which waits, and trains nothing twice
    process.join(60)
    assert process.exitcode == 0
