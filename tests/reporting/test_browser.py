"""Pages in a real browser: no complaint, nothing to scroll sideways, and what a reader presses works.

``make test-browser`` installs what these tests need; elsewhere they are skipped.
"""

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WIDTHS = (1280, 420)
HEIGHT = 900
QUICKSTART = Path(__file__).parents[2] / "reports" / "quickstart" / "report.html"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: chromium is not on the PATH"),
    # Playwright keeps an event loop of its own.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

#: What can be scrolled sideways: the page, and every box in it that would show a bar.
SIDEWAYS = """() => {
  const page = document.documentElement;
  const boxes = [...document.querySelectorAll("main *")].filter((box) =>
    ["auto", "scroll"].includes(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth + 1);
  return [page.scrollWidth - page.clientWidth, boxes.map((box) => box.ariaLabel || box.className)];
}"""
#: Words in <main> before its first figure.
WORDS = """() => {
  const main = document.querySelector("main");
  const figure = main.querySelector("figure, svg, img, canvas");
  const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  let text = "";
  while (walker.nextNode()) {
    if (figure.compareDocumentPosition(walker.currentNode) & Node.DOCUMENT_POSITION_FOLLOWING) break;
    text += " " + walker.currentNode.textContent;
  }
  return text.trim().split(/\\s+/).length;
}"""
#: The contrast of text with what is behind it, of every element that holds text: the lowest, and whose it is.
CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let lowest = [21, ""];
  for (const element of document.querySelectorAll("main *, nav *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    let behind = element;
    let colour = parse(getComputedStyle(behind).backgroundColor);
    while (colour.length === 4 && colour[3] === 0 && (behind = behind.parentElement)) {
      colour = parse(getComputedStyle(behind).backgroundColor);
    }
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(colour)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, element.outerHTML.slice(0, 120)];
  }
  return lowest;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; the test fails where the browser complained of anything by its end."""
    complaints: list[str] = []
    pages = []

    def opened(path: Path, width: int = 1280, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": HEIGHT}, **options)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    # WebGL by software says how slow reading pixels is.
    assert [one for one in complaints if "GPU stall" not in one and "willReadFrequently" not in one] == []


def quickstart_page() -> Path:
    if not QUICKSTART.exists():
        pytest.skip("no page of the quickstart: make quickstart")
    return QUICKSTART


@pytest.fixture(params=["hostile names", "quickstart"])
def report(request: pytest.FixtureRequest, study: Path) -> Path:
    return quickstart_page() if request.param == "quickstart" else study / "report.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways(visit, report, width):
    page = visit(report, width)
    page.evaluate("document.querySelectorAll('details:not(.surfaces)').forEach((one) => { one.open = true; })")
    assert page.evaluate(SIDEWAYS) == [0, []]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_figure_is_on_the_first_screen(visit, report, width):
    page = visit(report, width)
    box = page.locator("main figure").first.bounding_box()
    assert box["y"] > 0
    assert box["y"] + box["height"] <= HEIGHT
    assert page.evaluate(WORDS) <= 120
    heading = page.locator("h1").bounding_box()
    assert heading["y"] < box["y"]


def test_the_chart_answers_to_the_mouse_and_the_keyboard(visit, report):
    page = visit(report)
    row = page.locator(".chart .row").first
    tip = row.locator(".tip")
    assert not tip.is_visible()
    row.hover()
    assert tip.is_visible()
    assert "clean" in tip.inner_text()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.chart .row')"):
            break
    assert tip.is_visible()
    assert page.evaluate("document.activeElement.ariaLabel").startswith(row.locator(".name").inner_text())


def test_a_claim_opens_by_key_and_by_its_code(visit, report):
    page = visit(report)
    claim = page.locator("details.claim").first
    table = claim.locator("table")
    assert not table.is_visible()
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    assert table.is_visible()
    link = page.locator("main a.code[href^='#claim-']").first
    target = page.locator(f"[id='{link.get_attribute('href')[1:]}']")
    link.click()
    page.wait_for_function("(id) => document.getElementById(id).open", arg=target.get_attribute("id"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(visit, report, scheme):
    page = visit(report, color_scheme=scheme)
    lowest, where = page.evaluate(CONTRAST)
    assert lowest >= 4.5, where
    page.locator("#theme").click()
    lowest, where = page.evaluate(CONTRAST)
    assert lowest >= 4.5, where


def test_headings_are_in_order_and_pictures_have_words(visit, report):
    page = visit(report)
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.images].every((one) => one.alt.length > 10 && one.naturalWidth > 0)")


def test_tables_sort_by_hand_and_by_key(visit, study):
    page = visit(study / "report.html")
    head = page.locator("#table-1 th.number").first
    name = page.locator("#table-1 th").first

    def lines() -> list[str]:
        return page.locator("#table-1 tbody tr td:first-child").all_inner_texts()

    first = lines()
    for order in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert lines() == first, "equal values stay in order"
    name.locator("button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-sort") == "descending"
    assert head.get_attribute("aria-sort") == "none"
    assert lines() == sorted(first, reverse=True)


def test_saving_gives_the_file(visit, study):
    page = visit(study / "report.html")
    with page.expect_download() as download:
        page.locator("button.save[data-name='attack-attacks.csv']").click()
    assert Path(download.value.path()).read_bytes() == (study / "attack" / "attacks.csv").read_bytes()
    with page.expect_download() as download:
        page.locator("button.save[data-name='models.csv']").click()
    assert Path(download.value.path()).read_text().splitlines()[0].startswith('"Model","Mode","Clean"')


def test_surfaces_are_drawn_when_opened(visit, study):
    page = visit(study / "report.html")
    assert page.evaluate("typeof Plotly") == "undefined"
    surface = page.locator("details.surfaces").first
    surface.locator("summary").click()
    surface.locator(".plot canvas").nth(1).wait_for()
    assert surface.locator("option").count() == 2
    assert surface.locator("figcaption").all_inner_texts() == [
        "</script><img src=x onerror=alert(1)>",
        "\"&'<!--{{ 7 * 7 }}",
    ]
    assert surface.locator(".message").inner_text() == ""


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser, study, tmp_path):
    text = (study / "report.html").read_text()
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", "<script>document.title = 'taken';</script></body>"))
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert page.title() != "taken"
    assert any("Content Security Policy" in one for one in complaints)
    page.close()


def test_the_quickstart_prints_on_at_most_twenty_pages(visit):
    content = visit(quickstart_page()).pdf()
    assert 5 < content.count(b"/Type /Page\n") <= 20
