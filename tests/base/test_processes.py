"""Further processes find the package where this one does, and speak UTF-8 with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tying_utils.base import processes

ROOT = Path(__file__).resolve().parents[2]
WORDS = "import sys, tying_utils; print(sys.argv[1]); print(sys.argv[1] + chr(0xdc80), file=sys.stderr); sys.exit(3)"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", None])
def test_words_come_as_they_were_said(monkeypatch, tmp_path, encoding):
    if encoding:
        monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.chdir(tmp_path)
    child = processes.start("-c", WORDS, "日本 – ä", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.communicate(timeout=60) == ("日本 – ä\n", "日本 – ä\\udc80\n")
    assert child.returncode == 3


SCRIPT = """
import os, subprocess, sys
sys.path.insert(0, {path!r})
from tying_utils.base import processes
os.chdir({folder!r})
child = processes.start("-c", "import tying_utils; print(tying_utils.__file__)", stdout=subprocess.PIPE)
print(child.communicate()[0], end="")
"""


@pytest.mark.parametrize("path", [str(ROOT), ROOT.name, os.path.join("..", ROOT.parent.name, ROOT.name)])  # noqa: PTH118
def test_a_child_finds_the_package_on_the_path_alone(tmp_path, path):
    """An absolute or a relative path, though the folder is another by then."""
    (tmp_path / "script.py").write_text(SCRIPT.format(path=path, folder=str(tmp_path)), encoding="utf-8")
    command = [sys.executable, "-I", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(ROOT / "tying_utils" / "__init__.py"), done.stderr
