"""Tasks within their part's time, by a clock that the tests set; results that stay whatever comes after."""

import json
import time

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


def outcomes(made: Plan) -> dict[str, str]:
    return {record["task"]: record["outcome"] for record in made.records}


def test_each_part_ends_with_its_share_and_leaves_the_next_one_what_it_did_not_need(tmp_path, clock):
    made, said = Plan(tmp_path, 2, clock=clock), []
    made.part("first", 0.25, [Task(f"a{i}", clock.takes(12)) for i in range(4)], said.append)  # 30 s: the third is begun at 24
    assert outcomes(made) == {"a0": MEASURED, "a1": MEASURED, "a2": MEASURED, "a3": LEFT_OUT}
    assert made.records[-1]["reason"].startswith("no time") and clock.now == 136
    made.part("second", 0.5, [Task("b", clock.takes(5)), Task("c", clock.takes(1), seconds=20)], said.append)
    assert outcomes(made)["b"] == MEASURED
    assert outcomes(made)["c"] == LEFT_OUT, "19 of 60 s are left, and it needs 20"
    made.part("third", 1.0, [Task("d", clock.takes(60), seconds=79)], said.append)
    assert outcomes(made)["d"] == MEASURED, "what the second part left is the third's"
    assert [line.partition(":")[0] for line in said] == ["first"] * 4 + ["second"] * 2 + ["third"]


def test_time_counts_from_when_the_command_began(tmp_path, clock):
    made = Plan(tmp_path, 1, began=50, clock=clock)
    made.part("late", 0.5, [Task("a", clock.takes(1))], lambda _: None)
    assert outcomes(made) == {"a": LEFT_OUT}


@pytest.mark.parametrize(
    ("difference", "outcome"), [(0.0, HELD), (1e-3, HELD), (1.1e-3, BROKEN), (float("nan"), BROKEN), (float("inf"), BROKEN)]
)
def test_a_check_is_held_to_its_tolerance(tmp_path, clock, difference, outcome):
    made = Plan(tmp_path, 1, clock=clock)
    made.part("p", 1, [Task("a", clock.takes(1, difference=difference, tolerance=1e-3))], lambda _: None)
    assert outcomes(made) == {"a": outcome}
    (record,) = plan.read(tmp_path)
    assert record["outcome"] == outcome and record["seconds"] == 1 and plan.line(record)


def test_what_raises_is_recorded_with_its_place_and_the_next_one_runs(tmp_path, clock):
    def wrong():
        raise ZeroDivisionError("of\n  two lines")

    def cannot():
        raise LeftOut("no card")

    made = Plan(tmp_path, 1, clock=clock)
    tasks = [Task("a", wrong), Task("b", cannot), Task("c", dict, needs=("no_such_module",)), Task("d", clock.takes(1, x=2.0))]
    made.part("p", 1, tasks, lambda _: None)
    assert outcomes(made) == {"a": RAISED, "b": LEFT_OUT, "c": LEFT_OUT, "d": MEASURED}
    reasons = [record.get("reason", "") for record in plan.read(tmp_path)]
    assert reasons[0].startswith("ZeroDivisionError: of two lines (test_card_plan.py:")
    assert reasons[1:3] == ["no card", "no_such_module is not installed"]


def test_each_result_is_on_disk_before_the_next_task(tmp_path, clock):
    seen = []

    def look():
        seen.append([record["task"] for record in plan.read(tmp_path)])
        return {}

    def stop():
        raise KeyboardInterrupt

    made = Plan(tmp_path, 1, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        made.part("p", 1, [Task("a", clock.takes(1)), Task("b", look), Task("c", stop), Task("d", look)], lambda _: None)
    assert seen == [["a"]]
    assert [record["task"] for record in plan.read(tmp_path)] == ["a", "b"]


def test_a_line_that_a_stop_has_torn_is_named_and_the_others_are_read(tmp_path, clock):
    made = Plan(tmp_path, 1, clock=clock)
    made.part("p", 1, [Task("a", clock.takes(1, rows=[{"x": 1}])), Task("b", clock.takes(1))], lambda _: None)
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


def test_a_part_whose_tasks_cannot_be_named_is_over_and_the_next_one_runs(tmp_path, clock):
    def tasks():
        yield Task("a", clock.takes(1))
        raise ImportError("another package of that name")

    made = Plan(tmp_path, 1, clock=clock)
    made.part("first", 0.5, tasks(), lambda _: None)
    made.part("second", 1, [Task("b", clock.takes(1))], lambda _: None)
    assert outcomes(made) == {"a": MEASURED, "next task": RAISED, "b": MEASURED}
    assert made.records[1]["reason"].startswith("ImportError: another package of that name (test_card_plan.py:")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_task_is_stopped_again_where_the_first_time_was_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_AGAIN", 0.2)

    class Lost:
        def __del__(self):
            time.sleep(1)  # what is raised in here goes nowhere

    def task():
        made = Lost()
        del made
        time.sleep(20)

    made, began = Plan(tmp_path, 0.005), time.monotonic()
    made.part("p", 1, [Task("a", task)], lambda _: None)  # type: ignore[arg-type]
    assert outcomes(made) == {"a": LEFT_OUT} and time.monotonic() - began < 10


def test_a_task_is_stopped_at_the_end_of_its_part(tmp_path):
    made, began = Plan(tmp_path, 0.005), time.monotonic()  # 0.3 s
    made.part("p", 1, [Task("a", lambda: time.sleep(20) or {})], lambda _: None)
    assert outcomes(made) == {"a": LEFT_OUT} and time.monotonic() - began < 10
    assert "the end of its part's" in made.records[0]["reason"]


def test_what_no_finder_knows_is_not_installed():
    assert plan.installed("json") and not plan.installed("no_such_module")


def test_a_library_that_takes_every_error_for_its_own_does_not_take_the_end_of_time(tmp_path):
    def compiler() -> dict[str, float]:
        try:
            time.sleep(20)
            return {}
        except Exception as error:
            raise RuntimeError("the compiler failed") from error

    made = Plan(tmp_path, 0.005)
    made.part("p", 1, [Task("a", compiler)], lambda _: None)
    assert outcomes(made) == {"a": LEFT_OUT}
