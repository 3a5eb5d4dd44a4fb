"""Work to be killed: each job runs in a process of its own, forked from a server that has imported what they need.

A fork takes milliseconds where an interpreter that imports torch takes seconds, so that a test can afford many deaths.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tying_utils.training.config import TrainConfig

FORKS = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
FORKS.set_forkserver_preload(["jobs", "tying_utils.study.study", "transformers.models.olmo.modeling_olmo", "pyarrow.parquet"])
# What a process asks of the file system where Python can see it: before each of these a process can die.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate")


def start(job: Callable[..., Any], home: Path, *arguments: Any, dies_at: int | None = None) -> BaseProcess:
    """`job(*arguments)` in a process of its own, its files in `home`; it kills itself before its `dies_at`-th file event."""
    begun = FORKS.Event()
    process = FORKS.Process(target=_run, args=(job, str(home), arguments, dies_at, begun))
    process.start()
    assert begun.wait(300), f"{job.__name__} never began"
    return process


def result(job: Callable[..., Any], home: Path, *arguments: Any, timeout: float = 300) -> Any:
    """What `job(*arguments)` returns, as JSON holds it. Raises AssertionError with its words if it fails."""
    out = home.parent / f"{home.name}-result.json"
    out.unlink(missing_ok=True)
    process = start(_told, home, job, arguments, str(out))
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{job.__name__} was not done after {timeout} s")
    assert out.exists(), f"{job.__name__} ended with {process.exitcode}"
    value, words = json.loads(out.read_text())
    assert words is None, words
    return value


def _run(job: Callable[..., Any], home: str, arguments: tuple[Any, ...], dies_at: int | None, begun: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["TYING_HOME"] = home
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    begun.set()
    if dies_at is not None:
        events = counted(Path(home), lambda count: count > dies_at and os.kill(os.getpid(), signal.SIGKILL))
        next(events)
    job(*arguments)


def _told(job: Callable[..., Any], arguments: tuple[Any, ...], out: str) -> None:
    import traceback

    try:
        told = job(*arguments), None
    except BaseException:
        told = None, traceback.format_exc()
    Path(out).write_text(json.dumps(told))


def counted(home: Path, each: Callable[[int], object] = lambda count: None) -> Iterator[int]:
    """Counts the file events below `home` from the first `next` on, and calls `each` with the number before each of them."""
    count, inside = 0, str(home)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EVENTS and arguments and str(arguments[0]).startswith(inside):
            count += 1
            each(count)

    sys.addaudithook(hook)
    while True:
        yield count


# The jobs


def train(config: TrainConfig) -> dict[str, str]:
    """Train, or load, one run; its files' checksums."""
    from tying_utils.training import trainer as training

    return training.train(config, progress=False).record["files"]


def events_of(job: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, float]:
    """How many file events an undisturbed job has, and the seconds that it takes."""
    events = counted(Path(os.environ["TYING_HOME"]))
    next(events)
    began = time.monotonic()
    job(*arguments)
    return next(events), time.monotonic() - began


def sweep(tables: list[str], seeds: tuple[int, ...]) -> list[str]:
    """Train a small sweep, run by run, and measure some of its tables; the runs' folders."""
    import dataclasses

    from tying_utils.study.profiles import TWO_ROLE
    from tying_utils.study.study import SWEEP, Shard, Study

    if hasattr(os, "sched_setaffinity"):  # one core: each run in turn, in this process
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    study = Study("smoke", TWO_ROLE, progress=False)
    study.profile = dataclasses.replace(study.profile, seeds=seeds)
    runs = study.train(SWEEP, Shard(1, 1))
    study.complete(tables)
    return [str(run.folder) for run in runs]


def one_by_one(configs: list[TrainConfig]) -> list[dict[str, str]]:
    """Train, or load, runs one after another; their files' checksums."""
    return [train(config) for config in configs]


def side_by_side(configs: list[TrainConfig]) -> list[dict[str, str]]:
    """The same by two worker processes."""
    from tying_utils.training import train_all

    return [run.record["files"] for run in train_all(configs, progress=False, workers=2)]


class NotAllowed(Exception):
    """A process may not mount here."""


def alone() -> None:
    """A mount namespace of this process's own: what it mounts is seen by no other, and gone when it ends."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    user = os.getuid()
    if libc.unshare(0x20000 | (0x10000000 if user else 0)):  # CLONE_NEWNS, CLONE_NEWUSER
        raise NotAllowed(os.strerror(ctypes.get_errno()))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    mount(None, "/", None, 0x4000 | 0x40000)  # MS_REC | MS_PRIVATE


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2). Raises NotAllowed."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if text is None else text.encode() for text in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None):
        raise NotAllowed(f"mount {target}: {os.strerror(ctypes.get_errno())}")


def train_on_a_full_disk(config: TrainConfig, spare: int) -> tuple[str, int, list[str], dict[str, str]]:
    """Train where, after step 5, but `spare` bytes are free; then with room again.

    What was said, the step that was kept, the half-written files, and the checksums of the run that followed.
    """
    from tying_utils.base import files
    from tying_utils.training import trainer as training

    home = os.environ["TYING_HOME"]
    alone()
    mount("tmpfs", home, "tmpfs", 0, "size=8m")
    filler, step = Path(home) / "filler", training.Trainer.step

    def filling(trainer: Any, number: int) -> Any:
        if number == 6 and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)) == 4096:
                        pass
                except OSError:
                    pass
                file.truncate(max(0, file.tell() - spare))
        return step(trainer, number)

    training.Trainer.step = filling  # type: ignore[method-assign]
    try:
        train(config)
    except OSError as error:
        said = str(error)
    (path,) = Path(home).rglob("run.json")
    record = files.read_json(path)
    assert record is not None
    left = [str(found) for pattern in (".*.tmp", ".model.*") for found in Path(home).rglob(pattern)]
    filler.unlink()
    filler.touch()
    return said, record["step"], left, train(config)


def train_with_small_files_only(config: TrainConfig, limit: int) -> str:
    """What is said where no file may grow beyond `limit` bytes; the text's tokens are there already."""
    import resource

    config.load_corpus()
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        train(config)
    except OSError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    raise AssertionError("there was room")


def train_on_a_read_only_disk(config: TrainConfig) -> tuple[str, dict[str, str]]:
    """What is said where nothing may be written, and the checksums of the run that lies there."""
    from tying_utils.training import run_store

    home = os.environ["TYING_HOME"]
    alone()
    mount(home, home, None, 0x1000)  # MS_BIND
    mount(None, home, None, 0x1000 | 0x20 | 0x1)  # MS_BIND | MS_REMOUNT | MS_RDONLY
    (path,) = Path(home).rglob("run.json")
    held = run_store.opened(path.parent).record["files"]
    try:
        train(config)
    except OSError as error:
        return str(error), held
    raise AssertionError("it was written")


def train_with_a_jumping_clock(config: TrainConfig, seed: int) -> dict[str, str]:
    """Train while the time of day goes back and forth by up to ten years at every look."""
    import random

    draw, now = random.Random(seed), time.time()
    time.time = lambda: now + draw.uniform(-1, 1) * 3e8
    time.time_ns = lambda: int(time.time() * 1e9)
    return train(config)


def train_watching_memory(config: TrainConfig, every: int) -> tuple[list[int], str]:
    """Train; resident bytes after every so many steps, and the run's folder."""
    from tying_utils.training import trainer as training

    page, samples, step = os.sysconf("SC_PAGE_SIZE"), [], training.Trainer.step

    def watching(trainer: Any, number: int) -> Any:
        if number % every == 0:
            samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
        return step(trainer, number)

    training.Trainer.step = watching  # type: ignore[method-assign]
    return samples, str(training.train(config, progress=False).folder)


def counting_commits(configs: list[TrainConfig], out: str) -> None:
    """Train, or load, each run and write to `out` what it is and how often this process committed it, by data seed."""
    from tying_utils.training import run_store, train_all

    commit, commits = run_store.Writer.commit, dict.fromkeys((config.data_seed for config in configs), 0)

    def counting(writer: Any, *arguments: Any) -> Any:
        commits[writer.config.data_seed] += 1
        return commit(writer, *arguments)

    run_store.Writer.commit = counting  # type: ignore[method-assign]
    runs = train_all(configs, progress=False, workers=1)
    told = {run.config.data_seed: {"files": run.record["files"], "commits": commits[run.config.data_seed]} for run in runs}
    Path(out).write_text(json.dumps(told))
