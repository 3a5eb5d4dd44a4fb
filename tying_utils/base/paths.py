"""Where things lie: one root for runs, token caches, results and figures."""

import os
from pathlib import Path

from tying_utils.base import checks


def root() -> Path:
    """Return the folder that holds data/ and figures/.

    $TYING_HOME if it is set; else the checkout that this package, or the current folder, lies in; else the user's cache folder.
    """
    if home := os.environ.get("TYING_HOME"):
        return checks.path("TYING_HOME", home).resolve()
    here = Path.cwd().resolve()
    for folder in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (folder / "tying_utils").is_dir() and (folder / "notebooks" / "00_overview.ipynb").is_file():
            return folder
    return Path.home() / ".cache" / "tying_utils"


def runs() -> Path:
    """Return the folder of training runs, one folder each."""
    return root() / "data" / "runs"


def corpora() -> Path:
    """Return the folder of tokenised text, cached by content."""
    return root() / "data" / "corpora"


def texts() -> Path:
    """Return the folder of local texts, a folder each, as wikitext-2: $TYING_TEXTS if it is set."""
    if folder := os.environ.get("TYING_TEXTS"):
        return checks.path("TYING_TEXTS", folder).resolve()
    return root() / "data" / "texts"


def results(profile: str) -> Path:
    """Return the folder of a profile's tidy tables and their manifest."""
    return root() / "data" / "results" / profile


def figures(profile: str) -> Path:
    """Return the folder of a profile's figures."""
    return root() / "figures" / profile
