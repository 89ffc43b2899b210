"""The house itself: small rooms, short files, `__init__.py` files that only say what their room is for.

The arrows between rooms, and that there is no circle, is import-linter's to hold; whose private parts may be touched where,
ruff's (both in `make check`).
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("bitlora", "sweeps", "reports", "tests", "docs")
FILES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))
PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] in TOPS[:3]]
MODULES = 12
LINES = 400


def test_no_folder_has_more_than_twelve_modules():
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in FILES if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > MODULES} == {}


def test_no_file_is_past_400_lines():
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > LINES} == {}


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in PRODUCT}), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_a_room_says_its_one_job_in_a_sentence_and_does_nothing_else(folder):
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert len(body) == 1
    sentence = ast.literal_eval(body[0].value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_every_module_says_what_it_is_for():
    assert [
        path.relative_to(ROOT).as_posix() for path in PRODUCT if not ast.get_docstring(ast.parse(path.read_text()))
    ] == []


def test_what_starts_ray_or_takes_long_lies_where_make_looks_for_it():
    places = re.search(r"^ON_RAY := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    marked = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^[^#\n]*\bmark\.(cluster|slow)\b", path.read_text(), re.MULTILINE)
    ]
    assert len(marked) > 10
    assert [name for name in marked if not name.startswith(tuple(f"{place}/" for place in places))] == []


def test_classes_have_names_of_their_own():
    names = Counter(
        node.name for path in PRODUCT for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_time_outs_stand_in_one_file():
    """No number of seconds beside `timeout`, `sleep` or `wait`, and no constant of seconds, but in bitlora/timeouts.py."""
    found = []
    for path in PRODUCT:
        if path == ROOT / "bitlora" / "timeouts.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"(timeout\w*=|sleep\(|\.wait\()\d|^[A-Z_]+_S(: Final)? = ", line):
                found.append(f"{path.relative_to(ROOT).as_posix()}:{number}: {line.strip()}")
    assert found == []


def test_every_time_out_has_its_reason():
    body = ast.parse((ROOT / "bitlora" / "timeouts.py").read_text()).body
    constants = [number for number, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    for number in constants:
        after = body[number + 1]
        shared = isinstance(after, ast.AnnAssign)  # two that belong together, the reason under the second
        node = body[number + 2] if shared else after
        assert isinstance(node, ast.Expr)
        assert isinstance(node.value, ast.Constant), ast.unparse(body[number])
