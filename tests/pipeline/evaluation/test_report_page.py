"""The page in words and in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.report.page import render
from tests.helpers.reports import HOSTILE_NAMES, invented_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(invented_report()), encoding="utf-8")
    return path


def test_render__payload_holds_the_report(page_file: Path) -> None:
    html = page_file.read_text(encoding="utf-8")
    payload = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    queries = payload["tests"][0]["queries"]
    assert [query["name"] for query in queries[:3]] == list(HOSTILE_NAMES)
    for hit in queries[0]["hits"]:
        assert sum(share for _, _, share in hit["contributions"]) == pytest.approx(hit["distance"], abs=1e-9)


def test_render__names_cannot_inject_markup(page_file: Path) -> None:
    html = page_file.read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert html.count("<script") == html.count("</script>") == 3
    assert "<b>images" not in html
    assert "&lt;invented&gt;" in html


def test_render__nothing_is_loaded_from_elsewhere(page_file: Path) -> None:
    html = page_file.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href|url|import)\s*[=(]\s*["']?(?:https?:|//|file:)""", html)
    assert "default-src 'none'" in html


@pytest.fixture
def browser_page(request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[str]]]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev` (playwright)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        heard: list[str] = []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda sent: heard.append(sent.url) if sent.url.startswith("http") else None)
        yield page, heard
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("browser_page", [1280, 390], indirect=True)
def test_page__sorts_filters_and_explains_in_a_browser(browser_page: tuple[Any, list[str]], page_file: Path) -> None:
    page, heard = browser_page
    page.goto(page_file.as_uri())
    titles = page.locator("article.query h3")
    assert titles.count() == 20
    assert titles.first.text_content() == "query/00041_c01s01.jpg"  # the worst AP
    page.locator("select[name=sort]").select_option("best AP first")
    assert titles.first.text_content() == HOSTILE_NAMES[0]
    page.locator("select[name=rank1]").select_option("wrong at rank 1")
    assert page.locator("#queries .count").text_content().startswith("30 of 45")
    page.locator("select[name=part]").select_option("head hidden")
    assert page.locator("#queries .count").text_content().startswith("15 of 45")
    page.get_by_role("button", name="nothing shared").click()
    assert page.locator("select[name=group]").input_value() == "nothing shared"
    # By keyboard: the first gallery image explains its pair.
    page.locator("button.frame").first.focus()
    page.keyboard.press("Enter")
    cells = page.locator(".pair tbody tr").last.locator("td, th").all_text_contents()
    distance = page.locator(".pair caption").text_content()
    assert cells[0] == "sum"
    assert cells[-1] in distance
    assert page.locator(".pair canvas").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate("Boolean(Chart.getChart(document.querySelector('#charts canvas')))")
    assert heard == []
