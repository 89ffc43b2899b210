"""A YAML file as plain data with overrides laid over it, and where each of its keys comes from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from bitlora.config.explain import show
from sweeps.spec import space as spaces
from sweeps.spec.errors import SpecError
from sweeps.spec.space import Problem


def yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # pure: YAML 1.2, where 5e-4 is a number and `no` is text


class Draft:
    """The file as plain data, and where each key of it comes from."""

    def __init__(self, file: Path) -> None:
        self.data: dict[Any, Any] = {}
        self._file = file
        self._where: dict[spaces.Path, tuple[tuple[int, int], str]] = {}
        """Path -> what sorts it (the file before the overrides), and its place as it is shown."""
        self._overrides = 0
        try:
            text = file.read_text(encoding="utf-8")
            lines = dict(_lines(yaml().compose(text), ()))
            data = yaml().load(text)
        except FileNotFoundError:
            raise SpecError([f"{file}: no such file{_near_file(file)}"]) from None
        except OSError as error:
            raise SpecError([f"{file}: cannot be read: {error.strerror}"]) from None
        except (YAMLError, ValueError, RecursionError) as error:
            mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
            raise SpecError([f"{file}{f':{mark.line + 1}' if mark else ''}: not YAML: {_problem(error)}"]) from None
        if not isinstance(data, dict):
            raise SpecError([f"{file}: found {show(data)}; give a mapping with at least base and data"])
        self.data = data
        self._where = {path: ((0, line), f"{file}:{line}") for path, line in lines.items()}

    def override(self, text: str) -> list[Problem]:
        """Lay `KEY=VALUE` over the data."""
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        self._overrides += 1
        here = ((1, self._overrides), f"--set {text}")
        if not equals or not all(path):
            self._where[(text,)] = here
            return [((text,), "give KEY=VALUE, such as train.steps=64")]
        self._where = {at: where for at, where in self._where.items() if at[: len(path)] != path} | {path: here}
        node = self.data
        for depth, part in enumerate(path[:-1], 1):
            if node.get(part) is None:
                node[part] = {}
                self._where[path[:depth]] = here
            node = node[part]
            if not isinstance(node, dict):
                return [(path, f"{'.'.join(path[:depth])} is {show(node)}, not a mapping; give it as a whole")]
        try:
            node[path[-1]] = yaml().load(value)
        except (YAMLError, ValueError) as error:
            return [(path, f"not YAML: {_problem(error)}")]
        return []

    def line(self, path: spaces.Path, message: str) -> tuple[tuple[int, int], str]:
        """The line of an error, after what sorts it."""
        parts = tuple(map(str, path))
        at = next((parts[:depth] for depth in range(len(parts), 0, -1) if parts[:depth] in self._where), ())
        order, where = self._where.get(at, ((0, 0), str(self._file)))
        name = ".".join(parts)
        named = f"{where}=".startswith(f"--set {name}=")
        return order, f"{where}: {message}" if named else f"{where}: {name}: {message}"


def _problem(error: Exception) -> str:
    return str(error.problem) if isinstance(error, MarkedYAMLError) else str(error).splitlines()[0]


def _lines(node: Node | None, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            path = (*at, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            path = (*at, str(index))
            yield path, item.start_mark.line + 1
            yield from _lines(item, path)


def _near_file(path: Path) -> str:
    shipped = list(Path(__file__).parents[1].glob("*.yaml"))
    for files in (list(path.parent.glob("*.y*ml")), shipped):
        close = difflib.get_close_matches(path.name, [file.name for file in files], 1)
        if close:
            return f"; did you mean {next(file for file in files if file.name == close[0])}?"
    return ""
