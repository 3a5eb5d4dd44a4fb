"""Ways to the same values, timed in turns in one run: ratios, which a machine's changing speed touches on both sides alike.

A `Contest` names the ways, ours first, and says how each is set up; `held` gives its tidy rows, seconds and peak memory of ours
over each other way. The values of every way's first turn are compared: a ratio between unequal results is refused.
"""

import gc
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

Turn = Callable[[], Any]
SIZES = ("V", "d", "layers", "tokens")  # of the vocabulary, the tables' width, the model, a turn; empty where there is none
# `quantity` is seconds, memory (peak over that of the imports) or bytes (read from disk). `ratio` is ours / other: the median
# over rounds of the ratios pair by pair, between the quartiles `low` and `high`; `ours_value` a median in seconds or bytes.
COLUMNS = ("part", "what", "quantity", "ours", "other", "ratio", "low", "high", "rounds", *SIZES)
COLUMNS += ("threads", "device", "torch", "ours_value", "note")


@dataclass(frozen=True)
class Contest:
    """`build(way, **size)` sets a way up and returns its turn; it is a module's own function, so that a process can be sent it.

    `agree` raises AssertionError for the values of the first turns, by way, if they differ. `warm` turns go before the
    `rounds` (0 where a turn takes minutes); `memory` measures that too, a process a way.
    """

    part: str
    what: str
    ways: Sequence[str]
    build: Callable[..., Any]
    size: Mapping[str, Any]
    agree: Callable[[dict[str, Any]], None]
    rounds: int = 5
    warm: int = 1
    memory: bool = True
    note: str = ""


def held(contest: Contest) -> list[dict[str, Any]]:
    """The rows of a contest, `COLUMNS` each: seconds and, if wanted, memory of ours over every other way."""
    values: dict[str, Any] = {}

    def noted(way: str) -> Turn:
        turn = contest.build(way, **contest.size)
        return lambda: values.setdefault(way, turn())  # takes every turn and keeps the first one's value

    turns = {way: noted(way) for way in contest.ways}
    seconds = in_turns(turns, contest.rounds, contest.warm)
    contest.agree(values)
    del turns
    rows = against(contest, "seconds", seconds)
    if contest.memory:
        often = 2 if contest.warm else 1
        measure = peak_of if on_cuda() else partial(alone, peak_of)  # a card can forget its peak, a process cannot
        peaks = {way: [measure(partial(contest.build, way), dict(contest.size), often)] for way in contest.ways}
        rows += against(contest, "memory", peaks)
    return rows


def in_turns(turns: Mapping[Any, Turn], rounds: int, warm: int = 0) -> dict[Any, list[float]]:
    """Seconds of each turn, a value a round; every other round goes backwards, so that nobody is always first."""
    seconds: dict[Any, list[float]] = {key: [] for key in turns}
    for index in range(-warm, rounds):
        for key in list(turns)[:: -1 if index % 2 else 1]:
            _wait()
            began = time.perf_counter()
            turns[key]()
            _wait()
            if index >= 0:
                seconds[key].append(time.perf_counter() - began)
    return seconds


def against(contest: Contest, quantity: str, values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each way but ours, from a value a round of every way."""
    ours, *others = contest.ways
    rows = []
    for other in others:
        ratios = np.divide(values[ours], values[other])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        row = {"part": contest.part, "what": contest.what, "quantity": quantity, "ours": ours, "other": other}
        row |= {"ratio": middle, "low": low, "high": high, "rounds": len(ratios)}
        row |= {name: contest.size.get(name, math.nan) for name in SIZES}
        rows.append({**row, **machine(), "ours_value": float(np.median(values[ours])), "note": contest.note})
    return rows


def machine() -> dict[str, Any]:
    """The columns that say where a row was measured."""
    device = torch.cuda.get_device_name() if on_cuda() else "cpu"
    return {"threads": torch.get_num_threads(), "device": device, "torch": torch.__version__}


def on_cuda() -> bool:
    """Whether the suite computes on a GPU."""
    return torch.cuda.is_available()


def device() -> str:
    """Where the suite computes: cuda where it is present, else cpu."""
    return "cuda" if on_cuda() else "cpu"


def alone(task: Callable[..., Any], *arguments: Any) -> Any:
    """What `task(*arguments)` returns in a process of its own, with as many threads as here; its errors are raised here."""
    ours, theirs = multiprocessing.Pipe()
    told = theirs, torch.get_num_threads(), task, arguments
    process = multiprocessing.get_context("spawn").Process(target=_answered, args=told)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        raise RuntimeError(f"{task.__name__}{arguments}: its process died without a word, perhaps for lack of memory") from None
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answered(answer: Connection, threads: int, task: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(threads)
    try:
        answer.send(task(*arguments))
    except Exception as error:
        answer.send(RuntimeError(f"{type(error).__name__}: {error}"))


def peak() -> int:
    """Of this process's memory so far, in bytes. The kernel's count for this program: getrusage's starts at the parent's."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def peak_of(build: Callable[..., Turn], size: dict[str, Any], turns: int = 2) -> int:
    """Peak memory of `build(**size)` and some turns of it, over that before, in bytes; on a GPU, of the GPU."""
    if on_cuda():
        gc.collect()  # a model of before that its hooks hold would count as there, or go in the middle
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_cuda() else peak()
    turn = build(**size)
    for _ in range(turns):  # the second step of an optimizer holds what the first one made
        turn()
    return (torch.cuda.max_memory_allocated() if on_cuda() else peak()) - before


def _wait() -> None:
    if on_cuda():
        torch.cuda.synchronize()
