from __future__ import annotations

import pytest

from reports.document.document import plain
from reports.writers.markdown import escape


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
