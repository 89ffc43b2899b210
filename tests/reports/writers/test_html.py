from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest

from reports.document.document import (
    NOTHING,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Heading,
    Listing,
    Paragraph,
    Strong,
    Table,
    plain,
)
from reports.writers.html import anchors, html

VOID = {"meta", "source", "img", "br", "hr", "link", "input"}
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onclick='alert(1)",
    "]]>",
    "--><b>",
    "{{ 7 * 7 }}{% raw %}",
    "</pre></code></style></script></title>",
    "a|b & c &amp; d",
    "שלום 42",
    plain("שלום 42"),
    "\u202etxt.exe",
]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text>é–</text></svg>'


class Page(HTMLParser):
    """A page as its parser sees it: every tag with its attributes, and the text inside the tags that are open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((tuple(self.open), data))

    def text(self, tag: str) -> list[str]:
        """The pieces of text inside `tag`."""
        return [data for opened, data in self.texts if tag in opened]

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def everywhere(said: str) -> Document:
    """A document that says `said` in every place there is."""
    table = Table("names", (Column(said), Column("n", right=True)), ((Cell(said), Cell(said, said + "!")),))
    parts = (said, Strong(said), Code(said))
    blocks = (
        Heading(2, said),
        Paragraph(parts),
        Paragraph(parts, note=True),
        Bullets((parts,)),
        Listing(said, said),
        table,
        Figure("drawn", said, said),
        Figure("not-drawn", said, said),
    )
    return Document(said, (*blocks, *blocks))


def page(*blocks, title: str = "Sweep", figures: dict[str, tuple[str, str]] | None = None) -> Page:
    return Page(html(Document(title, blocks), figures or {}))


@pytest.mark.parametrize("said", NASTY)
def test_text_means_itself_wherever_it_stands(said):
    figures = {"drawn": (SVG, SVG)}
    found, harmless = (Page(html(everywhere(text), figures)) for text in (said, "harmless"))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attributes) for _, attributes in found.tags] == [sorted(a) for _, a in harmless.tags]
    assert found.text("title") == found.text("h1") == [said]
    assert found.text("th")[0] == found.text("td")[0] == found.text("td")[1] == said
    assert found.named("td")[1]["data-text"] == said + "!"
    assert found.text("pre") == [said, said]
    assert found.text("strong")[0] == found.text("p")[0] == said
    assert [image["alt"] for image in found.named("img")] == [said, said]
    assert [code["class"] for code in found.named("code") if code] == [f"language-{said}"] * 2


def test_newlines_stay_in_code_and_in_what_is_said_instead_of_a_figure():
    code = "\n\tfor a in b:\n\n        print('<')\n"
    found = page(Listing("python", code), Figure("f", 'one\n"two"', "c"), figures={"f": (SVG, SVG)})
    assert found.text("code") == [code]
    assert found.named("img")[0]["alt"] == 'one\n"two"'


def test_no_resource_is_outside_the_page():
    text = html(everywhere("https://example.org/a.png"), {"drawn": (SVG, SVG)})
    found = Page(text)
    refers = {"src", "srcset", "href", "action", "data", "poster", "xlink:href", "formaction", "background"}
    values = [held for _, attributes in found.tags for name, held in attributes.items() if name in refers]
    assert values
    assert all(held is not None and held.startswith(("data:image/svg+xml;base64,", "#")) for held in values)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found.tags}
    style, script = found.text("style")[0], found.text("script")[0]
    for constant in (style, script):
        assert "http" not in constant
        assert "url(" not in constant
        assert "@import" not in constant
    policy = next(meta for meta in found.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    assert found.tags.index(("meta", policy)) == 3  # after html, head and the charset, before all that could load


def test_nothing_of_the_document_reaches_the_script_or_the_style():
    plain_page, said = (html(Document(title, (Paragraph((title,)),)), {}) for title in ("a", "</style>b"))
    for tag in ("style", "script"):
        assert Page(plain_page).text(tag) == Page(said).text(tag)


def test_the_same_document_gives_the_same_bytes():
    figures = {"drawn": (SVG, SVG), "b": (SVG, SVG)}
    backwards = dict(reversed(figures.items()))
    assert html(everywhere("x"), figures) == html(everywhere("x"), backwards)


def test_a_figure_has_a_light_and_a_dark_drawing():
    dark = SVG.replace("é", "à")
    found = page(Figure("f", "what it shows", "what to look at"), figures={"f": (SVG, dark)})
    image, source = found.named("img")[0], found.named("source")[0]
    assert image["alt"] == "what it shows"
    assert source["media"] == "(prefers-color-scheme: dark)"
    for uri, drawing in ((image["src"], SVG), (source["srcset"], dark)):
        assert uri is not None
        assert base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode() == drawing
    assert found.text("figcaption") == ["what to look at"]


def test_a_figure_without_a_drawing_says_so():
    found = page(Figure("f", "what it shows", "what to look at"))
    assert found.text("figcaption") == ["what to look at ", "This figure could not be drawn."]
    assert found.named("img") == []


def test_the_title_stands_on_top_unless_a_heading_does():
    assert page(Paragraph(("a",)), title="T").text("h1") == ["T"]
    found = page(Heading(1, "H"), Paragraph(("a",)), title="T")
    assert found.text("h1") == ["H"]
    assert found.text("title") == ["T"]


def test_contents_link_to_sections_and_ids_are_unique():
    again = Heading(2, "Results")
    deep = (Heading(3, "Deep"), Heading(3, "Results"))
    found = page(Paragraph(("lead",)), again, *deep, again, Heading(2, "† – !"), Heading(2, "זמן"))
    assert [link["href"] for link in found.named("a")] == ["#results", "#results-3", "#section", "#זמן"]
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert ids == ["results", "deep", "results-2", "results-3", "section", "זמן"]
    assert found.text("nav") == ["Results", "Results", "† – !", "זמן"]


def test_anchors_never_meet():
    assert anchors(["a", "a", "a-2", "A 2", "!"]) == ["a", "a-2", "a-2-2", "a-2-3", "section"]


def test_no_contents_without_sections():
    assert page(Paragraph(("a",))).named("nav") == []
    assert page().text("h1") == ["Sweep"]


def test_a_cell_says_what_it_is_sorted_by():
    cells = [
        Cell("1,000", 1000),
        Cell("2.7e-4", 2.7e-4),
        Cell("t2"),
        Cell("nf4", "nf4"),
        Cell("int8 weights", "int8"),
        Cell(NOTHING),
        Cell(NOTHING, float("nan")),
        Cell(NOTHING, 0.0),
        Cell("yes", True),
        Cell("x" * 41),
    ]
    columns = tuple(Column(str(index), right=index == 0) for index in range(len(cells)))
    assert page(Table("cells", columns, (tuple(cells),))).named("td") == [
        {"class": "right", "data-number": "1000"},
        {"data-number": "0.00027"},
        {},
        {},
        {"data-text": "int8"},
        {"class": "missing", "data-missing": ""},
        {"class": "missing", "data-missing": ""},
        {"data-number": "0"},
        {"data-number": "1"},
        {"class": "long"},
    ]


def test_every_row_is_in_the_page_and_headers_are_headers():
    rows = tuple((Cell(f"t{index}"), Cell(str(index), index)) for index in range(1200))
    found = page(Table("all-trials", (Column("trial"), Column("n", right=True)), rows, shown=30))
    assert len(found.named("tr")) == 1201
    assert not any("hidden" in row for row in found.named("tr"))  # without the script all are seen
    assert found.named("th") == [{"scope": "col"}, {"scope": "col", "class": "right"}]
    assert found.named("table") == [{"aria-label": "all trials"}]
    assert found.text("button") == ["Show all 1,200 rows"]
    assert "hidden" in found.named("button")[0]  # the script shows it


def test_a_table_that_is_shown_whole_has_no_button():
    rows = tuple((Cell(str(index)),) for index in range(3))
    assert page(Table("few", (Column("n"),), rows, shown=3)).named("button") == []
    assert page(Table("none", (Column("n"),), ())).named("td") == []


def test_numbers_are_not_broken_and_words_are_not_changed():
    found = page(Paragraph(("from 1e-4 to 5.0e-3, 0.67 % below",)))
    assert "".join(found.text("p")) == "from 1e-4 to 5.0e-3, 0.67 % below"
    assert found.text("span") == ["1e-4", "5.0e-3", "0.67 %"]


def test_landmarks_and_language():
    found = page(Heading(2, "A"))
    assert found.named("html") == [{"lang": "en"}]
    assert [len(found.named(tag)) for tag in ("header", "main", "nav", "h1")] == [1, 1, 1, 1]
    assert found.named("nav")[0]["aria-label"] == "Contents"
