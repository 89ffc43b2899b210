"""The parts of the documentation that the code says already: written into its pages, or held against them.

    .venv/bin/python docs/generate.py            write them
    .venv/bin/python docs/generate.py --check    exit code 1 where a page is stale

A page marks where a part stands by two comments, `generated: NAME` and `end of NAME` (`PARTS`); what is between them is
replaced, all else is left alone. What a part says comes from docstrings, defaults and tables of the code, so whoever
changes those runs this once more. Imports neither torch nor ray.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it is this checkout that is documented

from bitlora.config.sections import REFUSED, AdapterConfig, Config  # noqa: E402
from bitlora.config.trial import AXES, TrialConfig  # noqa: E402
from bitlora.data.shapes import SHAPES  # noqa: E402
from bitlora.quantizers.weights import QUANTIZERS, WeightQuantizer  # noqa: E402
from sweeps.spec.spec import Spec  # noqa: E402

PACKAGES: Final = ("bitlora", "sweeps", "reports")
FIRST_LINE: Final = "<!-- Parts of this page are generated from the code by docs/generate.py: change them there. -->"


def pages(root: Path = ROOT) -> list[Path]:
    """The pages of the documentation."""
    return [root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]


# ---- the keys of a spec


def attribute_docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a class, on one line."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
            found[field.target.id] = one_line(ast.literal_eval(text.value))  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def in_words(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """What a value may be, in plain words.

    Args:
        bounds: pydantic's metadata of the field.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if said := next((each.description for each in arguments[1:] if isinstance(each, FieldInfo)), None):
            return said
        inner = [
            bound for each in arguments[1:] for bound in (each.metadata if isinstance(each, FieldInfo) else [each])
        ]
        return in_words(arguments[0], inner)
    if origin in (Union, types.UnionType):
        named = [in_words(each, bounds) for each in arguments if each is not type(None)]
        return ", or ".join([*named, *(["`null`"] if type(None) in arguments else [])])
    if origin is Literal:
        return either([f"`{value}`" for value in arguments])
    if origin is list:
        return f"a list of {'mappings' if in_words(arguments[0]) == 'a mapping' else _listed(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, Config)):
        return "a mapping"
    return {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[annotation] + _bounded(bounds)


def value(field: FieldInfo) -> str:
    """What the value of a key may be, in words."""
    return field.description or in_words(field.annotation, field.metadata)


def _listed(annotation: Any) -> str:
    return "texts" if annotation is str else in_words(annotation)


def _bounded(bounds: Iterable[Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    found = [(words[name], getattr(each, name)) for each in bounds for name in words if hasattr(each, name)]
    said = [f" {word} {bound:,}" if isinstance(bound, int) else f" {word} {bound:g}" for word, bound in found]
    return " and".join(said)


def either(options: list[str]) -> str:
    """`a`, `b` or `c`."""
    return " or ".join(part for part in (", ".join(options[:-1]), options[-1]) if part)


def default(cls: type[Config], name: str, field: FieldInfo) -> str:
    """A field's default as YAML has it; of a section nothing, since its keys have their own."""
    needed = any(each.is_required() for each in cls.model_fields.values())
    value = field.get_default(call_default_factory=True) if needed else getattr(cls(), name)
    if value is PydanticUndefined:
        return "the file's name" if (cls, name) == (Spec, "name") else "required"
    if isinstance(value, Config):
        return ""
    plain = {None: "null", True: "true", False: "false"}
    return f"`{plain[value] if value is None or isinstance(value, bool) else value}`"


def sections(cls: type[Config] = Spec, at: str = "") -> Iterator[tuple[str, type[Config]]]:
    """Every mapping of a spec: its dotted key, and the class that it is."""
    yield at, cls
    for name, field in cls.model_fields.items():
        section, _ = _section(field)
        if section is not None:
            named = ".NAME" if get_origin(field.annotation) is dict else ""
            yield from sections(section, f"{at}.{name}{named}".lstrip("."))


def _section(field: FieldInfo) -> tuple[type[Config] | None, bool]:
    """The section that a field's value may be, and whether it is nothing else, null apart."""
    union = get_origin(field.annotation) in (Union, types.UnionType, dict)
    several = [get_args(one)[0] if get_origin(one) is Annotated else one for one in get_args(field.annotation)]
    members = [one for one in (several if union else [field.annotation]) if one is not type(None)]
    listed = [inner for one in members if get_origin(one) is list for inner in get_args(one)]
    found = [one for one in (*members, *listed) if isinstance(one, type) and issubclass(one, Config)]
    return (found[0], len(members) == 1 and not listed) if found else (None, False)


def keys() -> str:
    """Every key of a spec, a table for each section."""
    parts = []
    for at, cls in sections():
        told, rows = attribute_docstrings(cls), []
        for name, field in cls.model_fields.items():
            section, alone = _section(field)
            meaning = one_line(f"{section.__doc__ if alone else ''} {told.get(name, '')}")
            rows.append((f"`{field.alias or name}`", value(field), default(cls, name, field), meaning))
        file = inspect.getsourcefile(cls)
        assert file is not None
        about = f"{one_line(cls.__doc__)} ([{cls.__name__}](../{Path(file).relative_to(ROOT).as_posix()}))"
        head = f"### {f'`{at}`' if at else 'The file'}"
        parts += [head, about, table(("key", "value", "default", "what it is"), rows)]
    return "\n\n".join(parts)


FIXED: Final = {"seed": "search.seed", "targets": "base.targets", "schedule": "train.schedule.name"} | {
    axis: f"train.schedule.{axis}" for axis in ("warmup", "floor")
}
"""Where the fixed value of an axis stands, but for those of `adapter` and `train`."""


def axes() -> str:
    """What a search space may vary."""
    rows = []
    for axis in AXES:
        field = TrialConfig.model_fields[axis]
        fixed = FIXED.get(axis) or f"{'adapter' if axis in AdapterConfig.model_fields else 'train'}.{axis}"
        domain = "a list, or a range" if field.annotation in (int, float) else "a list"
        rows.append((f"`{axis}`", f"`{fixed}`", domain, value(field)))
    return table(("axis", "replaces", "its domain", "each value"), rows)


def refused() -> str:
    """Keys that one may look for in vain."""
    by_reason: dict[str, list[str]] = {}
    for key, why in REFUSED.items():
        by_reason.setdefault(why, []).append(f"`{key}`")
    return table(("key", "why it is not there"), [(", ".join(names), why) for why, names in by_reason.items()])


# ---- tables of the code


def quantizers() -> str:
    """The quantizers: `bitlora.quantizers.weights.QUANTIZERS`."""
    rows = [(f"`{name}`", each.formula, _bits(each)) for name, each in QUANTIZERS.items()]
    return table(("`quantizer`", "weights in the forward pass", "bits per weight"), rows)


def _bits(quantizer: WeightQuantizer) -> str:
    if quantizer.levels is None:
        return "16"
    bits = f"{8 / quantizer.levels.per_byte:g}"
    return f"{bits}, and 16 for each row" if quantizer.learns_scales else bits


def data_shapes() -> str:
    """The shapes of a row of data: `bitlora.data.shapes.SHAPES`."""
    return table(("a row has", "what it is"), [(f"`{each.name}`", one_line(each.read.__doc__)) for each in SHAPES])


def report_sections() -> str:
    """The sections of a report: `reports.report.SECTIONS`."""
    from reports.report import SECTIONS

    rows = []
    for number, make in enumerate(SECTIONS, 1):
        module = make.__module__.rpartition(".")[2]
        link = f"[{module}.{make.__name__}](../{make.__module__.replace('.', '/')}.py)"
        rows.append((str(number), one_line(make.__doc__), link))
    return table(("", "what it says", "made by"), rows)


def commands() -> str:
    """The command line: what `bitlora COMMAND --help` says."""
    import typer

    from sweeps.cli.app import app

    parts = []
    for name, command in _commands(typer.main.get_command(app)):
        rows, usage = [], [f"bitlora {name}"]
        for one in command.params:
            option = one.param_type_name == "option"
            names = "/".join((*one.opts, *one.secondary_opts)) if option else ""
            shown = " ".join(part for part in (names, one.metavar or "") if part)
            usage.append(shown if one.required else f"[{shown}]{'…' if one.multiple else ''}")
            rows.append((f"`{shown}`", one.help, f"`{one.default}`" if isinstance(one.default, int | str) else ""))
        arguments = (
            table(("", "what it is", "default"), [(a, b.replace("<", chr(92) + "<"), c.lower()) for a, b, c in rows])
            if rows
            else ""
        )
        parts += [f"### `bitlora {name}`", "\n\n".join(one_line(part) for part in command.help.split("\n\n"))]
        parts += [f"```\n{' '.join(usage)}\n```", *([arguments] if arguments else [])]
    return "\n\n".join(parts)


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of a group behind each other."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


# ---- the map of the code


def first_sentence(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = one_line((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0])
    found = re.match(r".*?[.](?=\s|$)", text)
    return found[0] if found else text


def rooms(package: str) -> list[str]:
    """The rooms of a package, from the top down, as import-linter holds them (pyproject.toml)."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(one["layers"] for one in contracts if one["name"] == f"the rooms of {package}")
    held = [name.strip().partition(".")[2] for layer in layers for name in layer.split("|")]
    there = {folder.parent.name for folder in (ROOT / package).glob("*/__init__.py")}
    return [name for name in held if name in there] + sorted(there - set(held))


def code_map() -> str:
    """Every room and every file, a line each."""
    parts = []
    for package in PACKAGES:
        folder = ROOT / package
        rows = [(_file_link(file), first_sentence(file)) for file in _modules(folder)]
        for room in rooms(package):
            rows += _room(folder / room)
        parts += [f"### {package}", first_sentence(folder / "__init__.py"), table(("room, file", "its one job"), rows)]
    return "\n\n".join(parts)


def _room(folder: Path) -> list[tuple[str, str]]:
    """A room's lines, and those of rooms inside it."""
    rows = [(f"**{folder.name}/**", f"**{first_sentence(folder / '__init__.py')}**")]
    rows += [(_file_link(file), first_sentence(file)) for file in _modules(folder)]
    inside = sorted(file.parent for file in folder.glob("*/__init__.py"))
    return rows + [row for each in inside for row in _room(each)]


def _modules(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")


def _file_link(file: Path) -> str:
    return f"[{file.name}](../{file.relative_to(ROOT).as_posix()})"


# ---- pages


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; `|` in a cell is escaped."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "keys": keys,
    "axes": axes,
    "refused keys": refused,
    "quantizers": quantizers,
    "data shapes": data_shapes,
    "report sections": report_sections,
    "commands": commands,
    "code map": code_map,
}


def filled(text: str) -> str:
    """A page with its parts as the code has them now.

    Raises:
        ValueError: it has no part's name between its marks, or no end.
    """

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name not in PARTS:
            raise ValueError(f"no part is called {name!r}; there are {', '.join(PARTS)}")
        return f"<!-- generated: {name} -->\n\n{PARTS[name]()}\n\n<!-- end of {name} -->"

    made = re.sub(r"<!-- generated: ([^>]*) -->.*?<!-- end of \1 -->", replace, text, flags=re.DOTALL)
    marks = len(re.findall(r"<!-- generated: ", text))
    if marks != len(re.findall(r"<!-- generated: ([^>]*) -->.*?<!-- end of \1 -->", text, flags=re.DOTALL)):
        raise ValueError("a generated part has no end")
    if marks and not text.startswith(FIRST_LINE):
        raise ValueError(f"the first line of a page with generated parts is: {FIRST_LINE}")
    return made


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print("usage: docs/generate.py [--check]", file=sys.stderr)
        return 2
    stale = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        try:
            after = filled(before)
        except ValueError as error:
            print(f"{page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if after != before:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(after, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'stale; run .venv/bin/python docs/generate.py' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
