"""Notebook 07 in a real browser at 1280 x 720: all cells run, everything on one screen, moved by keyboard, trained, stopped."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tying_utils.pages import notebooks
from tying_utils.study import profiles

ROOT = Path(notebooks.__file__).parents[2]
BOOK = "07_scale_explorer.ipynb"
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
MINUTE = 60_000  # Playwright counts in milliseconds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: on Debian, apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no Playwright here: pip install playwright"),
]


def settings(folder: Path, plugin: str, **values: object) -> None:
    """The user's settings of a JupyterLab plugin."""
    path = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab over a copy of the notebook, with the committed results in a home of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "data" / "results" / "lengths", home / "data" / "results" / "lengths")
    for profile in profiles.COMMITTED:
        shutil.copytree(ROOT / "data" / "results" / profile, home / "data" / "results" / profile)
        shutil.copytree(ROOT / "figures" / profile, home / "figures" / profile)
    (home / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / BOOK, home / "notebooks")
    settings(home / "settings", "notebook-extension/tracker", windowingMode="none")  # every cell is in the page, seen or not
    settings(home / "settings", "apputils-extension/notification", fetchNews="false", checkForUpdates=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=tying", "--no-browser"]
    options += [f"--ServerApp.root_dir={home}", "--LabApp.news_url=None", "--allow-root"]
    folders = {"TYING_HOME": "", "JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    log = home / "lab.log"
    with log.open("w") as words:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=words, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if server.poll() is not None:
                break
            try:
                with urlopen(f"{address}/api?token=tying", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        else:
            server.terminate()
        assert server.poll() is None, log.read_text()[-3000:]
        yield f"{address}/lab/tree/notebooks/{BOOK}?token=tying&reset"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Any]:
    """The notebook open in headless Chromium with every cell run; a screenshot of the whole is kept at the end."""
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        context = browser.new_context(
            viewport={"width": 1280, "height": 720}, permissions=["clipboard-read", "clipboard-write"]
        )
        page = context.new_page()
        page.set_default_timeout(MINUTE)
        try:
            page.goto(lab)
            page.locator(".jp-Notebook").wait_for()
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            last = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
            last.get_by_text("C4 sweep").first.wait_for(state="attached")
            page.keyboard.press("Control+b")  # the file browser closes
        except Exception:
            page.screenshot(path=kept("07_failed"))
            raise
        yield page
        browser.close()


def kept(name: str) -> Path:
    """Where a screenshot is kept."""
    folder = ROOT / "build" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"


def outside(page: Any, number: int, *parts: Any) -> list[str]:
    """Scroll to the explorer (0) or to Live (1), keep a screenshot, and name what is then not wholly on the screen."""
    output = page.locator(".jp-OutputArea-output:has(img.widget-image)").nth(number)
    output.evaluate("shown => shown.scrollIntoView({block: 'start'})")
    screen = page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    page.screenshot(path=kept(f"07_{('explore', 'live')[number]}"))
    lost = []
    for part in parts:
        box = part.bounding_box()
        inside = all(
            screen[start] - 1 <= box[start] and box[start] + box[size] <= screen[start] + screen[size] + 1 and box[size] > 0
            for start, size in (("x", "width"), ("y", "height"))
        )
        lost += [] if inside else [f"{part}: {box}, on {screen}"]
    return lost


def pictures(page: Any) -> tuple[Any, Any]:
    """The images of the explorer and of the live part."""
    shown = page.locator("img.widget-image")
    shown.nth(1).wait_for(state="attached")
    return shown.nth(0), shown.nth(1)


def test_every_cell_ran_without_an_error(page: Any) -> None:
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    assert prompts[0] == "", "the setup cell is folded"
    assert prompts[1:] == [f"[{number}]:" for number in range(2, len(prompts) + 1)]
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0


def parts_of(page: Any, number: int) -> list[Any]:
    """All that is to be on one screen with the explorer or with Live."""
    shown = page.locator(".jp-OutputArea-output:has(img.widget-image)").nth(number)
    sliders = shown.locator(".widget-hslider, .widget-slider")
    parts = [shown.locator("img.widget-image"), *sliders.all(), *shown.locator(".widget-readout").all()]
    return [*parts, *shown.locator("button").all(), *shown.locator("select").all()]


def test_sliders_numbers_and_panels_are_on_one_screen(page: Any) -> None:
    pictures(page)
    number = page.locator(".widget-html-content b", has_text="0.44").first
    parts = [number, *parts_of(page, 0)]
    assert len(parts) > 3 + 3 + 18 and not outside(page, 0, *parts)
    widths = [slider.bounding_box()["width"] for slider in page.locator(".noUi-target").all()[:3]]
    assert min(widths) > 150 and number.evaluate("shown => parseFloat(getComputedStyle(shown).fontSize)") > 20
    map_ = page.get_by_role("button", name="0.24", exact=True).bounding_box()
    picture = page.locator("img.widget-image").first.bounding_box()
    assert map_["x"] > picture["x"] + picture["width"] > 700 and picture["y"] < map_["y"] < picture["y"] + picture["height"]
    page.keyboard.press("Control+b")  # the file browser opens beside it: narrower, and nothing is cut off
    time.sleep(1)
    assert not outside(page, 0, *parts)
    page.screenshot(path=kept("07_beside_the_files"))
    page.keyboard.press("Control+b")
    time.sleep(1)
    assert not outside(page, 1, *parts_of(page, 1))


def test_the_arrow_key_moves_the_slider_the_figure_and_the_numbers(page: Any) -> None:
    picture, _ = pictures(page)
    page.get_by_text("input scale 1, output scale 1, mean of 5 seeds").wait_for()
    before = picture.get_attribute("src")
    handle = page.locator(".jupyter-widgets .noUi-handle").first
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("input scale 2, output scale 1, mean of 5 seeds").wait_for()
    assert picture.get_attribute("src") != before
    assert numbers(page) == ["0.44 → 0.38", "4.49 → 4.51"]
    assert page.locator("img.widget-image").count() == 2, "nothing stacks"


def numbers(page: Any) -> list[str]:
    """The large numbers."""
    return page.locator(".widget-html-content div:has(> span + b)").all_inner_texts()


def test_a_press_on_the_map_loads_that_pair_by_mouse_and_by_keyboard(page: Any) -> None:
    page.get_by_role("button", name="0.24", exact=True).click()
    page.get_by_text("input scale 10, output scale 1, mean of 5 seeds").wait_for()
    assert numbers(page) == ["0.44 → 0.24", "4.49 → 4.77"]
    assert not outside(page, 0, *parts_of(page, 0))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("input scale 20, output scale 1, mean of 5 seeds").wait_for()


def test_play_sweeps_and_reset_returns(page: Any) -> None:
    page.locator(".widget-play button").first.click()
    for scale in (10, 5):
        page.get_by_text(f"input scale {scale}, output scale 1, mean of 5 seeds").wait_for()
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("input scale 1, output scale 1, mean of 5 seeds").wait_for()
    time.sleep(2)
    assert page.get_by_text("input scale 1, output scale 1, mean of 5 seeds").count(), "and stays"


def test_another_corpus_and_a_typed_scale(page: Any) -> None:
    page.locator(".noUi-handle").first.press("ArrowRight")
    page.get_by_text("input scale 2, output scale 1").wait_for()
    page.get_by_label("corpus").first.select_option("two-role")
    page.get_by_text("input scale 2 was not swept: 3 is the nearest.").wait_for()
    seed = page.get_by_label("seed").first
    assert seed.evaluate("box => box.selectedOptions[0].text") == "mean"
    seed.select_option("2")
    page.get_by_text("two-role, input scale 3, output scale 1, seed 2;").wait_for()
    seed.select_option("mean")
    page.get_by_text("two-role, input scale 3, output scale 1, mean of 5 seeds;").wait_for()
    box = page.get_by_label("any input scale")
    box.fill("7")
    box.press("Enter")
    page.get_by_text("input scale 7 was not swept: 10 is the nearest.").wait_for()
    page.get_by_text("two-role, input scale 10, output scale 1").wait_for()
    assert len(numbers(page)) == 4 and not outside(page, 0, *parts_of(page, 0))


def test_copy_puts_the_line_on_the_clipboard(page: Any) -> None:
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_text("Copied;").wait_for()
    deadline = time.monotonic() + 20
    while "run = train(" not in (text := page.evaluate("navigator.clipboard.readText()")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "from tying_utils.study import profiles; from tying_utils import train" in text


def test_train_adds_a_point(page: Any) -> None:
    _, picture = pictures(page)
    before, seen = picture.get_attribute("src"), []
    page.get_by_role("button", name="Train", exact=True).click()
    began = time.monotonic()
    page.get_by_text("Preparing input scale 7").or_(page.get_by_text("Training input scale 7")).wait_for()
    prepared = time.monotonic() - began
    page.get_by_text(re.compile(r"Training input scale 7.*: step \d+ of 200, loss \d")).wait_for()
    print(f"prepared in {prepared:.2f} s, the first step after {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 10, "about a second where nothing else runs"
    joined = page.get_by_text("1 trained here.")
    deadline = time.monotonic() + 180
    while not joined.count() and time.monotonic() < deadline:
        seen.append(picture.get_attribute("src"))
        time.sleep(0.1)
    assert joined.count() and page.get_by_text("input scale 7, output scale 1, seed 0: purity").count()
    assert len(set(seen)) >= 4, "the curve grows while it trains"
    assert picture.get_attribute("src") not in (before, seen[0]) and not outside(page, 1, *parts_of(page, 1))


def test_stop_stops(page: Any) -> None:
    box = page.get_by_label("exactly").first
    box.fill("0.45")
    box.press("Enter")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("Training input scale 0.45").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped at step").wait_for()
    assert not page.get_by_text("2 trained here.").count()
