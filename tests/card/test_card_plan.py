"""Tasks within their part's time, by a clock that the tests set; results that stay whatever comes after."""

import json
import time
from pathlib import Path

import pytest

from tying_utils.card import plan
from tying_utils.card.plan import BROKEN, HELD, LEFT_OUT, MEASURED, RAISED, LeftOut, Plan, Task


class Clock:
    """Seconds that only `takes` moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, **found):
        def run():
            self.now += seconds
            return found

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(tmp_path: Path, clock: Clock) -> Plan:
    """A plan of a minute."""
    return Plan(tmp_path, 1, clock=clock)


def outcomes(made: Plan) -> dict[str, str]:
    return {record["task"]: record["outcome"] for record in made.records}


def test_each_part_ends_with_its_share_and_leaves_the_next_one_what_it_did_not_need(tmp_path, clock, capsys):
    made = Plan(tmp_path, 2, clock=clock)
    made.part("first", 0.25, [Task(f"a{i}", clock.takes(12)) for i in range(4)])  # 30 s: the third is begun at 24
    assert outcomes(made) == {"a0": MEASURED, "a1": MEASURED, "a2": MEASURED, "a3": LEFT_OUT}
    assert made.records[-1]["reason"].startswith("no time") and clock.now == 136
    made.part("second", 0.5, [Task("b", clock.takes(5)), Task("c", clock.takes(1), seconds=20)])
    assert outcomes(made)["b"] == MEASURED
    assert outcomes(made)["c"] == LEFT_OUT, "19 of 60 s are left, and it needs 20"
    made.part("third", 1.0, [Task("d", clock.takes(60), seconds=79)])
    assert outcomes(made)["d"] == MEASURED, "what the second part left is the third's"
    parts = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert parts == ["first"] * 4 + ["second"] * 2 + ["third"]


@pytest.mark.parametrize(
    ("difference", "outcome"), [(0.0, HELD), (1e-3, HELD), (1.1e-3, BROKEN), (float("nan"), BROKEN), (float("inf"), BROKEN)]
)
def test_a_check_is_held_to_its_tolerance(tmp_path, clock, made, difference, outcome):
    made.part("p", 1, [Task("a", clock.takes(1, difference=difference, tolerance=1e-3))])
    assert outcomes(made) == {"a": outcome}
    (record,) = plan.read(tmp_path)
    assert record["outcome"] == outcome and record["seconds"] == 1 and plan.line(record)


def test_what_raises_is_recorded_with_its_place_and_the_next_one_runs(tmp_path, clock, made):
    def wrong():
        raise ZeroDivisionError("of\n  two lines")

    def cannot():
        raise LeftOut("no card")

    tasks = [Task("a", wrong), Task("b", cannot), Task("c", dict, needs=("no_such_module",)), Task("d", clock.takes(1, x=2.0))]
    made.part("p", 1, tasks)
    assert outcomes(made) == {"a": RAISED, "b": LEFT_OUT, "c": LEFT_OUT, "d": MEASURED}
    reasons = [record.get("reason", "") for record in plan.read(tmp_path)]
    assert reasons[0].startswith("ZeroDivisionError: of two lines (test_card_plan.py:")
    assert reasons[1:3] == ["no card", "no_such_module is not installed"]


def test_each_result_is_on_disk_before_the_next_task(tmp_path, clock, made):
    seen = []

    def look():
        seen.append([record["task"] for record in plan.read(tmp_path)])
        return {}

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.part("p", 1, [Task("a", clock.takes(1)), Task("b", look), Task("c", stop), Task("d", look)])
    assert seen == [["a"]]
    assert [record["task"] for record in plan.read(tmp_path)] == ["a", "b"]


def test_a_line_that_a_stop_has_torn_is_named_and_the_others_are_read(tmp_path, clock, made):
    made.part("p", 1, [Task("a", clock.takes(1, rows=[{"x": 1}])), Task("b", clock.takes(1))])
    path = tmp_path / plan.RESULTS
    path.write_text(path.read_text()[:-20])
    first, torn = plan.read(tmp_path)
    assert first["rows"] == [{"x": 1}] and (torn["task"], torn["outcome"]) == ("line 2", LEFT_OUT)
    for text in ("[1]", "3", "{}", "[" * 5000, json.dumps({"part": "p"})):
        path.write_text(text)
        assert plan.read(tmp_path)[0]["reason"] == "damaged"
    path.unlink()
    with pytest.raises(ValueError, match=r"^FOLDER: .* holds no results.jsonl"):
        plan.read(tmp_path)


SOUND = {"part": "p", "task": "a", "outcome": MEASURED, "seconds": 1.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"task": 3},
        {"outcome": "fine"},
        {"outcome": ["held"]},
        {"seconds": None},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"outcome": HELD, "difference": 0.0},
        {"outcome": RAISED},
        {"outcome": LEFT_OUT, "reason": 1},
        {"tables": []},
        {"tables": {"losses": 3}},
        {"tables": {"losses": [3]}},
        {"tables": {"losses": [{"seed": {}}]}},
        {"rows": {}},
        {"rows": [{"ratio": 10**400}]},
    ],
)
def test_a_record_that_no_check_writes_is_damaged(tmp_path, changes):
    path = tmp_path / plan.RESULTS
    path.write_text(f"{json.dumps(SOUND)}\n{json.dumps(SOUND | changes)}\n", encoding="utf-8")
    first, second = plan.read(tmp_path)
    assert first == SOUND and second["reason"] == "damaged" and plan.line(second)
    path.write_bytes(b"\xff\xfe\x00\n")
    assert plan.read(tmp_path)[0]["reason"] == "damaged"


def test_a_part_whose_tasks_cannot_be_named_is_over_and_the_next_one_runs(clock, made):
    def tasks():
        yield Task("a", clock.takes(1))
        raise ImportError("another package of that name")

    made.part("first", 0.5, tasks())
    made.part("second", 1, [Task("b", clock.takes(1))])
    assert outcomes(made) == {"a": MEASURED, "next task": RAISED, "b": MEASURED}
    assert made.records[1]["reason"].startswith("ImportError: another package of that name (test_card_plan.py:")


def asleep() -> dict[str, float]:
    time.sleep(20)
    return {}


def within_a_library() -> dict[str, float]:
    """A compiler that takes every error for its own."""
    try:
        return asleep()
    except Exception as error:
        raise RuntimeError("the compiler failed") from error


def after_a_lost_stop() -> dict[str, float]:
    class Lost:
        def __del__(self):
            time.sleep(1)  # what is raised in here goes nowhere

    made = Lost()
    del made
    return asleep()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("task", [asleep, within_a_library, after_a_lost_stop])
def test_a_task_is_stopped_at_the_end_of_its_part(tmp_path, monkeypatch, task):
    monkeypatch.setattr(plan, "_AGAIN", 0.2)
    made, began = Plan(tmp_path, 0.005), time.monotonic()  # 0.3 s
    made.part("p", 1, [Task("a", task)])
    assert outcomes(made) == {"a": LEFT_OUT} and time.monotonic() - began < 10
    assert "the end of its part's" in made.records[0]["reason"]
