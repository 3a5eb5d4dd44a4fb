"""The pages: every link leads somewhere, every picture has words, nothing needs a network or a kernel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup

from tying_utils.pages import notebooks, site


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site over notebooks that were not run, but for one with an output of each kind."""

    def run(path: Path, target: Path, parameters: dict[str, str], **_: Any) -> None:
        book = nbformat.read(path, as_version=4)
        assert parameters == ({} if path.name == notebooks.START else {"PROFILE": "'laptop'"})
        pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        view = {"application/vnd.jupyter.widget-view+json": {"model_id": "m", "version_major": 2, "version_minor": 0}}
        new = nbformat.v4.new_output
        code = next(cell for cell in book.cells if cell.cell_type == "code")
        code.outputs = [
            new("display_data", view | {"text/plain": "a progress bar"}),
            new("stream", name="stderr", text="a warning"),
            new("display_data", view | {"image/png": pixel}, metadata={"image/png": {"alt": "panels in place of sliders"}}),
            new("stream", name="stdout", text="a line that was printed"),
        ]
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(book, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "run", run)
        yield site.render("laptop", tmp_path_factory.mktemp("pages") / "site", progress=False).parent


def test_every_page_is_there_and_nothing_is_broken(rendered: Path) -> None:
    pages = {path.relative_to(rendered).as_posix() for path in rendered.rglob("*.html")}
    assert pages == {"benchmarks/index.html", "examples/index.html", "index.html", "explore.html"} | {
        f"{name}.html" for name in ("RESULTS", "METHODS", "SCALING", "ARCHITECTURES", "CONTRIBUTING", "SECURITY")
    } | {f"notebooks/{book.stem}.html" for book in notebooks.everything()}
    assert [*site.faults(rendered)] == []


def test_pages_show_verdicts_outputs_and_both_schemes(rendered: Path) -> None:
    index = (rendered / "index.html").read_text(encoding="utf-8")
    assert "<table>" in index and "Should you tie?" in index and "figures/laptop/00_front.png" in index
    page = (rendered / "notebooks" / "07_scale_explorer.html").read_text(encoding="utf-8")
    assert 'alt="panels in place of sliders"' in page and "a line that was printed" in page
    assert "a progress bar" not in page and "a warning" not in page
    for text in (index, page):
        assert "prefers-color-scheme: dark" in text and "--jp-layout-color0" in text
        assert "<script" not in text and 'src="http' not in text, "nothing to load or run"
    assert ">Open in Colab</a>" in page
    folded = page.index("<details><summary>Setup</summary>")
    assert folded < page.index("find_spec") < page.index("</details>", folded), "the setup cell is folded"


def page(rendered: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((rendered / name).read_text(encoding="utf-8"), "html.parser")


def test_pages_are_called_by_their_titles_and_the_explorer_comes_first(rendered: Path) -> None:
    for name, prefix in (("index.html", ""), ("notebooks/01_embedding_alignment.html", "../")):
        links = page(rendered, name).select('nav[aria-label="Pages"] a')
        assert links[0]["href"] == f"{prefix}explore.html" and links[1]["href"] == f"{prefix}index.html"
        words = [link.get_text() for link in links]
        assert "1 · Which table does a tied table look like?" in words and "Methods" in words
        assert len(links) == len({*words}) == len([*rendered.rglob("*.html")])
    assert page(rendered, "notebooks/12_should_you_tie.html").title.get_text() == "12 · Should you tie?"  # type: ignore[union-attr]


def test_a_long_page_lists_its_sections_and_a_table_scrolls(rendered: Path) -> None:
    methods = page(rendered, "METHODS.html")
    listed = [link["href"] for link in methods.select('nav[aria-label="On this page"] a')]
    assert listed == [f"#{heading['id']}" for heading in methods.find_all("h2")] and len(listed) > 2
    tables = methods.find_all("table")
    assert tables and len(tables) == len(methods.select("div.scrolls > table"))


def test_a_picture_in_place_of_sliders_says_so(rendered: Path) -> None:
    (note,) = [
        words for words in page(rendered, "notebooks/12_should_you_tie.html").find_all("p") if "has sliders" in words.get_text()
    ]
    assert note.a and note.a["href"] == "../explore.html"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('<a href="nowhere.html">x</a>', "'nowhere.html' leads to no file"),
        ('<a href="#nothing">x</a>', "'#nothing' leads to no heading"),
        ('<a href="other.html#nothing">x</a>', "'other.html#nothing' leads to no heading"),
        ('<img src="data:x">', "picture 'data:x' has no words in its place"),
        ('<img src="data:x" alt="No description has been provided for this image">', "has no words"),
    ],
)
def test_faults_are_found(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "index.html").write_text(f'<h1 id="top">x</h1><a href="other.html#there">y</a><a href="#top">z</a>{line}')
    (tmp_path / "other.html").write_text('<h1 id="there">x</h1><a href="https://example.org/gone">y</a>')
    (found,) = site.faults(tmp_path)
    assert found.startswith("index.html: ") and fault in found


def test_a_broken_link_is_no_site(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "COPIED", ("LICENSE",))  # README links to CITATION.cff
    with pytest.raises(RuntimeError, match=r"index\.html: 'CITATION\.cff' leads to no file"):
        site.render("laptop", rendered.with_name("broken"), progress=False)


def test_outside_a_checkout_it_says_so(home: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no README\.md.*run from a checkout"):
        site.render()
