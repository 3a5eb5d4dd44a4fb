"""Several runs, side by side: a process each, as many at a time as the CPU's cores hold."""

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from tying_utils.base import processes
from tying_utils.base.console import tqdm
from tying_utils.training import run_store
from tying_utils.training.config import TrainConfig
from tying_utils.training.hardware import choose_hardware
from tying_utils.training.ranks import Ranks
from tying_utils.training.run_store import Run
from tying_utils.training.trainer import train


def train_all(configs: Sequence[TrainConfig], *, progress: bool = True, workers: int | None = None) -> list[Run]:
    """Train or load each of `configs` and return the runs in their order.

    On the CPU, unfinished runs train side by side, a process each, as many at a time as the cores hold (`workers` sets the
    number): small models gain more from a core each than from all cores together. On a GPU, and in processes that torchrun
    started, they train one after another, here.

    Raises ValueError as `train` does, and RuntimeError with the names and errors of those that failed in a process of their
    own, once the others are finished.
    """
    if Ranks.here().world_size > 1:
        return [train(config, progress=progress) for config in configs]

    distinct = {(config.text, config.context): config for config in configs}
    fingerprints = {key: config.load_corpus().fingerprint for key, config in distinct.items()}
    found = [run_store.find(config, fingerprints[config.text, config.context]) for config in configs]
    missing = [config for config, run in zip(configs, found, strict=True) if run is None]
    try:
        if starts := list(dict.fromkeys(config.start for config in missing if config.start)):
            train_all(starts, progress=progress, workers=workers)
        missing = list(dict.fromkeys(config for config in missing if config not in starts))
        if workers is None:
            workers = workers_for(missing)
        # All of them are looked at, so that a bad one is found here and not in a worker.
        on_cpu = {choose_hardware(config.device, config.dtype).device.type for config in missing} <= {"cpu"}
        if on_cpu and workers > 1 and len(missing) > 1:
            _train_side_by_side(missing, min(workers, len(missing)), progress)
        return [run or train(config, progress=progress) for config, run in zip(configs, found, strict=True)]
    except KeyboardInterrupt:
        keys = {config: fingerprints[config.text, config.context] for config in configs}
        done = sum(run_store.is_finished(config, fingerprint) for config, fingerprint in keys.items())
        words = f"training was interrupted with {done} of {len(keys)} runs finished"
        raise KeyboardInterrupt(f"{words}; the same call goes on with the others, each from its last checkpoint") from None


def workers_for(configs: Sequence[TrainConfig]) -> int:
    """Return how many of `configs` the cores hold side by side, at least 1, by the threads of the one that has most."""
    return max(1, _cores() // max((config.threads for config in configs), default=1))


def _cores() -> int:
    """Return the cores of this process: a batch system or a container may grant it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train_side_by_side(configs: list[TrainConfig], workers: int, progress: bool) -> None:
    """Train `configs` in worker processes, which load the libraries once and then one run after another."""
    context = multiprocessing.get_context("spawn")
    steps = context.Array("q", len(configs), lock=False)  # trained of each run; a process alone writes each of them
    alive, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(steps, alive))
    bar = tqdm(total=sum(c.steps for c in configs), desc=f"{len(configs)} runs", unit="step", disable=not progress)
    try:
        with _for_workers():  # processes start as work is handed in
            jobs = {pool.submit(_train, number, config): config for number, config in enumerate(configs)}
        running: set[Future[None]] = set(jobs)
        with bar:
            while running:
                _, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(sum(steps) - bar.n)
        failed = [(config.title, error) for job, config in jobs.items() if (error := job.exception())]
    except BaseException:  # an interrupt too: no worker outlives the call; each run resumes from its last checkpoint
        end.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        alive.close()
        end.close()
    if failed:
        words = "\n".join(f"{title}: {type(error).__name__}: {error}" for title, error in failed)
        raise RuntimeError(f"{len(failed)} of {len(configs)} runs failed:\n{words}") from failed[0][1]


@contextmanager
def _for_workers() -> Iterator[None]:
    """Have processes that start here find the package, though it may lie on a relative path and the folder have changed since.

    And have them run no script anew: they need nothing of it, and it may lack a `__main__` guard.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    path, sys.path = sys.path, processes.search_path()
    try:
        yield
    finally:
        sys.modules["__main__"], sys.path = main, path


_steps: Any = None  # of a worker: the array that it was given


def _begin(steps: Any, alive: Connection) -> None:
    """Prepare a worker: it leaves an interrupt to its parent, and ends with it."""
    global _steps
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    """End this process when the other end of the pipe closes: on purpose, or because the parent died."""
    try:
        alive.recv()
    except EOFError:
        os._exit(1)


def _train(number: int, config: TrainConfig) -> None:
    """Train a run in a worker."""

    def tell(step: int, loss: float) -> None:
        _steps[number] = step

    train(config, progress=False, on_step=tell)
    _steps[number] = config.steps
