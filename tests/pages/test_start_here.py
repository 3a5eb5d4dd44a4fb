"""The notebook that comes first: its form, and run whole with few steps, where its proof has to hold."""

import re
from pathlib import Path

import nbformat
import pytest

from tying_utils.pages import notebooks

BOOK = notebooks.FOLDER / notebooks.START


def test_form() -> None:
    book = nbformat.read(BOOK, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    lengths = sorted(len(cell.source.splitlines()) for cell in code)
    assert lengths[-1] <= 25 and lengths[len(lengths) // 2] <= 8
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "committed without outputs"
    assert code[0].metadata["jupyter"]["source_hidden"] and code[0].source.startswith("# @title Setup")
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert text.count("<details><summary>Solution</summary>") == text.count("</details>") == 3
    targets = re.findall(r"\]\((?!https?:|attachment:)([^)#]+)\)", text)
    assert targets and all((BOOK.parent / target).exists() for target in targets)


@pytest.mark.notebook
def test_it_runs_and_both_gradients_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYING_HOME", str(tmp_path / "home"))
    notebooks.run(BOOK, tmp_path / "copy.ipynb", {"STEPS": "60"}, progress=False)
    code = [cell for cell in nbformat.read(tmp_path / "copy.ipynb", as_version=4).cells if cell.cell_type == "code"]
    said = "".join(out.data["text/plain"] for cell in code for out in cell.outputs if out.output_type == "execute_result")
    difference, largest = map(float, re.findall(r"difference ([\d.e+-]+), where the gradient reaches ([\d.e+-]+)", said)[0])
    assert difference < 1e-5 * largest
    curves = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(curves) == 4, "a curve per model, and the two gradients"
    assert re.search(r"'predicting': 2048", said)
