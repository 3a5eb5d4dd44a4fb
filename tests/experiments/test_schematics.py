"""The schematics: one per notebook, nothing outside the picture, and two that differ told apart."""

import base64
from pathlib import Path

import nbformat
import pytest
from matplotlib.text import Text

from tying_utils.experiments import schematics
from tying_utils.pages import notebooks


def test_every_notebook_has_one_and_nothing_else_does() -> None:
    names = [path.name.split("_")[0] for path in sorted(notebooks.FOLDER.glob("*.ipynb"))]
    assert sorted(schematics.SCHEMATICS) == names


@pytest.mark.parametrize("number", schematics.SCHEMATICS)
def test_no_word_lies_outside_the_picture(number: str) -> None:
    figure = schematics.schematic(number)
    figure.canvas.draw()
    words = [text for text in figure.findobj(Text) if text.get_text()]
    assert words and figure.get_label()
    for text in words:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()


def test_alike_is_of_the_look() -> None:
    assert schematics.alike(schematics.png("04"), schematics.png("04"))
    assert not schematics.alike(schematics.png("04"), schematics.png("07"))


def test_what_is_attached_to_the_notebooks_is_what_is_drawn(tmp_path: Path) -> None:
    for path in sorted(notebooks.FOLDER.glob("*.ipynb")):
        first = nbformat.read(path, as_version=4).cells[0]
        assert f"](attachment:{notebooks.SCHEMATIC})" in first.source, path.name
        kept = base64.b64decode(first.attachments[notebooks.SCHEMATIC]["image/png"])
        assert schematics.alike(kept, schematics.png(path.name.split("_")[0])), path.name


def test_attaching_changes_what_differs_alone(tmp_path: Path) -> None:
    for number in ("00", "04"):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A notebook")])
        nbformat.write(book, tmp_path / f"{number}_x.ipynb")
    assert [path.name for path in notebooks.attach_schematics(tmp_path)] == ["00_x.ipynb", "04_x.ipynb"]
    before = (tmp_path / "04_x.ipynb").read_bytes()
    assert notebooks.attach_schematics(tmp_path) == [] and (tmp_path / "04_x.ipynb").read_bytes() == before
