"""Plain data as a section of a spec, and all that is wrong with it at once, each with the path of its key."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from bitlora.config.explain import explain, nearest
from bitlora.config.sections import REFUSED, Config
from sweeps.spec import space as spaces
from sweeps.spec.space import Problem

Section = TypeVar("Section", bound=Config)


def overlap(one: spaces.Path, other: spaces.Path) -> bool:
    """Is one of them the other, or above it?"""
    short = min(len(one), len(other))
    return one[:short] == other[:short]


def validated(model: type[Section], data: dict[Any, Any]) -> tuple[Section, list[Problem]]:
    """A section out of `data` with defaults in the place of what is wrong with it, and what that is."""
    data = copy.deepcopy(data)
    problems: dict[spaces.Path, str] = {}
    filled: set[spaces.Path] = set()
    required = [
        name for name, info in model.model_fields.items() if info.is_required() and _is_section(info.annotation)
    ]
    while True:
        for name in required:
            data.setdefault(name, {})
        try:
            return model.model_validate(data), list(problems.items())
        except ValidationError as error:
            errors = error.errors(include_url=False)
        found: dict[spaces.Path, list[Any]] = {}
        for one in errors:
            found.setdefault(_path(one["loc"], data, one["type"] == "missing"), []).append(one)
        for path, group in found.items():
            # of a union's errors the deepest says most
            inner = any(len(other) > len(path) and overlap(path, other) for other in found)
            if not inner and not any(overlap(path, known) for known in problems):
                problems[path] = _message(model, path, group, data)
        for path, group in found.items():
            missing = group[0]["type"] == "missing"
            # What stands in for a required key may be no value for it: then what it is a key of has to go.
            _drop(data, path[:-1] if path in filled and not missing else path, missing)
            filled |= {path} if missing else set()


def _path(loc: tuple[str | int, ...], data: Any, missing: bool) -> spaces.Path:
    """Where in `data` pydantic's `loc` is: without its names for the members of unions."""
    path: list[str | int] = []
    for part in loc:
        inside = range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
        if part in inside:
            data = data[part]
            path.append(part)
    return (*path, loc[-1]) if missing else tuple(path)


def _drop(data: Any, path: spaces.Path, missing: bool) -> None:
    key = path[-1]
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            key = part
            break
        data = data[part]
    data.pop(key, None)
    if missing:
        data[key] = "?"


def _message(model: type[Config], path: spaces.Path, errors: list[Any], data: Any) -> str:
    kinds = {error["type"] for error in errors}
    for part in path:
        data = data[part] if not isinstance(data, dict) or part in data else None
    key = ".".join(map(str, path))
    if why := REFUSED.get(key) or REFUSED.get(f"{key}: {data}"):
        return f"not available: {why}" if key in REFUSED else f"{data} is not available: {why}"
    if kinds & {"extra_forbidden", "invalid_key"}:
        return f"unknown key{_hint(model, path)}"
    if "missing" in kinds:
        return "required key is missing"
    if any(error["loc"][-1] == "[key]" for error in errors):
        return "the name of a key is text"
    return explain(errors, data)


def dotted_keys(model: type[Config], at: str = "") -> Iterator[str]:
    """Every key there is in a section."""
    for name, info in model.model_fields.items():
        yield at + (info.alias or name)
        for inner in (info.annotation, *get_args(info.annotation)):
            if _is_section(inner):
                yield from dotted_keys(inner, f"{at}{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _hint(model: type[Config], path: spaces.Path) -> str:
    *above, name = map(str, path)
    keys = list(dotted_keys(model))
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return nearest(name, [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == ".".join(above)])
