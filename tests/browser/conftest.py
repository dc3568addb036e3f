"""A real browser, and a report of everything that a report can show."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sonde.probes import Results, write_report

from .synthetic import make_findings, make_run

N_LAYERS, N_TARGETS = 12, 8
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SIZES = {1280: 900, 400: 800}


@pytest.fixture(scope="session")
def results() -> Results:
    """Two runs."""
    return Results.concat([make_run(number, N_LAYERS, N_TARGETS) for number in range(2)])


@pytest.fixture(scope="session")
def report(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their page."""
    return write_report(results, tmp_path_factory.mktemp("page"), make_findings(results))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium; what playwright would download is not needed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; a complaint of the browser, or a request for anything but the page itself, fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def opened(width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: ask(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn]")
        return page

    def ask(url: str) -> None:
        if url != report.as_uri() and not url.startswith(("data:", "blob:")):
            complaints.append(f"request of {url}")

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
