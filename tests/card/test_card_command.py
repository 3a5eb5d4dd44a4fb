"""The whole command without a card: the same way at a small size, with everything installed and without what is optional."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tying_utils.__main__ import main
from tying_utils.card import command, plan, read, summary
from tying_utils.card.plan import HELD, LEFT_OUT, MEASURED, RAISED

ROOT = Path(command.__file__).parents[2]
OPTIONAL = (
    "tuned_lens",
    "transformer_lens",
    "datasets",
    "ipywidgets",
    "pyarrow",
    "matplotlib",
    "seaborn",
    "accelerate",
    "plotly",
)
# As if these were not installed, for this process: what is there already keeps its place in sys.path.
HIDING = """
import importlib.machinery as machinery, runpy, sys
hidden, find = set(sys.argv.pop(1).split(",")), machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
machinery.PathFinder.find_spec = staticmethod(find_spec)
runpy.run_module("tying_utils", run_name="__main__", alter_sys=True)
"""


def started(folder: Path, hidden: tuple[str, ...] = (), *options: str) -> subprocess.Popen[str]:
    """The command in a folder of its own, from the checkout alone."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HIDING, ",".join(hidden) or "-", "gpu", "--device", "cpu", "--out", "out", *options]
    (folder / "home").mkdir()
    inside = {name: str(folder / "home") for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    environment = {**os.environ, **inside, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """By variant the folder of a check, what it printed, and its exit status."""
    found = {}
    for name, hidden in {"whole": (), "bare": OPTIONAL}.items():
        place = tmp_path_factory.mktemp("card") / name
        child = started(place, hidden, "--minutes", "1")
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
    child = started(tmp_path / "stopped", (), "--minutes", "5")
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
        (("--device", "cuda"), "--device: no CUDA device"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out"), *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"tying-utils: {named}") and not out
    assert not (tmp_path / "out").exists()


def test_no_card_says_what_would_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu", "--out", str(tmp_path / "out")]) == 2
    assert "`--device cpu` tries the command itself" in capsys.readouterr().err


def test_a_folder_that_holds_something_or_cannot_be_written_is_left_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for folder, words in (
        (tmp_path, "holds file"),
        (tmp_path / "file", "cannot be written"),
        (tmp_path / "file" / "in", "cannot"),
    ):
        assert main(["gpu", "--device", "cpu", "--out", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def of_a_card(checked, tmp_path) -> Path:
    """The results of the whole check as if they were of a card."""
    folder = tmp_path / "check"
    folder.mkdir()
    records = plan.read(checked["whole"][0])
    for record in records:
        for row in record.get("rows", []):
            row["device"] = "Example Card"
        if record["task"] == "machine":
            record |= {"card": "Example Card", "capability": "9.0", "driver": "1.2", "memory_bytes": 8e10}
    (folder / plan.RESULTS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_results_of_a_card_become_tables_and_rows_of_the_benchmarks(of_a_card, home, monkeypatch, capsys):
    monkeypatch.setattr(read.report, "refresh_documents", lambda profile: None)
    for _ in range(2):  # a second reading replaces what the first one wrote
        assert main(["gpu", "--read", str(of_a_card)]) == 0
    written = capsys.readouterr().out.split()
    results = home / "data" / "results"
    assert set(written) == {str(results / "gpu" / f"{name}.csv") for name in ("checks", "rates", *read.TABLES)} | {
        str(results / "benchmarks" / "ratios.csv")
    }
    checks = pd.read_csv(results / "gpu" / "checks.csv")
    assert len(checks) == len(plan.read(of_a_card)) and set(checks["device"]) == {"Example Card"}
    manifest = json.loads((results / "gpu" / "manifest.json").read_text())
    assert manifest["machine"]["card"] == "Example Card" and manifest["packages"]["torch"] == manifest["machine"]["torch"]
    assert {entry["made"]["device"] for entry in manifest["tables"].values()} == {"Example Card"}
    ratios = pd.read_csv(results / "benchmarks" / "ratios.csv")
    assert set(ratios["device"]) == {"Example Card"} and not ratios.duplicated().any()
    words = read.report.card(None)  # type: ignore[arg-type]
    assert "Example Card" in words and "nan" not in words
    bias = summary.tables(plan.read(of_a_card), "alignment").query("arm == 'tied' and target == 'tied'").set_index("source")
    assert f"tied {bias['corrected']['output'] - bias['corrected']['input']:.2f} (one seed)" in words


def test_a_trial_without_a_card_becomes_no_result(checked, home, capsys):
    folder, _, _ = checked["whole"]
    assert main(["gpu", "--read", str(folder)]) == 2
    assert "is of a trial without a card" in capsys.readouterr().err
    assert not (home / "data").exists()
    assert read.report.card(None).startswith("Nothing here was run on a card yet")  # type: ignore[arg-type]


def test_the_summary_names_what_raised_and_stays_short():
    raised = [{"part": "correct", "task": f"t{i}", "outcome": RAISED, "reason": "E: x" * 99, "seconds": 1} for i in range(40)]
    lines = summary.lines(raised)
    assert lines[0] == "correct: 0 held, 0 broken, 40 raised, 0 left out of 40 checks"
    assert len(lines) == 7 and lines[-1] == "  and 35 more that failed, all in results.jsonl" and max(map(len, lines)) <= 200
    assert summary.lines([]) == []
