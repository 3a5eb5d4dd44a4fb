"""Further Python processes, which find what this one finds and speak UTF-8 with it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def search_path() -> list[str]:
    """Return the folders that this process imports from; the package's own is added where it was found by another way.

    As by a relative path, which says another folder since the process went to one.
    """
    own = Path(__file__).resolve().parents[2]
    there = any(Path(place).resolve() == own for place in sys.path)
    return [*sys.path] if there else [str(own), *sys.path]


def start(*arguments: str, **pipes: Any) -> subprocess.Popen[str]:
    """Start this Python with `arguments`; `pipes` are the streams of `subprocess.Popen`, UTF-8 at both ends.

    The package need not be installed: it is enough that this process found it.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path()), "PYTHONIOENCODING": "utf-8:backslashreplace"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, encoding="utf-8", errors="backslashreplace", **pipes)
