"""The repository's public address: it is in pyproject.toml, and goes from there into every badge and setup cell."""

import re
from collections.abc import Callable
from pathlib import Path

from tying_utils.base import files, paths

_URL = re.compile(r'(?m)^(Repository = ")https://github\.com/([^"]*)(")$')
_BADGE = re.compile(r"(?<=\]\()https://colab\.research\.google\.com/github/[^)]*(?=\))")
_FETCH = re.compile(r"(?m)^( *address = ).*$")
_README = re.compile(r"(<!-- badges: [^>]*-->\n).*?(<!-- end of badges -->)", re.DOTALL)
_CLONE = re.compile(r"git clone (?:<[^>]*>|https://\S+) ")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"


def known(root: Path | None = None) -> str | None:
    """Return OWNER/NAME on GitHub as pyproject.toml has it, None while the owner is not filled in."""
    found = _URL.search(((root or paths.root()) / "pyproject.toml").read_text(encoding="utf-8"))
    return found[2] if found and not found[2].startswith("OWNER/") else None


def write(repo: str, root: Path | None = None) -> list[Path]:
    """Make `repo`, as owner/name on GitHub, the address of this checkout, and return the files that changed.

    pyproject.toml gets it, and from there the badge and the setup cell of every notebook, and README's badge and clone line.
    Raises ValueError for anything but owner/name, and outside a checkout.
    """
    if not _NAME.fullmatch(repo):
        raise ValueError(f"repo: owner/name as on GitHub is needed, got {repo!r}")
    root = root or paths.root()
    project, books = root / "pyproject.toml", sorted((root / "notebooks").glob("*.ipynb"))
    if not project.is_file() or not books:
        raise ValueError(f"root: {root} is no checkout of this repository; run from one")
    changed = _rewrite(project, lambda text: _URL.sub(rf"\g<1>https://github.com/{repo}\g<3>", text))
    for book in books:
        changed += _rewrite_book(book, repo)
    first = root / "notebooks" / "start_here.ipynb"
    line = f"[![Open in Colab]({_IMAGE})]({_colab(repo, first)}) or [any notebook](https://colab.research.google.com/github/{repo})\n"
    changed += _rewrite(
        root / "README.md",
        lambda text: _CLONE.sub(f"git clone https://github.com/{repo} ", _README.sub(rf"\g<1>{line}\g<2>", text)),
    )
    return changed


def _colab(repo: str, book: Path) -> str:
    return f"https://colab.research.google.com/github/{repo}/blob/main/notebooks/{book.name}"


def _rewrite_book(book: Path, repo: str) -> list[Path]:
    import nbformat

    notebook = nbformat.read(book, as_version=4)
    title, setup = notebook.cells[:2]
    title.source = _BADGE.sub(_colab(repo, book), title.source)
    setup.source = _FETCH.sub(rf'\g<1>"https://github.com/{repo}"', setup.source)
    return _rewrite(book, lambda _: nbformat.writes(notebook) + "\n")


def _rewrite(path: Path, change: Callable[[str], str]) -> list[Path]:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    if after == before:
        return []
    with files.replacing(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return [path]
