"""Run notebooks 01 to 07 on the smallest profile in another environment: python run_notebooks.py FOLDER (see the Makefile).

FOLDER holds env, an environment with ipykernel but without this package, and weight-tying, a checkout of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from tying_utils.pages import notebooks

# Installed there, these stay what they were: the setup cell holds them.
HELD = ("torch", "numpy", "transformers", "datasets", "ipywidgets", "ipython")


def main(folder: Path) -> None:
    python = folder / "env" / "bin" / "python"
    before = versions(python)
    subprocess.run([python, "-m", "ipykernel", "install", "--prefix", folder / "env", "--name", "colab"], check=True)
    os.environ |= {"JUPYTER_PATH": str(folder / "env" / "share" / "jupyter"), "HF_HUB_OFFLINE": "1"}
    books = sorted((folder / "weight-tying" / "notebooks").glob("0[1-9]_*.ipynb"))
    for book in books:
        copy = folder / "executed" / book.name
        notebooks.run(book, copy, {"PROFILE": repr("smoke")}, kernel="colab")
        cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), f"{book.name}: a cell did not run"
    after = versions(python)
    changed = {name: (before[name], after[name]) for name in HELD if before[name] != after[name]}
    assert not changed, f"the setup cell changed what was installed: {changed}"
    print(f"{len(books)} notebooks ran with {after}")


def versions(python: Path) -> dict[str, str]:
    code = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *HELD], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
