"""The whole command without a card: the same way at a small size, with everything installed and without what is optional."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import turns
from tying_utils.__main__ import main
from tying_utils.card import command, plan, read, summary
from tying_utils.card.plan import BROKEN, HELD, LEFT_OUT, MEASURED, RAISED
from tying_utils.experiments import alignment, on_card
from tying_utils.pages import costs

ROOT = Path(command.__file__).parents[2]
OPTIONAL = "tuned_lens,transformer_lens,datasets,ipywidgets,pyarrow,matplotlib,seaborn,accelerate,plotly"
# As if these were not installed, for this process: what is there already keeps its place in sys.path.
HIDING = """
import importlib.machinery as machinery, runpy, sys
hidden, find = set(sys.argv.pop(1).split(",")), machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
machinery.PathFinder.find_spec = staticmethod(find_spec)
runpy.run_module("tying_utils", run_name="__main__", alter_sys=True)
"""


def started(folder: Path, hidden: str, minutes: int, more: Sequence[str] = ()) -> subprocess.Popen[str]:
    """The command in a folder of its own, from the checkout alone."""
    folder.mkdir()
    options = ["--device", "cpu", "--out", "out", "--minutes", str(minutes), *more]
    command = [sys.executable, "-c", HIDING, hidden, "gpu", *options]
    (folder / "home").mkdir()
    inside = {name: str(folder / "home") for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment = {**os.environ, **inside, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """By variant the folder of a check, what it printed, and its exit status."""
    found = {}
    for name, hidden in {"whole": "-", "bare": OPTIONAL}.items():
        place = tmp_path_factory.mktemp("card") / name
        child = started(place, hidden, minutes=1)
        out, err = child.communicate(timeout=300)
        assert "Traceback" not in err, err[-3000:]
        found[name] = place / "out", out, child.returncode
    return found


@pytest.mark.parametrize("variant", ["whole", "bare"])
def test_every_part_says_something_and_nothing_fails(checked, variant):
    folder, _, code = checked[variant]
    records = plan.read(folder)
    assert {record["part"] for record in records} == {"facts", "correct", "fast", "claims"}
    assert not summary.failed(records) and code == 0, [plan.line(record) for record in summary.failed(records)]
    done = {record["task"] for record in records if record["outcome"] in (HELD, MEASURED)}
    assert {"machine", "path gradients, olmo, float32", "text", "size", "untied, seed 0"} <= done
    for record in records:
        if record["outcome"] == HELD:
            assert 0 <= record["difference"] <= record["tolerance"]
        elif record["outcome"] == LEFT_OUT:
            assert record["reason"].startswith("no time") or "not installed" in record["reason"], record


@pytest.mark.parametrize("variant", ["whole", "bare"])
def test_the_summary_is_printed_last_and_short_and_the_folder_small(checked, variant):
    folder, out, _ = checked[variant]
    lines = (folder / plan.SUMMARY).read_text(encoding="utf-8").splitlines()
    assert out.splitlines()[-len(lines) :] == lines and 8 <= len(lines) <= 25
    assert [file.name for file in sorted(folder.iterdir())] == [plan.RESULTS, plan.SUMMARY], "what was in between is gone"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2**20
    assert any(line.startswith("card: cpu") for line in lines) and any(line.startswith("claims:") for line in lines)


def test_what_is_not_installed_is_left_out_and_said(checked):
    folder, _, _ = checked["bare"]
    reasons = {record["task"]: record["reason"] for record in plan.read(folder) if record["outcome"] == LEFT_OUT}
    missing = {task for task, reason in reasons.items() if "not installed" in reason}
    assert {"lens", "lens training"} <= missing
    words = (folder / plan.SUMMARY).read_text(encoding="utf-8")
    assert "tuned_lens is not installed" in words
    assert not summary.tables(plan.read(folder), "lens").size and summary.tables(plan.read(folder), "losses").size


@pytest.mark.parametrize("variant", ["whole", "bare"])
def test_nothing_is_written_elsewhere(checked, variant):
    folder, _, _ = checked[variant]
    beside = [path for path in folder.parent.rglob("*") if folder not in (path, *path.parents)]
    assert [path.name for path in beside] == ["home"]


def test_a_check_that_is_told_to_stop_sums_up_what_it_has(tmp_path):
    child = started(tmp_path / "stopped", "-", minutes=5)
    results = tmp_path / "stopped" / "out" / plan.RESULTS
    until = time.monotonic() + 200
    while time.monotonic() < until and not (results.exists() and results.read_text().count("\n") > 6):
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert len(plan.read(results.parent)) > 6
    assert (results.parent / plan.SUMMARY).read_text().splitlines()[-1] == out.splitlines()[-1]
    assert not (results.parent / plan.SCRATCH).exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--minutes", "0.5"), "--minutes: a number from 1 to 1440 is needed, got 0.5"),
        (("--minutes", "nan"), "--minutes: a number from 1 to 1440 is needed, got nan"),
        (("--device", "tpu"), "--device: 'cuda' or 'cpu' is needed, got 'tpu'"),
        (("--seeds", "2", "-1"), "--seeds: numbers from 0 to 999 are needed, each once, got 2 -1"),
        (("--seeds", "1000"), "--seeds: numbers from 0 to 999 are needed, each once, got 1000"),
        (("--seeds", "2", "3", "2"), "--seeds: numbers from 0 to 999 are needed, each once, got 2 3 2"),
        ((), "--device: no CUDA device"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out"), *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"tying-utils: {named}") and not out
    assert ("`--device cpu` tries the command itself" in err) == ("no CUDA device" in named)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_or_cannot_be_written_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for folder, words in (("", "holds file"), ("file", "cannot be written"), ("file/in", "cannot")):
        assert main(["gpu", "--device", "cpu", "--out", str(tmp_path / folder)]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def written(folder: Path, records: Iterable[plan.Record]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / plan.RESULTS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_results_of_a_card_become_tables_and_rows_of_the_benchmarks(checked, tmp_path, home, monkeypatch, capsys):
    records = plan.read(checked["whole"][0])
    for record in records:
        for row in record.get("rows", []):
            row["device"] = "Example Card"
        if record["task"] == "machine":
            record |= {"card": "Example Card", "capability": "9.0", "driver": "1.2", "memory_bytes": 8e10}
    of_a_card = written(tmp_path / "check", records)
    monkeypatch.setattr(read.report, "refresh_documents", lambda profile: None)
    for _ in range(2):  # a second reading replaces what the first one wrote
        assert main(["gpu", "--read", str(of_a_card)]) == 0
    results = home / "data" / "results"
    files = {f"gpu/{name}.csv" for name in ("checks", "rates", *read.TABLES)} | {"benchmarks/ratios.csv"}
    assert set(capsys.readouterr().out.split()) == {str(results / file) for file in files}
    checks = pd.read_csv(results / "gpu" / "checks.csv")
    assert len(checks) == len(records) and set(checks["device"]) == {"Example Card"}
    manifest = json.loads((results / "gpu" / "manifest.json").read_text())
    assert manifest["machine"]["card"] == "Example Card" and manifest["packages"]["torch"] == manifest["machine"]["torch"]
    assert {entry["made"]["device"] for entry in manifest["tables"].values()} == {"Example Card"}
    ratios = pd.read_csv(results / "benchmarks" / "ratios.csv")
    assert set(ratios["device"]) == {"Example Card"} and not ratios.duplicated().any()
    words = costs.card()
    assert (
        "Example Card" in words and "Python source, d 32" in words and "tokens per weight in batches of 256, float32)" in words
    )
    bias = summary.tables(records, "alignment").query("arm == 'tied' and target == 'tied'").set_index("source")["corrected"]
    read_back = alignment.output_bias(on_card.found()[1]["alignment"]).set_index("arm")["output_bias"]
    assert read_back["tied"] == pytest.approx(bias["output"] - bias["input"], abs=1e-5)


def written_by_hand(folder: Path, *others: dict[str, Any]) -> Path:
    """A folder of a card with its machine, a row of a contest, a table of losses, and `others` in place of what they name."""
    row = {**dict.fromkeys(turns.COLUMNS, 1.0), "part": "step", "what": "w", "quantity": "seconds", "ours": "a", "other": "b"}
    row |= {"device": "Example Card", "torch": "2", "note": ""}
    loss = {"arm": "untied", "seed": 0, "d_model": 8, "n_layers": 1, "tokens_per_weight": 1.0, "validation_loss": 2.0}
    machine = {"card": "Example Card", "capability": "9.0", "driver": "1", "torch": "2", "python": "3", "cores": 2, "dtype": ""}
    made = {
        ("facts", "machine"): machine,
        ("fast", "contest"): {"rows": [row], "tokens_per_s": 1.0},
        ("claims", "size"): {"d": 8, "layers": 1, "weights": 80, "tokens_per_weight": 1.0, "steps": 5, "tokens_per_step": 16},
        ("claims", "untied, seed 0"): {"tables": {"losses": [loss]}},
    }
    records = {key: {"part": key[0], "task": key[1], "outcome": MEASURED, "seconds": 1.0, **own} for key, own in made.items()}
    for other in others:
        key = (other["part"], other["task"])
        records[key] = records.get(key, {"outcome": MEASURED, "seconds": 1.0}) | other
    return written(folder, records.values())


@pytest.mark.parametrize(
    "other",
    [
        {"part": "facts", "task": "machine", "card": None},
        {"part": "facts", "task": "machine", "memory_bytes": "much"},
        {"part": "claims", "task": "size", "weights": "many"},
        {"part": "claims", "task": "untied, seed 0", "tables": {"losses": [{"arm": "untied"}]}},
        {"part": "claims", "task": "tied, seed 0", "tables": {"alignment": [{"arm": "tied", "target": "tied"}]}},
    ],
)
def test_records_of_another_kind_are_refused_before_anything_is_written(tmp_path, home, capsys, other):
    folder = written_by_hand(tmp_path / "check", other)
    assert main(["gpu", "--read", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"tying-utils: FOLDER: {folder} ")
    assert not (home / "data").exists()


def test_a_second_card_leaves_nothing_of_the_first_and_no_row_takes_the_place_of_another_devices(tmp_path, home, monkeypatch):
    monkeypatch.setattr(read.report, "refresh_documents", lambda profile: None)
    folder, results = written_by_hand(tmp_path / "check"), home / "data" / "results"
    assert [path.name for path in read.read(folder)] == ["checks.csv", "rates.csv", "losses.csv", "ratios.csv"]
    row = plan.read(folder)[1]["rows"][0]
    rows = {"part": "fast", "task": "contest", "rows": [row | {"device": "cpu"}, row | {"more": 1}]}
    written_by_hand(folder, rows, {"part": "claims", "task": "untied, seed 0", "tables": {}})
    assert [path.name for path in read.read(folder)] == ["checks.csv", "rates.csv"]
    assert sorted(path.name for path in (results / "gpu").glob("*.csv")) == ["checks.csv", "rates.csv"]
    assert set(json.loads((results / "gpu" / "manifest.json").read_text())["tables"]) == {"checks", "rates"}
    assert set(pd.read_csv(results / "benchmarks" / "ratios.csv")["device"]) == {"Example Card"}


def test_seeds_ask_for_the_claims_alone_of_models_as_large(tmp_path):
    size = {"part": "claims", "task": "size", "d": 32, "layers": 1, "steps": 77}
    like = written_by_hand(tmp_path / "like", size)
    child = started(tmp_path / "seeds", "-", minutes=1, more=("--seeds", "3", "4", "--like", str(like)))
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err[-2000:]
    records = plan.read(tmp_path / "seeds" / "out")
    assert [record["task"] for record in records if record["part"] == "facts"] == ["machine"]
    assert {record["part"] for record in records} == {"facts", "claims"}
    runs = [record["task"] for record in records if "seed" in record["task"]]
    assert runs[0] == "untied, seed 3" and runs[-1].endswith("seed 4") and len(runs) == 6
    losses = summary.tables(records, "losses")
    assert set(losses["seed"]) == {3, 4} and set(losses["n_layers"]) == {1}
    assert {record["config"]["steps"] for record in records if "config" in record} == {77}
    assert not any(line.startswith("correct") for line in out.splitlines()[-8:])


@pytest.mark.parametrize("size", [{"steps": None}, {"d": 0}, {"layers": 1.5}, {"task": "text"}])
def test_a_folder_without_a_size_is_named(tmp_path, capsys, size):
    found = {"part": "claims", "task": "size"} | size
    like = written_by_hand(tmp_path / "like", {"part": "claims", "task": "size", "d": None}, found)
    assert main(["gpu", "--device", "cpu", "--like", str(like), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"tying-utils: FOLDER: {like} holds no size of models")
    assert not (tmp_path / "out").exists()


def test_checks_of_one_card_are_read_together_and_the_first_counts(tmp_path, home, monkeypatch):
    monkeypatch.setattr(read.report, "refresh_documents", lambda profile: None)
    loss = {"arm": "untied", "seed": 1, "d_model": 8, "n_layers": 1, "tokens_per_weight": 1.0, "validation_loss": 3.0}
    size = {"part": "claims", "task": "size"}
    again = {"part": "claims", "task": "untied, seed 0", "tables": {"losses": [loss | {"seed": 0}]}}
    second = {"part": "claims", "task": "untied, seed 1", "tables": {"losses": [loss]}}
    late = {"part": "claims", "task": "untied, seed 1", "outcome": RAISED, "reason": "OutOfMemoryError: for now"}
    text = {"part": "claims", "task": "text", "name": "packages", "sha256": "ab"}
    one = written_by_hand(tmp_path / "one", late, text)
    two = written_by_hand(tmp_path / "two", again, second, text)
    read.read(one, two)
    losses = pd.read_csv(home / "data" / "results" / "gpu" / "losses.csv").set_index("seed")["validation_loss"]
    assert losses.to_dict() == {0: 2.0, 1: 3.0}
    checks = pd.read_csv(home / "data" / "results" / "gpu" / "checks.csv")
    assert not checks.duplicated(["part", "task"]).any() and RAISED not in set(checks["outcome"])
    broken = {"part": "correct", "task": "sum", "outcome": BROKEN, "difference": 2.0, "tolerance": 1.0}
    held = broken | {"outcome": HELD, "difference": 0.5}
    read.read(written_by_hand(tmp_path / "broken", broken), written_by_hand(tmp_path / "held", held))
    checks = pd.read_csv(home / "data" / "results" / "gpu" / "checks.csv").set_index("task")
    assert checks.loc["sum", "outcome"] == BROKEN, "what was wrong once is not hidden"
    before = {path: path.read_bytes() for path in (home / "data").rglob("*.csv")}
    for name, other, words in (
        ("shorter", size | {"steps": 4}, "'steps': 4"),
        ("otherwise", text | {"sha256": "cd"}, "'sha256': 'cd'"),
        ("another", {"part": "facts", "task": "machine", "card": "Other Card"}, "Other Card"),
    ):
        with pytest.raises(ValueError, match=f"FOLDER: .*{name} has .*{words}.*one card, one text and one size"):
            read.read(one, written_by_hand(tmp_path / name, other))
    with pytest.raises(ValueError, match="FOLDER: .*sizeless holds records that no check writes"):
        read.read(one, written_by_hand(tmp_path / "sizeless", size | {"steps": None}))
    with pytest.raises(ValueError, match="FOLDER: .*empty holds no results"):
        read.read(one, tmp_path / "empty")
    assert before == {path: path.read_bytes() for path in (home / "data").rglob("*.csv")}, "nothing was written"


# A call that no signal ends, as one that waits for a card: the alarm is blocked in the thread that would hear it.
HANGING = """
import signal, sys, time
from pathlib import Path
import torch
from tying_utils.card import claims, command, correct, facts, fast, plan, summary  # what takes longer than the minutes
def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(200)
facts.tasks = lambda setting: iter([plan.Task("before", lambda: {"x": 1.0}), plan.Task("hangs", hang)])
command._GRACE = 1.0
folder = Path(sys.argv[1])
(folder / plan.SCRATCH).mkdir(parents=True)
command._parts(0.1, torch.device("cpu"), folder, time.monotonic())
"""


def test_a_call_that_never_returns_ends_the_check_with_a_summary(tmp_path):
    began, inside = time.monotonic(), {"TYING_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command, environment = [sys.executable, "-c", HANGING, str(tmp_path / "out")], {**os.environ, **inside}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert found.returncode == 1 and time.monotonic() - began < 120, found.stderr[-2000:]
    assert "a task does not return from a library" in found.stdout
    assert [record["task"] for record in plan.read(tmp_path / "out")] == ["before"]
    words = (tmp_path / "out" / plan.SUMMARY).read_text().splitlines()
    assert words[-1] == found.stdout.splitlines()[-1] and not (tmp_path / "out" / plan.SCRATCH).exists()


def test_a_trial_without_a_card_becomes_no_result(checked, home, capsys):
    folder, _, _ = checked["whole"]
    assert main(["gpu", "--read", str(folder)]) == 2
    assert "is of a trial without a card" in capsys.readouterr().err
    assert not (home / "data").exists()
    assert costs.card().startswith("Nothing here was run on a card yet")


def test_the_summary_names_what_raised_and_stays_short():
    raised = [{"part": "correct", "task": f"t{i}", "outcome": RAISED, "reason": "E: x" * 99, "seconds": 1} for i in range(40)]
    lines = summary.lines(raised)
    assert lines[0] == "correct: 0 held, 0 broken, 40 raised, 0 left out of 40 checks"
    assert len(lines) == 7 and lines[-1] == "  and 35 more that failed, all in results.jsonl" and max(map(len, lines)) <= 200
    assert summary.lines([]) == []
