"""explore.html in real Chromium, opened from a file: sliders by keyboard, a click on the map, a phone, and no request."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tying_utils.pages import explore_page
from tying_utils.study import sweep

ROOT = Path(explore_page.__file__).parents[2]
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: on Debian, apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no Playwright here: pip install playwright"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    page = tmp_path_factory.mktemp("explore") / "explore.html"
    explore_page.write(page)
    return page.as_uri()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["screen", "phone"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page at a width and a colour scheme; whatever it asks for beside itself, and every error, fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": {1280: 720, 390: 844}[width]}, color_scheme=scheme)
    page, asked, errors = context.new_page(), [], []

    def watch(route: Any) -> None:
        if route.request.url == address:
            return route.continue_()
        asked.append(route.request.url)
        route.abort()

    page.set_default_timeout(20_000)
    page.route("**/*", watch)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(address)
    page.locator("#python-map svg").wait_for()
    yield page
    folder = ROOT / "build" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"explore_{width}_{scheme}.png", full_page=True)
    context.close()
    assert not asked and not errors


def shown(page: Any, corpus: str = "python") -> list[str]:
    """The large numbers, as "0.44 → 0.24"."""
    words = [page.locator(f"#{corpus}-{name} svg").text_content() for name in ("bias", "loss")]
    return [re.search(r"[−\d.]+ → [−\d.]+(?= ?nats|95|seed)", text)[0] for text in words]  # type: ignore[index]


def expected(corpus: str, pair: tuple[float, float], row: int | None = None) -> list[str]:
    """The same, from the tables."""
    of = sweep.Sweep.of(sweep.study("laptop", corpus))
    rows = slice(None) if row is None else row
    measured = (lambda scales: of.bias(scales)[rows, -1].mean(), lambda scales: of.loss(scales)[rows].mean())
    return [f"{value((1, 1)):.2f} → {value(pair):.2f}".replace("-", "−") for value in measured]


def drawn(page: Any, name: str) -> str:
    return page.locator(f"#{name} svg").inner_html()


def test_the_arrow_keys_move_numbers_curves_and_the_map(page: Any) -> None:
    assert shown(page) == expected("python", (10, 1))
    before = {name: drawn(page, f"python-{name}") for name in ("alignment", "share", "map")}
    slider = page.get_by_role("slider", name="input scale")
    assert slider.get_attribute("aria-valuetext") == "10"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "before => document.querySelector('#python-alignment svg').innerHTML != before", arg=before["alignment"]
    )
    assert slider.get_attribute("aria-valuetext") == "5" and page.get_by_text("input scale 5").is_visible()
    assert shown(page) == expected("python", (5, 1))
    assert all(drawn(page, f"python-{name}") != was for name, was in before.items())


def test_a_click_on_the_map_moves_the_sliders(page: Any) -> None:
    cells = page.locator("#python-map .mark-rect path[aria-label*='bias']")
    assert cells.count() == 18
    cells.and_(page.locator("[aria-label*='input scale: 0.1;'][aria-label*='output scale: 0.3;']")).click()
    page.wait_for_function("document.querySelector('#python-input').value == '0'")
    values = [page.locator(f"#python-{name}").get_attribute("aria-valuetext") for name in ("input", "output")]
    assert values == ["0.1", "0.3"]
    assert shown(page) == expected("python", (0.1, 0.3))


def test_one_seed_of_the_other_corpus(page: Any) -> None:
    page.get_by_label("trained on").select_option("two-role language")
    assert page.locator("#python").is_hidden()
    page.get_by_label("seed").and_(page.locator(":visible")).select_option("2")
    page.locator("#two-role-bias").get_by_text("seed 2").wait_for()
    assert shown(page, "two-role") == expected("two-role", (10, 1), 2)
    room = page.locator("#two-role-map").bounding_box()["width"]
    assert page.locator("#two-role-map svg").bounding_box()["width"] > 0.95 * room > 300


@pytest.mark.parametrize("title", ["Python source", "two-role language"])
def test_nothing_is_cut_off(page: Any, title: str) -> None:
    page.get_by_label("trained on").select_option(title)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ends = page.locator("svg:visible, input:visible, select:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
    )
    assert len(ends) == 9  # five charts, two sliders, two choices
    width = page.viewport_size["width"]
    assert all(left >= 0 and right <= width for left, right in ends)
    inside = (
        "svg => [...svg.querySelectorAll('text')].every(one => { const [a, b] = [one, svg].map(e => e.getBoundingClientRect());"
    )
    inside += " return a.left >= b.left - 1 && a.right <= b.right + 1; })"
    assert all(page.locator("svg:visible").nth(chart).evaluate(inside) for chart in range(5))
    if width == 1280:
        assert page.evaluate("document.documentElement.scrollHeight") <= 720, "all on one screen"


def test_the_charts_have_the_ink_of_the_page(page: Any) -> None:
    ink = page.evaluate("getComputedStyle(document.body).color")
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    assert ink == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    words = page.locator("#python-alignment svg text:not([fill=none])").evaluate_all(
        "all => all.map(one => getComputedStyle(one).fill)"
    )
    assert len(words) > 10 and {*words} == {ink}
