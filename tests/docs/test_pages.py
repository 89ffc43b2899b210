"""What the pages say is so: specs load, links lead somewhere, commands, files and names exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from sweeps.cli.app import app
from sweeps.spec.spec import Spec, load_spec
from sweeps.spec.validate import dotted_keys

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "reports" / "examples").glob("*/README.md")),
]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
PACKAGES = ("bitlora", "sweeps", "reports")
NEW = ("slowest",)
"""What a recipe makes."""


def fences(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def spans(text: str) -> list[str]:
    """Its code spans."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def prose(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


# ---- specs


def whole_specs() -> list[Any]:
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
        for page in PAGES
        for number, code in enumerate(fences(page.read_text(encoding="utf-8"), "yaml"))
        if {"base", "data"} <= (YAML(typ="safe", pure=True).load(code) or {}).keys()
    ]


@pytest.mark.parametrize("code", whole_specs())
def test_every_whole_spec_on_a_page_loads(code, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(code, encoding="utf-8")
    assert load_spec(path).name == "mine"


def test_there_are_such_specs():
    assert len(whole_specs()) >= 2


def test_the_long_spec_names_every_key():
    """But those for which it has another form: packs as a word, confirm as null, no stages, steps instead of epochs."""

    def named(node: dict[str, Any], at: str = "") -> set[str]:
        inner = [named(value, f"{at}{key}.") for key, value in node.items() if isinstance(value, dict)]
        return {f"{at}{key}" for key in node}.union(*inner)

    (code,) = fences((ROOT / "docs" / "spec.md").read_text(encoding="utf-8"), "yaml")
    left = set(dotted_keys(Spec)) - named(YAML(typ="safe", pure=True).load(code))
    assert {key for key in left if not key.startswith(("confirm.", "resources.packs.", "train.stages."))} == {
        "train.epochs"
    }


@pytest.mark.parametrize(
    "domains", [re.findall(r"^\| `(\w+: [\[{].*?)` \|", (ROOT / "docs/spec.md").read_text(), re.M)]
)
def test_the_domains_of_the_spec_page_are_domains(domains, tmp_path):
    assert len(domains) >= 4
    path = tmp_path / "spec.yaml"
    for domain in domains:
        axes = {"rank": "rank: [4, 8]", **{domain.partition(":")[0]: domain}}
        lines = "".join(f"    {one}\n" for one in axes.values())
        path.write_text(f"base: {{model: a}}\ndata: {{source: b}}\nsearch:\n  space:\n{lines}", encoding="utf-8")
        load_spec(path)


# ---- links


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for head in re.findall(r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL), re.M):
        anchor = re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
        number = next(number for number in range(100) if (f"{anchor}-{number}" if number else anchor) not in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


@EACH_PAGE
def test_every_relative_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        there = (page.parent / place) if place else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


# ---- commands


COMMANDS: Any = typer.main.get_command(app)


def command_lines(text: str) -> list[list[str]]:
    """Every `bitlora …` and `python -m sweeps …` of a page, in words."""
    code = "\n".join([*fences(text, "sh"), *spans(text)]).replace("\\\n", " ").replace("\\|", "|")
    found = re.findall(r"^(?:.*?-- )?(?:(?:\S*python) -m sweeps|bitlora)((?: [^#\n]+)?)(?:#|$)", code, re.MULTILINE)
    return [shlex.split(line.replace("'", '"')) for line in found if line.strip() and line.split()[0] != "COMMAND"]


@EACH_PAGE
def test_every_command_and_every_option_exists(page):
    for name, *rest in command_lines(page.read_text(encoding="utf-8")):
        assert name in COMMANDS.commands, name
        options = {option for one in COMMANDS.commands[name].params for option in (*one.opts, *one.secondary_opts)}
        used = [re.sub(r"[\[\]…]|=.*", "", word) for word in rest]
        assert [word for word in used if word.startswith("--") and word not in options] == [], (name, rest)


def test_commands_are_found_on_the_pages():
    found = {name for page in PAGES for name, *_ in command_lines(page.read_text(encoding="utf-8"))}
    assert found == {*COMMANDS.commands}


@EACH_PAGE
def test_every_make_target_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"^make ([\w-]+)", "\n".join([*fences(text, "sh"), *spans(text)]), re.MULTILINE)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in named if name not in targets] == []


# ---- names


def names_of(module: Path) -> set[str]:
    """What a module defines, its classes' attributes too, and what it imports."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, defined)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return found | {node.asname or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}


def exists(dotted: str) -> bool:
    """Whether `package.room.module.name` is there."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:depth])
        rest = parts[depth:]
        if place.with_suffix(".py").is_file():
            return not rest or rest[0] in names_of(place.with_suffix(".py"))
        if (place / "__init__.py").is_file():
            return not rest
    return False


ROOMS = [folder.parent.name for folder in (ROOT / "bitlora").glob("*/__init__.py")]


@EACH_PAGE
def test_every_name_of_the_code_is_one(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # of its tables the last column: what is
        text = "\n".join(line.rpartition(" | ")[2] if line.startswith("|") else line for line in text.splitlines())
    dotted = [span for span in spans(text) if re.fullmatch(r"\w+(\.\w+)+", span)]
    ours = [span for span in dotted if span.split(".")[0] in PACKAGES and span.split(".")[-1] not in ("md", "py")]
    short = [f"bitlora.{span}" for span in dotted if span.split(".")[0] in ROOMS and span.count(".") > 1]
    assert [name for name in (*ours, *short) if not exists(name) and not name.endswith(NEW)] == []
    for module, names in re.findall(r"^from (\S+) import (.+)$", "\n".join(fences(text, "python")), re.MULTILINE):
        if module.split(".")[0] in PACKAGES and not module.endswith(NEW):
            assert [name for name in names.split(", ") if not exists(f"{module}.{name}")] == []


def test_these_checks_can_fail():
    assert exists("bitlora.engine.engine.Engine")
    assert not exists("bitlora.engine.Engine")
    assert not exists("bitlora.engine.engine.Motor")
    assert command_lines("`bitlora steer DIR --hard`") == [["steer", "DIR", "--hard"]]
    assert command_lines("```sh\nx=1 ray job submit -- python -m sweeps sweep a.yaml  # b\n```") == [
        ["sweep", "a.yaml"]
    ]
    assert anchors("# A sweep's folder\n## Data\n## Data\n") == {"a-sweeps-folder", "data", "data-1"}
    assert fences("1. One:\n\n   ```python\n   a = 1\n     b\n   ```\n", "python") == ["a = 1\n  b\n"]


@EACH_PAGE
def test_every_file_that_is_named_is_there(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        text = "\n".join(line.rpartition(" | ")[2] if line.startswith("|") else line for line in text.splitlines())
    tops = ("bitlora", "sweeps", "reports", "tests", "docs", ".ci")
    for word in [word for code in (*spans(text), *fences(text, "sh")) for word in code.split()]:
        if word.split("/")[0] in tops and "/" in word and not re.search(r"[*$<]", word):
            place = word.partition("::")[0].rstrip("/,.;")
            assert (ROOT / place).exists() or Path(place).stem.removeprefix("test_") in NEW, word
