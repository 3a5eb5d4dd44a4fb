"""The notebooks: their form, and every one of them run whole, three or all of them on a profile smaller than quick.

The others read the committed tables, as a reader does first.
"""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tying_utils.experiments import figures
from tying_utils.experiments.grid import SENTENCES
from tying_utils.pages import notebooks
from tying_utils.study import profiles

ROOT = Path(notebooks.__file__).parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))  # start_here has a test of its own
CLAIMS = [book for book in BOOKS if not book.name.startswith("00")]
DRAWN = frozenset(figures.FIGURES)  # the fixture below has fewer for a while
# Of text, of the language whose answer is known, and of runs that go on from others.
TRAINED = ("03_tuned_lens", "06_ground_truth", "11_transfer")


def cells(book: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(book, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def trained(pytestconfig: pytest.Config) -> list[Path]:
    """The notebooks that train on the smoke profile here: with --all-notebooks all of them, in reading order."""
    return [book for book in notebooks.numbered() if book.stem in TRAINED or pytestconfig.getoption("all_notebooks")]


@pytest.fixture(scope="module")
def executed(smoke_home: Path, trained: list[Path]) -> Any:
    """A home in which `reproduce` has run on the smoke profile, with the committed results beside it, and the executed copies.

    What `reproduce` was not to run has run on the committed profile.
    """
    home = smoke_home
    for always in ("real", "lengths", "gpu"):
        shutil.copytree(ROOT / "data" / "results" / always, home / "data" / "results" / always)
    for profile in profiles.COMMITTED:
        shutil.copytree(ROOT / "data" / "results" / profile, home / "data" / "results" / profile)
        shutil.copytree(ROOT / "figures" / profile, home / "figures" / profile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        drawn = {name: figure for name, figure in figures.FIGURES.items() if name[:2] in {book.name[:2] for book in trained}}
        patch.setattr(figures, "FIGURES", drawn)  # of the notebooks that ran: there are no tables of the others
        copies = notebooks.reproduce("smoke", notebooks=trained, progress=False)
        for book in BOOKS:
            if book not in trained:
                notebooks.run(book, copies / book.name, {"PROFILE": repr("laptop")}, progress=False)
        yield home, copies


@pytest.mark.notebook
def test_every_notebook_runs_top_to_bottom(executed: tuple[Path, Path]) -> None:
    _, copies = executed
    assert {copy.name for copy in copies.iterdir()} == {book.name for book in BOOKS}
    for copy in copies.iterdir():
        for cell in cells(copy, "code"):
            assert cell.execution_count, f"{copy.name}: a cell did not run"
            assert not [out for out in cell.outputs if out.output_type == "error"], copy.name


@pytest.mark.notebook
@pytest.mark.parametrize("book", CLAIMS, ids=lambda book: book.stem)
def test_a_claim_ends_in_a_verdict_that_was_computed(executed: Any, trained: list[Path], book: Path) -> None:
    text = json.dumps([cell.outputs for cell in cells(executed[1] / book.name, "code")][-1])
    scale = "smoke" if book in trained else "laptop"
    words = ("supported", "refuted", "equivalent", "open")
    words += ("without a verdict",) if scale == "smoke" else ()  # of two seeds
    assert any(word in text for word in words) and f"at {scale} scale" in text


@pytest.mark.notebook
def test_reproduce_writes_tables_and_figures_of_its_profile(executed: tuple[Path, Path], trained: list[Path]) -> None:
    home, _ = executed
    names = {path.stem for path in (home / "figures" / "smoke").glob("*.png")}
    assert {path.stem for path in (home / "figures" / "smoke").glob("*.pdf")} == names
    expected = {"00_overview", "01_alignment", "02_gradients", "03_lens", "03_residual", "04_scaling", "05_drift"}
    expected |= {"00_verdicts", "00_sizes", "06_language", "06_roles", "06_scaling", "06_measures", "06_agreement"}
    expected |= {"11_loss", "11_outcomes", "11_probe"}
    assert {name for name in expected if name[:2] in {book.name[:2] for book in trained}} <= names
    for corpus in profiles.PROFILES["smoke"]:
        assert (home / "data" / "results" / "smoke" / corpus / "manifest.json").exists()


@pytest.mark.notebook
def test_figures_and_the_slider_are_shown(executed: tuple[Path, Path]) -> None:
    for book in BOOKS:
        outputs = [out for cell in cells(executed[1] / book.name, "code") for out in cell.outputs]
        shown = [out for out in outputs if "image/png" in out.get("data", {})]
        published = sum("figures.publish" in cell.source for cell in cells(book, "code"))
        assert len(shown) >= published > 0, book.name
    code = cells(executed[1] / "07_scale_explorer.ipynb", "code")
    outputs = [out.get("data", {}) for cell in code if "explore(" in cell.source for out in cell.outputs]
    widgets = [data for data in outputs if "application/vnd.jupyter.widget-view+json" in data]
    # No progress bar: where the sweep is missing, the cell trains it first.
    assert len([data for data in widgets if "%|" not in data["text/plain"]]) == 1


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_form(book: Path) -> None:
    notebook = nbformat.read(book, as_version=4)
    code = cells(book, "code")
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "committed without outputs"
    lengths = sorted(len(cell.source.splitlines()) for cell in code)
    assert lengths[-1] <= 25 and lengths[len(lengths) // 2] <= 7
    first = notebook.cells[0].source
    assert first.startswith("[![Open in Colab]") and "\n# " in first
    assert "](attachment:" in first and first.index("**Claim.**") < first.index("](attachment:") < first.index("**Answer.**")
    setup = notebook.cells[1]
    assert setup.cell_type == "code" and "find_spec" in setup.source
    assert setup.source.startswith("# @title ") and setup.metadata["cellView"] == "form", "Colab folds by these"
    assert setup.metadata["jupyter"]["source_hidden"], "JupyterLab folds by this"
    parameters = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1 and "PROFILE = " in parameters[0].source
    assert "What to try next" in notebook.cells[-1].source


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_every_figure_and_notebook_it_points_to_is_there(book: Path) -> None:
    text = "\n".join(cell.source for cell in cells(book, "markdown"))
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    missing = [target for target in targets if not target.startswith("attachment:") and not (book.parent / target).exists()]
    assert not missing
    assert "](../figures/" not in text, "a committed figure is shown once: by figures.publish"
    named = re.findall(r'figures\.publish\("([^"]+)"', "\n".join(cell.source for cell in cells(book, "code")))
    assert named and set(named) <= DRAWN


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_one_cell_is_to_be_changed_and_two_exercises_are_solved(book: Path) -> None:
    assert sum(cell.source.startswith("# Change me: ") for cell in cells(book, "code")) == 1
    text = "\n".join(cell.source for cell in cells(book, "markdown"))
    assert "\n## Change me" in f"\n{text}" and "\n## Exercises" in f"\n{text}"
    solutions = re.findall(r"^<details><summary>Solution</summary>\n\n(.+?)\n\n</details>$", text, re.DOTALL | re.MULTILINE)
    assert len(solutions) == text.count("<details>") == 2


@pytest.mark.parametrize("book", CLAIMS, ids=lambda book: book.stem)
def test_the_last_cell_that_runs_is_a_grid_of_verdicts(book: Path) -> None:
    assert "grid(" in cells(book, "code")[-1].source


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_no_claim_is_called_by_its_code_alone(book: Path) -> None:
    for cell in cells(book, "markdown"):
        words = " ".join(cell.source.split()).lower()
        for code in re.findall(r"\bC\d(?:b| (?:roles|cause|lens|price|sweep|check))?\b", cell.source):
            assert SENTENCES[code].lower() in words, f"{code} is nothing to a reader without: {SENTENCES[code]}"


def test_no_setup_differs_between_notebooks() -> None:
    assert len({tuple(cells(book, "code")[0].source.split("\n\n")[:2]) for book in notebooks.everything()}) == 1


def test_a_parameter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DEPTH.*0 times"):
        notebooks.run(BOOKS[1], tmp_path / "copy.ipynb", {"DEPTH": "3"}, progress=False)


def test_a_cell_that_fails_is_told_and_its_copy_kept(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("X = 1  # a number", metadata={"tags": ["parameters"]})]
    book.cells.append(nbformat.v4.new_code_cell("assert X == 1, 'X was replaced'"))
    nbformat.write(book, tmp_path / "01_x.ipynb")
    with pytest.raises(RuntimeError, match="X was replaced"):
        notebooks.run(tmp_path / "01_x.ipynb", tmp_path / "out" / "copy.ipynb", {"X": "2"}, progress=False)
    copy = nbformat.read(tmp_path / "out" / "copy.ipynb", as_version=4)
    assert copy.cells[0].source == "X = 2  # a number"


def small(folder: Path, *cells: Any) -> Path:
    """A notebook in `folder` with its cell of parameters and `cells`."""
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell("X = 1", metadata={"tags": ["parameters"]}), *cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / "01_x.ipynb")
    return folder / "01_x.ipynb"


def test_a_kernel_prints_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plot = "import torch, ipywidgets\nfrom IPython.display import display\ndisplay(ipywidgets.IntSlider())\nprint('ran')"
    notebooks.run(small(tmp_path, nbformat.v4.new_code_cell(plot)), tmp_path / "copy.ipynb", {"X": "2"}, progress=False)
    outputs = nbformat.read(tmp_path / "copy.ipynb", as_version=4).cells[1].outputs
    assert [out.get("text", "") for out in outputs][-1] == "ran\n"
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert capfd.readouterr() == ("", "")


def test_an_executed_copy_shows_its_pictures_wherever_it_is(tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    for place, words in (("one", b"first"), ("two", b"second")):
        (tmp_path / "figures" / place).mkdir(parents=True)
        (tmp_path / "figures" / place / "a.png").write_bytes(b"\x89PNG" + words)
    text = (
        "![one](../figures/one/a.png) ![two](../figures/two/a.png) ![](../none.png) ![](https://example.org/b.png) [x](../a.md)"
    )
    book = small(tmp_path / "notebooks", nbformat.v4.new_markdown_cell(text))
    notebooks.run(book, tmp_path / "build" / "copy.ipynb", {"X": "2"}, progress=False)
    moved = shutil.move(tmp_path / "build" / "copy.ipynb", tmp_path / "elsewhere.ipynb")
    shutil.rmtree(tmp_path / "figures")
    copy = nbformat.read(moved, as_version=4)
    nbformat.validate(copy)
    cell = copy.cells[1]
    assert cell.source.endswith("![](../none.png) ![](https://example.org/b.png) [x](../a.md)")
    held = {name: base64.b64decode(data["image/png"]) for name, data in cell.attachments.items()}
    assert held == {"figures-one-a.png": b"\x89PNGfirst", "figures-two-a.png": b"\x89PNGsecond"}
    page, _ = HTMLExporter().from_notebook_node(copy)
    assert page.count('src="data:image/png;base64,') == 2
    assert cells(book, "markdown")[0].source == text, "the notebook itself is as it was"


@pytest.mark.notebook
def test_executed_copies_hold_the_committed_figures(executed: tuple[Path, Path]) -> None:
    for book in CLAIMS:
        shown = [cell for cell in cells(executed[1] / book.name, "markdown") if "![" in cell.source]
        assert any(cell.get("attachments") for cell in shown), book.name
        assert not [cell.source for cell in shown if re.search(r"!\[[^]]*\]\(\.\./", cell.source)], book.name


def test_a_folder_without_notebooks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no numbered notebook"):
        notebooks.numbered(tmp_path)
