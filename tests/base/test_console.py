"""No console ends a run: one that cannot print a path, one that is closed, one that is not there."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tying_utils.base.console import say, tqdm
from tying_utils.training import run_store

ROOT = Path(__file__).resolve().parents[2]
PATH = "/日本 –/ä\udcff"


class Gone(io.StringIO):
    """As a pipe whose reader has ended."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def strict(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", rb"/\u65e5\u672c \u2013/\xe4\udcff at 3"),
        ("cp1252", rb"/\u65e5\u672c " + b"\x96/\xe4" + rb"\udcff at 3"),
        ("utf-8", "/日本 –/ä".encode() + rb"\udcff at 3"),
    ],
)
def test_what_cannot_be_printed_is_spelt(encoding, said):
    say(PATH, "at", 3, file=(stream := strict(encoding)))
    assert stream.buffer.getvalue() == said + b"\n"  # type: ignore[attr-defined]


def test_words_go_to_stdout_as_they_are(capsys):
    say("ä", 1)
    say()
    assert capsys.readouterr().out == "ä 1\n\n"


def closed() -> io.TextIOWrapper:
    (stream := strict("utf-8")).close()
    return stream


@pytest.mark.parametrize("stream", [Gone(), closed(), None], ids=["broken", "closed", "none"])
def test_a_stream_that_is_gone_stops_neither_words_nor_bars(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say(PATH)
    say(PATH, file=stream)
    with tqdm(range(3), desc=PATH, mininterval=0) as bar:
        assert list(bar) == [0, 1, 2]
        bar.set_postfix(loss=PATH)
        bar.write(PATH, file=stream)
        bar.refresh()  # no lock is held
    assert list(tqdm(range(3), leave=False, mininterval=0)) == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_bar_that_cannot_print_its_name_goes_on(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stderr", strict(encoding))
    assert list(tqdm(range(3), desc=PATH, mininterval=0)) == [0, 1, 2]


def test_the_package_prints_and_draws_through_the_console_alone():
    for file in (ROOT / "tying_utils").rglob("*.py"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "from tqdm" in line or " print(" in line]
        assert file.name == "console.py" or file.stem == "claims" or not lines, (file, lines)


@pytest.fixture
def training(home: Path, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains through the command line, in a home that few consoles can print; returns its exit status, stdout and stderr."""
    monkeypatch.setenv("TYING_HOME", str(home / "日本 –"))
    config = tiny()

    def run(console: str, shell: str = "") -> tuple[int, bytes, bytes]:
        monkeypatch.setenv("PYTHONIOENCODING", console)
        command = [sys.executable, "-m", "tying_utils", "train", "--config", json.dumps(config.as_dict())]
        whole = ["bash", "-c", f'exec "$@" {shell}', "bash", *command] if shell else command
        done = subprocess.run(whole, cwd=ROOT, capture_output=True, timeout=120)
        assert run_store.is_finished(config, config.load_corpus().fingerprint), done.stderr.decode(errors="replace")
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("console", "printed"), [("ascii", rb"/\u65e5\u672c \u2013/"), ("cp1252", rb"/\u65e5\u672c " + b"\x96/"), ("utf-8", None)]
)
def test_a_run_is_told_on_any_console(training, console, printed):
    status, out, err = training(console)
    assert status == 0 and b"can't encode" not in err
    assert (printed or "/日本 –/".encode()) in out


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize(
    "shell",
    [">&- 2>&-", "> /dev/full", "2> /dev/full", "> >(exec true) 2>&1; sleep 0.1"],
    ids=["closed", "words without room", "bars without room", "no reader"],
)
def test_a_run_ends_whatever_becomes_of_its_words(training, shell):
    training("utf-8", shell)


def test_what_is_said_after_a_bar_begins_its_line(capsys):
    for _ in tqdm(range(3), leave=False):
        pass
    say("done", file=sys.stderr)
    assert capsys.readouterr().err.endswith(" \rdone\n")
