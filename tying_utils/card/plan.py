"""Tasks in the order of what they tell, each part within its share of the minutes, every result written when it is known."""

import functools
import importlib.util
import json
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tying_utils.base.console import say

RESULTS, SUMMARY, SCRATCH = "results.jsonl", "summary.txt", "tmp"
# What ends a record: a difference within its tolerance or beyond it, a measurement, or why there is none.
HELD, BROKEN, MEASURED, RAISED, LEFT_OUT = "held", "broken", "measured", "raised", "left out"

Record = dict[str, Any]

UNTIED_START = 1000  # added to a seed, so that an untied model begins apart from the tied one

_AGAIN = 15.0  # seconds


class LeftOut(Exception):
    """A task that cannot be done here, with the reason in words."""


class _OutOfTime(BaseException):
    """A task ran to the end of its part's time. No library takes it for an error of its own, as a compiler would."""


@dataclass(frozen=True)
class Task:
    """`run()` returns what was found, by name; with "difference" and "tolerance" it is a check.

    `needs` names modules without which it is left out, `seconds` the least that has to be left of its part's time.
    """

    name: str
    run: Callable[[], Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    seconds: float = 0.0


class Plan:
    """Runs parts within `minutes` from now on, and appends a line of JSON per task to `folder`/results.jsonl.

    `records` holds what was written. A task that raises is recorded, and the next one runs; a KeyboardInterrupt is raised on,
    with everything before it written.
    """

    def __init__(self, folder: Path, minutes: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.clock = folder, clock
        self.began, self.seconds = clock(), 60 * minutes
        self.records: list[Record] = []
        self.ends = self.began + self.seconds  # of the part that runs

    @property
    def left(self) -> float:
        """Return the seconds left of the present part's time."""
        return self.ends - self.clock()

    def part(self, name: str, until: float, tasks: Iterable[Task]) -> None:
        """Run the `tasks` of the part `name`, which ends when the fraction `until` of all minutes has passed.

        Where the next task cannot even be named, as where a module does not import, that is recorded and the part is over.
        """
        self.ends = self.began + until * self.seconds
        tasks = iter(tasks)
        while True:
            try:
                task = next(tasks, None)
            except Exception as error:
                task = Task("next task", functools.partial(_raise, error))
            if task is None:
                return
            record = self._done(name, task)
            self.records.append(record)
            with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, default=str) + "\n")
                file.flush()
                os.fsync(file.fileno())
            say(line(record))

    def _done(self, part: str, task: Task) -> Record:
        record: Record = {"part": part, "task": task.name}
        began = self.clock()
        try:
            if missing := [name for name in task.needs if not installed(name)]:
                raise LeftOut(f"{', '.join(missing)} is not installed")
            if self.left < task.seconds or self.left <= 0:
                raise LeftOut(f"no time: {max(0.0, self.left):.0f} s of this part's are left")
            with _at_most(self.left):
                found = dict(task.run())
            record |= {"outcome": MEASURED, **found}
            if "tolerance" in found:
                record["outcome"] = HELD if found["difference"] <= found["tolerance"] else BROKEN
        except LeftOut as reason:
            record |= {"outcome": LEFT_OUT, "reason": str(reason)}
        except _OutOfTime:
            reason = f"no time: stopped after {self.clock() - began:.0f} s, the end of its part's"
            record |= {"outcome": LEFT_OUT, "reason": reason}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            record |= {"outcome": RAISED, "reason": f"{words[:400]} ({Path(where.filename).name}:{where.lineno})"}
        return record | {"seconds": round(self.clock() - began, 3)}


def _raise(error: Exception) -> dict[str, Any]:
    raise error


def installed(name: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def read(folder: Path) -> list[Record]:
    """Return the records in `folder`; a line that a stop has torn becomes one that says so. Raises ValueError where none is."""
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(f"FOLDER: {folder} holds no {RESULTS}; give what `tying-utils gpu --out` has written")
    records = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if not _sound(record):
            record = {"part": "", "task": f"line {number}", "outcome": LEFT_OUT, "reason": "damaged", "seconds": 0.0}
        records.append(record)
    return records


def size_of(folder: Path) -> dict[str, int]:
    """Return d, layers and steps of the models that the check in `folder` chose. Raises ValueError where it chose none."""
    for record in read(folder):
        size: dict[str, Any] = {name: record.get(name) for name in ("d", "layers", "steps")}
        if record["task"] == "size" and all(type(value) is int and value > 0 for value in size.values()):
            return size
    raise ValueError(f"FOLDER: {folder} holds no size of models; give that of a check which came as far as the claims")


def _sound(record: Any) -> bool:
    """Return whether it is a record as `Plan` writes them, as far as its readers look."""
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("part", "task", "outcome")):
        return False
    outcome, tables = record["outcome"], record.get("tables", {})
    numbers = ["seconds", *(("difference", "tolerance") if outcome in (HELD, BROKEN) else ())]
    return (
        outcome in (HELD, BROKEN, MEASURED, RAISED, LEFT_OUT)
        and all(_number(record.get(name)) for name in numbers)
        and math.isfinite(record["seconds"])
        and (outcome not in (RAISED, LEFT_OUT) or isinstance(record.get("reason"), str))
        and isinstance(tables, dict)
        and all(_rows(rows) for rows in (record.get("rows", []), *tables.values()))
    )


def _number(value: Any) -> bool:
    """Return whether it is a number that a float holds."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _rows(value: Any) -> bool:
    """Return whether it is rows of a table: names with a text or a number each."""
    return isinstance(value, list) and all(
        isinstance(row, dict) and all(isinstance(cell, str | bool) or cell is None or _number(cell) for cell in row.values())
        for row in value
    )


def line(record: Record) -> str:
    """Return one line of a record, as the command prints it when a task is done."""
    words = record.get("reason", "")
    if record["outcome"] in (HELD, BROKEN):
        words = f"difference {record['difference']:.2g}, tolerance {record['tolerance']:.2g}"
    elif record["outcome"] == MEASURED:
        shown = [f"{name} {_short(value)}" for name, value in record.items() if name not in _OWN and _short(value)]
        words = ", ".join(shown)[:200]
    return f"{record['part']}: {record['task']}: {record['outcome']}{', ' * bool(words)}{words} ({record['seconds']:.1f} s)"


_OWN = ("part", "task", "outcome", "seconds", "reason", "difference", "tolerance")


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, int | float) else ""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` in what runs inside once so many seconds have passed, where the system and the thread can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _OutOfTime  # and again later, if it was raised where nothing can be, as while an object is deleted

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
