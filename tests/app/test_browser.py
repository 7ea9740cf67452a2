"""The demo's page in a browser: figures are drawn, sliders move, nothing is fetched or complains.

Needs Chromium (`apt install chromium`, or CHROMIUM=/path/to/it) and playwright (the extra browser).
"""

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_lens.app.demo import run_demo
from diffusion_lens.app.demo.setting import Size

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium: `apt install chromium`, or set CHROMIUM=/path/to/it")
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ImportError:
        pytest.skip("no playwright: `pip install 'diffusion-lens[browser]'`")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page, with what it said and asked for in `said`."""
    size = Size(steps=4, scenes=2, captions=12, weakened=2, seeds=2)
    made = run_demo(tmp_path_factory.mktemp("demo"), size=size, show_progress=False)
    opened = browser.new_context(offline=True).new_page()
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("requestfailed", lambda request: opened.said.append(request.url))
    opened.goto(Path(made.page).as_uri())
    opened.wait_for_function(
        "document.querySelectorAll('.plotly-graph-div .main-svg').length > 0"
        " && [...document.querySelectorAll('.plotly-graph-div')].every(d => d._fullLayout)"
    )
    return opened


def test_every_figure_is_drawn_without_a_complaint(page: Any) -> None:
    figures = page.locator(".plotly-graph-div")
    assert figures.count() == 6
    for number in range(figures.count()):
        box = figures.nth(number).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 150
        drawn = figures.nth(number).locator(
            ".heatmaplayer image, .scatterlayer path, .imagelayer image"
        )
        assert drawn.count() > 0
    assert page.said == []


def test_sliders_move_the_maps(page: Any) -> None:
    for number in (0, 1):
        figure = page.locator(".plotly-graph-div").nth(number)
        heat = figure.locator(".heatmaplayer image").first
        assert page.evaluate("d => d._fullLayout.sliders[0].active", figure.element_handle()) == 3
        before = heat.evaluate("image => image.href.baseVal")
        figure.locator(".slider-rail-touch-rect").click(position={"x": 2, "y": 10})
        page.wait_for_function(
            "d => d._fullLayout.sliders[0].active === 0", arg=figure.element_handle()
        )
        page.wait_for_timeout(300)
        after = heat.evaluate("image => image.href.baseVal")
        assert before != after
    assert page.said == []


def test_the_page_fits_a_narrow_window(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
