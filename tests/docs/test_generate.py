"""The generated parts of the documentation: there, whole and not stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from bitlora.config.trial import AXES
from bitlora.quantizers.weights import QUANTIZERS
from sweeps.spec.spec import Spec
from sweeps.spec.validate import dotted_keys

ROOT = Path(__file__).parents[2]


def test_no_page_is_stale_and_writing_them_needs_neither_torch_nor_ray():
    """In a process of its own, with another order of hashes: the same bytes each time."""
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--check']\n"
        "try: runpy.run_path('docs/generate.py', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "print(sorted({'torch', 'ray', 'optuna'} & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_stale_page_is_noticed(docs):
    page = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert docs.filled(page) == page
    assert docs.filled(page.replace("| `rank` | a whole number", "| `rank` | a number")) == page
    assert docs.filled(page.replace("Only `base.model`", "But `base.model`")) != page  # by hand: left alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: nothing -->\n<!-- end of nothing -->", "no part is called 'nothing'"),
        ("<!-- generated: axes -->\n", "a generated part has no end"),
        ("<!-- generated: refused keys -->\n<!-- end of refused keys -->", "the first line of a page"),
    ],
)
def test_a_page_that_is_marked_wrongly(docs, text, message):
    with pytest.raises(ValueError, match=message):
        docs.filled(text)


def test_every_part_stands_on_a_page(docs):
    text = "".join(page.read_text(encoding="utf-8") for page in docs.pages())
    assert [name for name in docs.PARTS if f"<!-- generated: {name} -->" not in text] == []


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Section -> key -> the other cells of its line."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in text.split("### ")[1:]:
        head, *lines = part.splitlines()
        rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines if line.startswith("| `")]
        found[head.strip("`")] = {key.strip("`"): cells for key, *cells in rows}
    return found


def test_every_key_of_a_spec_has_its_line_and_a_meaning(docs):
    found = tables(docs.keys())
    for key in dotted_keys(Spec):
        section, _, name = key.rpartition(".")
        value, default, meaning = found[section or "The file"][name]
        assert value
        assert default or value == "a mapping", key
        assert meaning.endswith("."), f"{key}: a docstring under the field, please"
    assert sum(map(len, found.values())) == len(list(dotted_keys(Spec)))


def test_defaults_are_those_that_a_spec_gets(docs):
    found = tables(docs.keys())
    assert found["train"]["steps"][1] == "`32`"
    assert found["train"]["epochs"][1] == "`null`"
    assert found["base"]["model"][1] == "required"
    assert found["resources.packs"]["max"][1] == "required"
    assert found["search"]["space"][1] == "`{}`"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Field(ge=1)] | None, "a whole number of at least 1, or `null`"),
        (Annotated[float, Field(gt=0.0, lt=1.0)], "a number above 0 and below 1"),
        (Literal["auto"] | Annotated[int, Field(ge=1)], "`auto`, or a whole number of at least 1"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (str | list[str], "text, or a list of texts"),
        (bool, "true or false"),
    ],
)
def test_a_type_in_words(docs, annotation, words):
    assert docs.in_words(annotation) == words


def test_every_axis_and_every_quantizer_has_its_line(docs):
    assert re.findall(r"^\| `(\w+)`", docs.axes(), re.MULTILINE) == [*AXES]
    assert re.findall(r"^\| `(\w+)`", docs.quantizers(), re.MULTILINE)[1:] == [*QUANTIZERS]
    bits = {line.split("|")[1].strip(" `"): line.split("|")[-2].strip() for line in docs.quantizers().splitlines()}
    assert bits["none"] == "16"
    assert bits["binary"] == "1"
    assert bits["ternary"] == "1.6"
    assert bits["int4"] == "4"
    assert bits["double_binary"] == "1, and 16 for each row"


def test_every_module_and_every_room_is_on_the_map(docs):
    text = docs.code_map()
    for package in docs.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            place = file.relative_to(ROOT).as_posix()
            if file.name != "__init__.py":
                assert f"[{file.name}](../{place}) | " in text, place
            elif file.parent.name != package:
                assert f"**{file.parent.name}/**" in text, place
    assert not re.search(r"\| +\|$", text, re.MULTILINE)  # none without its one job
