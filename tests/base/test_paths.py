"""One root for everything that is written."""

from pathlib import Path

import pytest

from tying_utils.base import paths


def test_home_is_taken_where_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TYING_HOME", str(tmp_path))
    monkeypatch.delenv("TYING_TEXTS", raising=False)
    assert paths.root() == tmp_path.resolve()
    assert paths.runs().parent == paths.corpora().parent == paths.texts().parent == tmp_path.resolve() / "data"


def test_local_texts_are_taken_where_they_are_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TYING_TEXTS", str(tmp_path))
    assert paths.texts() == tmp_path.resolve()
    monkeypatch.setenv("TYING_TEXTS", "~/texts")
    assert paths.texts() == (Path.home() / "texts").resolve()


def test_the_checkout_that_the_package_lies_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TYING_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.root() == Path(paths.__file__).resolve().parents[2]


def test_an_installed_package_finds_the_checkout_it_is_used_in_else_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in Colab: the package in site-packages, the notebook running in the clone's notebooks folder."""
    monkeypatch.delenv("TYING_HOME", raising=False)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "tying_utils" / "base" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert paths.root() == Path.home() / ".cache" / "tying_utils"
    clone = tmp_path / "weight-tying"
    (clone / "notebooks").mkdir(parents=True)
    (clone / "tying_utils").mkdir()
    (clone / "notebooks" / "00_overview.ipynb").touch()
    monkeypatch.chdir(clone / "notebooks")
    assert paths.root() == clone.resolve()
