"""The page in a real browser, light and dark, on a phone and on a desk, with axe-core: Debian's
Chromium by playwright. Skipped where one of the three is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from edgetune.report.page.page import make_page, to_page
from edgetune.report.page.shown import Shown
from edgetune.report.schema import parse_report
from edgetune.report.verdict import judge
from tests.report.full import failing, full

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = [name for name in ("playwright", "axe_playwright_python") if find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}"),
]
VIEWS = {"phone": {"width": 360, "height": 780}, "desktop": {"width": 1280, "height": 900}}
# Best practices too, not the conformance rules alone.
AXE = "axe.run(document, {resultTypes: ['violations']})"
OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"


# Few items: axe looks at every cell.
FEW: dict[str, Any] = {"items": 24, "wrong": range(12)}


def compared() -> str:
    reports = [parse_report(value) for value in (full(**FEW), failing(**FEW))]
    return make_page([Shown(r.identifier, r, judge(r)) for r in reports])


PAGES = {
    "full": lambda: to_page(full(**FEW)),
    "failing": lambda: to_page(failing(**FEW)),
    "compared": compared,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A container's root has no sandbox; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, folder: Path, text: str, **options: Any) -> Iterator[Any]:
    """The page from a file; every request and every complaint of the browser is kept."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(**options)
    page = context.new_page()
    page.asked, page.said, page.failed = [], [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("requestfailed", lambda request: page.failed.append((request.url, request.failure)))
    page.on("console", lambda message: page.said.append(message.text))
    page.goto(file.as_uri())
    yield page
    context.close()


def violations(page: Any) -> list[str]:
    from axe_playwright_python.base import AXE_FILE_PATH

    page.evaluate(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
    found = page.evaluate(AXE)["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found for node in v["nodes"]]


@pytest.mark.parametrize(("view", "scheme"), [("phone", "dark"), ("desktop", "light")])
@pytest.mark.parametrize("name", PAGES)
def test_it_is_accessible_and_fits(
    browser: Any, tmp_path: Path, name: str, view: str, scheme: str
) -> None:
    options = {"viewport": VIEWS[view], "color_scheme": scheme}
    with opened(browser, tmp_path, PAGES[name](), **options) as page:
        for state in ("closed", "open"):
            if state == "open":
                page.evaluate(OPEN)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= VIEWS[view]["width"], state
        assert violations(page) == []
        assert [Path(url).name for url in page.asked] == ["page.html"]
        assert page.said == []
        # No text of a plot stands outside of it.
        outside = page.evaluate(
            """[...document.querySelectorAll('svg.plot text')].filter(text => {
                const own = text.getBoundingClientRect()
                const plot = text.closest('svg').getBoundingClientRect()
                return own.width && (own.left < plot.left - 8 || own.right > plot.right + 8)
            }).map(text => text.textContent)"""
        )
        assert outside == []


def test_a_bad_page_is_found(browser: Any, tmp_path: Path) -> None:
    """What the test above relies on."""
    bad = (
        to_page(full(**FEW)).replace(' lang="en"', "").replace("--soft: #555b68", "--soft: #d0d0d0")
    )
    bad = bad.replace("<h2>Size</h2>", "<h5>Size</h5><div style='width: 900px'>wide</div>")
    with opened(browser, tmp_path, bad, viewport=VIEWS["phone"], color_scheme="light") as page:
        rules = {line.partition(":")[0] for line in violations(page)}
        assert {"html-has-lang", "color-contrast", "heading-order"} <= rules


def test_nothing_of_a_hostile_report_runs_or_loads(browser: Any, tmp_path: Path) -> None:
    value = full()
    attack = "</blockquote><img src='http://127.0.0.1:9/x'><script>document.title='owned'</script>"
    value["identifier"] = value["variant"] = attack
    for row in value["examples"]:
        row.update(prompt=attack, reference=attack, package=f"{attack} more")
    with opened(browser, tmp_path, to_page(value)) as page:
        assert page.title() != "owned"
        assert [url for url in page.asked if not url.startswith("file:")] == []
    # As if escaping had failed: the policy holds alone, and nothing leaves the browser.
    with opened(
        browser, tmp_path, to_page(full()).replace("<footer>", f"{attack}<footer>")
    ) as page:
        assert page.title() != "owned"
        assert page.failed == [("http://127.0.0.1:9/x", "csp")]


def test_what_a_screen_reader_hears_first(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, to_page(failing()), java_script_enabled=False) as page:
        heading = page.get_by_role("heading").first
        assert heading.text_content() == "Fail: demo-erased@raspberry-pi-5"
        names = page.get_by_role("img").all()
        assert all(len(name.get_attribute("aria-label")) > 20 for name in names)
        marks = page.locator("mark").all()
        assert [m.text_content().partition(":")[0] for m in marks] == ["first difference"] * 4


def test_it_prints_without_losing_a_column(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, to_page(full()), viewport=VIEWS["desktop"]) as page:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 720, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        assert page.pdf(format="A4").startswith(b"%PDF")
