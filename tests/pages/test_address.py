"""One address, written through: pyproject.toml, badges, setup cells, README."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from tying_utils.pages import address, notebooks

ROOT = Path(notebooks.__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def badges(root: Path) -> list[str]:
    texts = [nbformat.read(book, as_version=4).cells[0].source for book in sorted((root / "notebooks").glob("*.ipynb"))]
    return [found for text in texts for found in re.findall(r"\]\((https://colab[^)]*/github/[^)]*)\)", text)]


def test_an_address_is_written_through(checkout: Path) -> None:
    changed = address.write("someone/tied", checkout)
    books = sorted((checkout / "notebooks").glob("*.ipynb"))
    assert set(changed) == {checkout / "pyproject.toml", checkout / "README.md", *books}
    assert address.known(checkout) == "someone/tied"
    start = "https://colab.research.google.com/github/someone/tied/blob/main/notebooks/"
    assert badges(checkout) == [start + book.name for book in books]
    for book in books:
        setup = nbformat.read(book, as_version=4).cells[1].source
        assert '        address = "https://github.com/someone/tied"\n' in setup and "input(" not in setup
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    assert (
        readme.count(f"{start}start_here.ipynb") == 1
        and readme.count("git clone https://github.com/someone/tied weight-tying") == 1
    )
    assert len(readme.split()) <= 900 and len(readme.encode()) <= 7000
    assert address.write("someone/tied", checkout) == [], "nothing is left to write"
    address.write("another/name", checkout)
    assert address.known(checkout) == "another/name" and "someone" not in (checkout / "README.md").read_text(encoding="utf-8")


def test_nothing_but_the_address_changes(checkout: Path) -> None:
    address.write("someone/tied", checkout)
    for book in sorted((checkout / "notebooks").glob("*.ipynb")):
        ours = nbformat.read(ROOT / "notebooks" / book.name, as_version=4)
        theirs = nbformat.read(book, as_version=4)
        assert ours.cells[2:] == theirs.cells[2:] and ours.metadata == theirs.metadata
        own, other = (book.read_text(encoding="utf-8").splitlines() for book in (ROOT / "notebooks" / book.name, book))
        assert sum(a != b for a, b in zip(own, other, strict=True)) == 2


@pytest.mark.parametrize("repo", ["", "tied", "a/b/c", "https://github.com/a/b", "a b/c", "/b", "a/"])
def test_what_is_no_address_is_refused(checkout: Path, repo: str) -> None:
    with pytest.raises(ValueError, match="repo: owner/name as on GitHub is needed"):
        address.write(repo, checkout)


def test_outside_a_checkout_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkout"):
        address.write("someone/tied", tmp_path)


def test_every_badge_here_has_the_address_of_pyproject() -> None:
    known = address.known()
    assert len(set(badges(ROOT))) == (1 if known is None else len(badges(ROOT)))
    start = "https://colab.research.google.com/github/" + (f"{known}/" if known else "")
    assert all(badge.startswith(start) for badge in badges(ROOT))
