from __future__ import annotations

import pytest

from reports.document.document import Document, Fold, Heading, Paragraph, plain
from reports.writers.markdown import escape, markdown


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("&amp;", "&amp;amp;"),
        ("one\r\ntwo\u2028three\x00\ttab", "one two three tab"),
        ("`code` *bold* ~~gone~~ [link](x) back\\slash", r"\`code\` \*bold\* \~\~gone\~\~ \[link\](x) back\\slash"),
        ("learning_rate _it_", r"learning_rate \_it\_"),
        ("שלום", "\u2068שלום\u2069"),
        ("right\u202eto left\u202c", "rightto left"),
        ("half \ud800", "half ?"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_text_means_only_itself(given, drawn):
    assert escape(plain(given)) == drawn


def test_what_can_be_skipped_is_folded_as_github_renders_it():
    """Inside `<details>` Markdown is read again after an empty line, and not before."""
    fold = Fold("Two <of> them", (Paragraph(("one",)), Paragraph(("two",))))
    assert markdown(Document("T", (Heading(2, "H"), fold, Paragraph(("after",))))) == (
        "# T\n\n## H\n\n<details>\n<summary>Two &lt;of&gt; them</summary>\n\none\n\ntwo\n\n</details>\n\nafter\n"
    )
