"""A page to look at without running anything: the documents and the executed notebooks as static HTML, light and dark."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tying_utils.base import files, paths
from tying_utils.base.console import tqdm
from tying_utils.pages import explore_page, notebooks

# The first becomes index.html.
PAGES = ("README.md", "RESULTS.md", "METHODS.md", "SCALING.md", "examples/README.md", "ARCHITECTURES.md")
PAGES += ("benchmarks/README.md", "CONTRIBUTING.md", "SECURITY.md")
COPIED = ("LICENSE", "CITATION.cff")
PLAY = "Play with the sliders, without Python"
_NO_WORDS = "No description has been provided for this image"  # nbconvert's
_VIEW = "application/vnd.jupyter.widget-view+json"
_TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
@media (prefers-color-scheme: dark) {
{{ resources.dark }}
}
main { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
nav { padding-top: 0.6rem; font-family: var(--jp-ui-font-family); line-height: 1.5; }
nav ul { columns: 18rem; column-gap: 2.5rem; margin: 0.3rem 0; padding-left: 1.2rem; }
nav li { break-inside: avoid; }
.highlight pre { overflow-x: auto; }
a { color: var(--jp-content-link-color); }
img { max-width: 100%; background: white; border-radius: 4px; }
/* A table wider than the page scrolls; a shadow lies on the side where there is more of it. */
.scrolls { overflow-x: auto; background-repeat: no-repeat; background-attachment: local, local, scroll, scroll;
  background-position: left, right, left, right; background-size: 3rem 100%, 3rem 100%, 1rem 100%, 1rem 100%;
  background-image: linear-gradient(90deg, var(--jp-layout-color0) 40%, transparent),
    linear-gradient(270deg, var(--jp-layout-color0) 40%, transparent),
    radial-gradient(farthest-side at 0 50%, var(--jp-ui-font-color2), transparent),
    radial-gradient(farthest-side at 100% 50%, var(--jp-ui-font-color2), transparent); }
.scrolls tr { background: none !important; border-bottom: 1px solid var(--jp-border-color2) !important; }
</style>
{%- endblock -%}
{% block input %}
{%- if cell.metadata.get("jupyter", {}).source_hidden %}<details><summary>Setup</summary>{{ super() }}</details>
{%- else %}{{ super() }}{% endif -%}
{% endblock input %}
{% block data_png scoped %}
{%- set shown = output.metadata.get("image/png", {}) -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data["image/png"] | replace("\n", "") | escape_html }}"
  {%- if shown.width %} width="{{ shown.width }}"{% endif %} alt="{{ shown.alt | default("", true) | escape_html }}">
</div>
{% endblock data_png %}
{%- block body_header -%}
{{ super() }}
<nav aria-label="Pages">
{%- set link = joiner(" · ") %}
{%- for name, target in resources.pages[:2] %}{{ link() }}<a href="{{ target }}">{{ name | escape_html }}</a>{% endfor %}
<details{% if resources.first %} open{% endif %}><summary>All pages</summary><ul>
{%- for name, target in resources.pages[2:] %}<li><a href="{{ target }}">{{ name | escape_html }}</a></li>{% endfor -%}
</ul></details></nav>
CONTENTS
{%- endblock -%}
"""


def render(profile: str = "laptop", target: Path | None = None, *, progress: bool = True) -> Path:
    """Run every notebook on `profile`, render all pages into `target` (build/site), and return its index.html.

    On a committed profile the notebooks read the committed tables and train nothing. Every link within the pages is checked,
    and every picture for words in its place. Raises RuntimeError if a notebook fails or a link leads nowhere, ValueError for
    an unknown profile or outside a checkout.
    """
    root = paths.root()
    target = target or root / "build" / "site"
    explore_page.library()
    sources = [root / name for name in PAGES]
    if missing := [source.name for source in sources if not source.is_file()]:
        raise ValueError(f"root: {root} holds no {', '.join(missing)}; run from a checkout of the repository")
    executed = target.with_name(f"{target.name}-notebooks") / profile
    books = [executed / book.name for book in notebooks.everything()]
    for book in notebooks.everything():
        notebooks.run(book, executed / book.name, notebooks.of_profile(book, profile), progress=progress)
    shutil.rmtree(target, ignore_errors=True)
    for drawn in (profile, "benchmarks"):  # what the documents show beside a profile's own
        shutil.copytree(paths.figures(drawn), target / "figures" / drawn, ignore=shutil.ignore_patterns("*.pdf"))
    for name in COPIED:
        shutil.copy(root / name, target / name)
    shutil.copytree(root / "examples", target / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    pages = {target / _moved(name): root / name for name in PAGES}
    pages |= {target / "notebooks" / f"{book.stem}.html": book for book in (books[0], *sorted(books[1:]))}
    titles = {page: _title(source) for page, source in pages.items()}
    play = target / "explore.html"
    explore_page.write(play, profile)
    for page, source in tqdm(pages.items(), desc="rendering", disable=not progress, leave=False):
        links = [(PLAY, _between(page, play)), *((title, _between(page, other)) for other, title in titles.items())]
        page.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(page) as temporary:
            temporary.write_text(_html(source, titles[page], links, _between(page, play)), encoding="utf-8")
    if broken := [*faults(target)]:
        raise RuntimeError("pages with links or pictures that are not whole:\n" + "\n".join(broken))
    return target / "index.html"


def _read(source: Path) -> Any:
    """Return a document or an executed notebook as a notebook."""
    import nbformat

    if source.suffix == ".ipynb":
        return nbformat.read(source, as_version=4)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source.read_text(encoding="utf-8"))])


def _title(source: Path) -> str:
    """Return the first heading of a page, or the name of its file where it has none."""
    words = "\n".join(cell.source for cell in _read(source).cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+?) *$", words, re.MULTILINE)
    return found[1].replace("`", "") if found else source.stem


def _between(page: Path, other: Path) -> str:
    return Path(os.path.relpath(other, page.parent)).as_posix()


def _html(source: Path, title: str, links: list[tuple[str, str]], play: str) -> str:
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    book = _still(_read(source), play)
    book.metadata["title"] = title
    exporter: Any = HTMLExporter(template_file="page.html.j2", extra_loaders=[DictLoader({"page.html.j2": _TEMPLATE})])
    themes = (Path(folder) / "static" / "theme-dark.css" for folder in exporter.template_paths)
    dark = next(theme for theme in themes if theme.is_file()).read_text(encoding="utf-8")
    body, _ = exporter.from_notebook_node(book, resources={"dark": dark, "pages": links, "first": source.name == PAGES[0]})
    body = re.sub(r'(<h\d id=")([^"]*)', lambda found: found[1] + _called(found[2]), body)
    body = re.sub(r'<img alt="([^"]+)" src="https?:[^>]*>', r"\1", body)  # a picture from elsewhere: its words need no network
    body = re.sub("<table.*?</table>", r'<div class="scrolls">\g<0></div>', body, flags=re.DOTALL)
    body = body.replace("CONTENTS", _contents(body, closed=source.name == PAGES[0]), 1)
    return re.sub(r'(href=")(?!\w+:)([^"]*)', lambda found: found[1] + _moved(found[2]), body)


def _contents(body: str, *, closed: bool) -> str:
    """Return a list of a page's sections with links to them; nothing for fewer than three."""
    sections = re.findall(r'<h2 id="([^"]*)">(.*?)<a class="anchor-link"', body, re.DOTALL)
    items = (f'<li><a href="#{place}">{re.sub("<[^>]*>", "", words)}</a></li>' for place, words in sections)
    listed = f"<details{'' if closed else ' open'}><summary>On this page</summary><ul>{''.join(items)}</ul></details>"
    return f'<nav aria-label="On this page">{listed}</nav>' if len(sections) > 2 else ""


def _moved(link: str) -> str:
    """Return where a link within the repository leads on the site; headings are called as GitHub calls them."""
    place, mark, heading = link.partition("#")
    place = re.sub(r"(^|/)README\.md$", r"\1index.html", place)
    return re.sub(r"\.(ipynb|md)$", ".html", place) + mark + _called(heading)


def _called(heading: str) -> str:
    """Return a heading as GitHub calls it, from what nbconvert does: in small letters, without signs."""
    return re.sub(r"&\w+;|[^\w-]", "", heading.lower())


def _still(book: Any, play: str) -> Any:
    """Return `book` without what only a live kernel can show, and without progress bars; a note below a picture of widgets."""
    import nbformat

    link = f'<a href="{play}">play with the sweep in your browser</a>'
    words = f"<p><em>Here this is a picture: in JupyterLab or Colab it has sliders. Or {link}.</em></p>"
    for cell in book.cells:
        if cell.cell_type == "code":
            shown = [out for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = []
            for out in shown:
                live = out.get("data", {}).pop(_VIEW, None)
                if live is None or "image/png" in out["data"]:
                    cell.outputs.append(out)
                if live is not None and "image/png" in out["data"]:
                    cell.outputs.append(nbformat.v4.new_output("display_data", {"text/html": words}))
    return book


def _values(page: Any, *names: str) -> list[str]:
    """Return what the tags of a page have in the attributes `names`."""
    return [tag[name] for name in names for tag in page.find_all(attrs={name: True})]


def faults(site: Path) -> Iterator[str]:
    """Say what is not whole in the pages of `site`: a link to no file or heading, a picture without words in its place."""
    from bs4 import BeautifulSoup

    read = {path.resolve(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    pages = {path: BeautifulSoup(text, "html.parser") for path, text in read.items()}
    anchors = {path: {*_values(page, "id", "name")} for path, page in pages.items()}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for picture in page.find_all("img"):
            if picture.get("alt", "") in ("", _NO_WORDS):
                yield f"{name}: the picture {str(picture.get('src', ''))[:60]!r} has no words in its place"
        for link in _values(page, "href", "src"):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not aim.is_file():
                yield f"{name}: {link!r} leads to no file"
            elif parts.fragment and not {parts.fragment, unquote(parts.fragment)} & anchors.get(aim, set()):
                yield f"{name}: {link!r} leads to no heading"
