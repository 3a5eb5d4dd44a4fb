"""README's and METHODS' numbers and the committed figures belong to the committed tables."""

import re
from pathlib import Path

import pytest

from tying_utils import figures, profiles, report
from tying_utils.study import Results

ROOT = Path(report.__file__).parents[1]


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setenv("TYING_HOME", str(ROOT))
    return Results("laptop", only_read=True)


@pytest.mark.parametrize("name", ["README.md", "METHODS.md"])
def test_documents_hold_the_numbers_of_the_committed_tables(name: str, laptop: Results) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- begin " in text
    assert report.filled(text, laptop) == text, f"{name} has drifted: make figures PROFILE=laptop"


def test_every_block_is_used_somewhere() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "METHODS.md"))
    assert set(re.findall(r"<!-- begin ([\w-]+):", text)) == set(report.BLOCKS)


@pytest.mark.parametrize("profile", profiles.COMMITTED)
def test_committed_figures_belong_to_the_committed_tables(profile: str, laptop: Results) -> None:
    checksums = laptop.checksums
    for name, drawing in figures.FIGURES.items():
        path = ROOT / "figures" / profile / f"{name}.png"
        assert path.with_suffix(".pdf").exists(), path
        corpora = [drawing.corpus] if drawing.corpus else laptop.studies
        tables = [f"{corpus}/{table}" for corpus in corpora for table in drawing.needs]
        expected = {table: checksums[table] for table in tables if table in checksums}
        assert figures.source(path) == expected, f"{path.name} has drifted: make figures PROFILE={profile}"


def test_an_unknown_block_is_named(laptop: Results) -> None:
    with pytest.raises(ValueError, match="weather"):
        report.filled("<!-- begin weather: -->\n<!-- end weather: -->", laptop)
