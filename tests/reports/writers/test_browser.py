"""The page in a browser: what its script, its style and its policy do."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from reports.document.document import (
    NOTHING,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Fold,
    Heading,
    Listing,
    Paragraph,
    Strong,
    Table,
    plain,
)
from reports.writers.html import html

pytestmark = pytest.mark.browser

SHOWN, ROWS = 5, 12
LOSSES = [2.9, 10.5, None, 2.71, 2.8, 3.0, float("nan"), 2.75, 100.0, 2.72, 2.6, 2.95]
NAMES = ["t10", "t9", "T2", "t1", NOTHING, "é", "a", "<script>alert(1)</script>", "t3", "t20", "b", plain("שלום 7")]
LONG = "a_name_that_a_script_made_of_every_hyperparameter=and_its_value," * 4
CODE = "bitlora sweep runs/quickstart/sweep.yaml --out runs/quickstart-again " + "--flag " * 30 + "\nsecond line\n"

PLANE = [0.1, 0.2, 0.9, 0.8, [0, 10], [2, 3]]
"""Of the drawing: from 90 to 810 pixels across, and from 60 (3 nats) to 240 (2 nats) down."""
CURVES = [["t1", "none; rank 8", [0, 5, 10], [3, 2.5, 2.25]], ["t2", "<b>; rank 16", [0, 5], [3, 2.75]]]
"""Their last points are at (810, 195) and (450, 105)."""

Open = Callable[..., Page]


def drawing(colour: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"><style>text { fill: gray }</style>'
        f'<rect width="900" height="300" fill="{colour}"/></svg>'
    )


def document() -> Document:
    cells = [
        (Cell(f"{index}", index), Cell(name), Cell(NOTHING) if loss is None or loss != loss else Cell(f"{loss}", loss))
        for index, (name, loss) in enumerate(zip(NAMES, LOSSES, strict=True))
    ]
    columns = (Column("#", right=True), Column("trial"), Column("eval loss", right=True))
    wide = Table(
        "wide",
        tuple(Column(f"hyperparameter {index}", right=index > 0) for index in range(20)),
        tuple((Cell(LONG), *(Cell("0.000675", 6.75e-4) for _ in range(19))) for _ in range(3)),
    )
    blocks = (
        Paragraph((Strong(LONG), " won, see ", Code(LONG))),
        Heading(2, "Leaderboard"),
        Table("leaderboard", columns, tuple(cells), shown=SHOWN),
        Heading(2, LONG),
        Bullets(((LONG,),)),
        wide,
        Figure("curves", 'Two "lines" <falling>', LONG),
        Figure("none", "none", "A caption alone"),
        Listing("sh", CODE),
        Listing("text", LONG),
        Heading(2, "Asides"),
        Fold("What can be skipped", (Paragraph(("An aside.",)),)),
    )
    return Document("Sweep <quickstart>", blocks)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page; options are those of a browser context. Nothing may go wrong, and nothing be asked for."""
    path = tmp_path / "report.html"
    drawn = {"curves": (drawing("#ff0000"), drawing("#0000ff"))}
    page_text = html(document(), drawn, {"curves": {"plane": PLANE, "lines": CURVES}})
    path.write_text(page_text, encoding="utf-8")
    asked: list[str] = []
    wrong: list[str] = []
    contexts: list[BrowserContext] = []

    def open_page(**options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert {url for url in asked if not url.startswith("data:image/svg+xml;")} == {path.as_uri()}


def leaderboard(page: Page) -> Locator:
    return page.locator(".table").first


def header(page: Page, name: str) -> Locator:
    return leaderboard(page).get_by_role("button", name=name, exact=True)


def order(page: Page) -> list[int]:
    """The rows' places in the document, in the order in which they stand now."""
    return [int(text) for text in leaderboard(page).locator("tbody td:first-child").all_text_contents()]


def seen(page: Page) -> int:
    return sum(row.is_visible() for row in leaderboard(page).locator("tbody tr").all())


def sorting(page: Page) -> list[str | None]:
    return [head.get_attribute("aria-sort") for head in leaderboard(page).locator("th").all()]


GIVEN = list(range(ROWS))
UP = [10, 3, 9, 7, 4, 0, 11, 5, 1, 8]
MISSING = [2, 6]


def test_a_header_sorts_up_then_down_then_not(visit):
    page = visit()
    assert order(page) == GIVEN
    for wanted, said in [(UP + MISSING, "ascending"), (UP[::-1] + MISSING, "descending"), (GIVEN, None)] * 2:
        header(page, "eval loss").click()
        assert order(page) == wanted
        assert sorting(page) == [None, None, said]


def test_words_sort_as_people_count_and_one_column_sorts_at_a_time(visit):
    page = visit()
    header(page, "eval loss").click()
    header(page, "trial").click()
    up = [NAMES[index] for index in order(page)]
    assert up == [NAMES[7], "a", "b", "é", "t1", "T2", "t3", "t9", "t10", "t20", NAMES[11], NOTHING]
    assert sorting(page) == [None, "ascending", None]
    header(page, "trial").click()
    assert [NAMES[index] for index in order(page)] == [*up[:-1][::-1], NOTHING]


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_sorts_and_focus_is_seen(visit, key):
    page = visit()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "eval loss":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press(key)
    assert order(page) == UP + MISSING
    assert page.evaluate("document.activeElement.textContent") == "eval loss"


def test_the_long_tail_is_folded_until_asked_for(visit):
    page = visit()
    more = leaderboard(page).locator(".more")
    assert seen(page) == SHOWN
    header(page, "eval loss").click()
    assert seen(page) == SHOWN
    assert [row.is_visible() for row in leaderboard(page).locator("tbody tr").all()] == [True] * 5 + [False] * 7
    assert more.text_content() == "Show all 12 rows"
    more.click()
    assert seen(page) == ROWS
    assert order(page) == UP + MISSING
    assert more.get_attribute("aria-expanded") == "true"
    more.click()
    assert seen(page) == SHOWN


def test_without_scripts_all_is_there_and_nothing_to_click(visit):
    page = visit(java_script_enabled=False)
    assert seen(page) == ROWS
    assert page.locator("button:visible").count() == 0
    assert leaderboard(page).locator("th").all_text_contents() == ["#", "trial", "eval loss"]


def test_dark_and_light_follow_the_reader(visit):
    looks = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        picked = page.locator("img").evaluate("image => [image.currentSrc, image.naturalWidth, image.alt]")
        source = page.locator("picture source").get_attribute("srcset")
        looks[scheme] = (background, picked[0], source)
        assert picked[1:] == [900, 'Two "lines" <falling>']
    assert looks["light"][0] == "rgb(255, 255, 255)"
    assert looks["dark"][0] == "rgb(13, 17, 23)"
    assert looks["dark"][1] == looks["dark"][2] != looks["light"][1]


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(visit, width):
    page = visit(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.body.getBoundingClientRect().width") <= 1000
    wide = page.locator(".table .scroll").nth(1)
    assert wide.evaluate("box => box.scrollWidth > box.clientWidth")  # it scrolls by itself


def test_code_is_copied_as_it_stands(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    button = page.locator(".copy").first
    button.click()
    page.wait_for_function("document.querySelector('.copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == CODE


def test_no_copy_button_without_a_clipboard(visit):
    page = visit()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.reload()
    assert page.locator(".copy:visible").count() == 0
    assert page.locator(".more:visible").count() == 1


def test_on_paper_rows_are_all_there_and_buttons_are_not(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert seen(page) == ROWS
    assert page.locator(".more:visible, .copy:visible, nav:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"


def test_paper_gets_the_light_drawing(visit):
    page = visit(color_scheme="dark")
    streams = re.findall(rb"stream\r?\n(.*?)endstream", page.pdf(), re.DOTALL)
    drawn = b"".join(zlib.decompress(stream) for stream in streams if stream.startswith(b"x"))
    assert b"1 0 0 rg" in drawn
    assert b"0 0 1 rg" not in drawn
    image = page.locator("img")
    assert image.evaluate("image => image.currentSrc") == page.locator("picture source").get_attribute("srcset")


def test_contents_lead_to_the_sections(visit):
    page = visit()
    link = page.get_by_role("navigation").get_by_role("link").first
    assert link.text_content() == "Leaderboard"
    link.click()
    assert page.locator("h2:target").text_content() == "Leaderboard"
    assert page.get_by_role("navigation").get_by_role("link").count() == 3


def filtered(page: Page) -> Locator:
    return leaderboard(page).get_by_role("searchbox")


def left(page: Page) -> list[int]:
    """The places of the rows that are seen."""
    rows = leaderboard(page).locator("tbody tr").all()
    return [int(row.locator("td").first.text_content()) for row in rows if row.is_visible()]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ("t1", [0, 3]),  # t10 and t1
        ("T 2.7", [3, 7, 9]),  # each word is somewhere in the row
        ("eval_loss<2.75", [3, 9, 10]),
        ("eval_loss<=2.75 t", [3, 7, 9]),
        ("trial=t1", [3]),
        ("#>=10", [10, 11]),
        ("eval_loss=2.9", [0]),
        ("eval_loss<", []),
        ("nowhere<3", []),
    ],
)
def test_a_filter_leaves_the_rows_that_have_all_it_asks(visit, asked, rows):
    page = visit()
    filtered(page).fill(asked)
    assert left(page) == rows
    assert leaderboard(page).locator("output").text_content() == f"{len(rows)} of 12 rows"
    assert leaderboard(page).locator(".more").is_hidden()


def test_a_filter_goes_with_sorting_and_folding_and_is_undone_by_the_keyboard(visit):
    page = visit()
    filtered(page).press_sequentially("eval_loss>2.6")
    assert left(page) == [0, 1, 3, 4, 5]  # the first five of nine
    header(page, "eval loss").click()
    assert left(page) == [3, 9, 7, 4, 0]
    leaderboard(page).locator(".more").click()
    assert left(page) == [index for index in UP if index != 10]
    filtered(page).press("Escape")
    assert (filtered(page).input_value(), left(page)) == ("", UP + MISSING)
    assert leaderboard(page).locator("output").text_content() == ""
    assert page.locator(".table").nth(1).locator(".filter").count() == 0  # of three rows


def tip(page: Page) -> tuple[str, str] | None:
    """What is said of a curve: whose it is and where, and the trial in words."""
    found = page.locator(".tip")
    if not found.is_visible():
        return None
    return found.locator("strong").text_content(), found.evaluate("tip => tip.lastChild.textContent")


def point(page: Page, x: float, y: float) -> None:
    """Move the pointer to a place on the drawing, in its own pixels."""
    box = page.locator("img").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + x * box["width"] / 900, box["y"] + y * box["height"] / 300)


@pytest.mark.parametrize("width", [1280, 700])
def test_the_curve_under_the_pointer_says_whose_it_is(visit, width):
    page = visit(viewport={"width": width, "height": 900})
    page.locator("img").scroll_into_view_if_needed()
    assert tip(page) is None
    point(page, 800, 198)
    assert tip(page) == ("t1: 2.2500 at step 10", "none; rank 8")
    assert page.locator(".plot polyline").is_visible()
    dot = page.locator(".plot circle").bounding_box()
    box = page.locator("img").bounding_box()
    assert dot["x"] + dot["width"] / 2 - box["x"] == pytest.approx(810 * box["width"] / 900, abs=2)
    assert dot["y"] + dot["height"] / 2 - box["y"] == pytest.approx(195 * box["height"] / 300, abs=2)
    point(page, 440, 100)
    assert tip(page) == ("t2: 2.7500 at step 5", "<b>; rank 16")
    point(page, 600, 62)  # nothing is near
    assert tip(page) is None
    point(page, 800, 198)
    page.mouse.move(0, 0)
    assert tip(page) is None


def test_the_arrow_keys_go_from_curve_to_curve_and_along_them(visit):
    page = visit()
    page.locator(".plot[data-curves]").focus()
    said = []
    arrows = [f"Arrow{way}" for way in ("Down", "Left", "Left", "Left", "Right", "Up", "Up")]
    for key in (*arrows, "Home", "End", "Escape"):
        page.keyboard.press(key)
        found = tip(page)
        said.append(found and found[0])
    low = ["t1: 2.2500 at step 10", "t1: 2.5000 at step 5", "t1: 3.0000 at step 0", "t1: 3.0000 at step 0"]
    assert said == [
        *low, "t1: 2.5000 at step 5", "t2: 2.7500 at step 5", "t2: 2.7500 at step 5",
        "t2: 2.7500 at step 5", "t1: 2.5000 at step 5", None,
    ]  # fmt: skip
    label = page.locator(".plot[data-curves]").get_attribute("aria-label")
    assert label.startswith('Two "lines" <falling>')
    assert page.locator(".tip").get_attribute("role") == "status"


def test_what_is_folded_away_is_there_and_is_printed(visit):
    page = visit()
    aside = page.get_by_text("An aside.")
    assert not aside.is_visible()
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert aside.is_visible()
    page.keyboard.press("Enter")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert aside.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not aside.is_visible()
