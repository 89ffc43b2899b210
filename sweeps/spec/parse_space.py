"""The search space as a spec says it, and all that is wrong with it, each with its path below `search.space`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from bitlora.config.explain import explain, nearest, show
from bitlora.config.sections import REFUSED
from bitlora.config.trial import AXES, TrialConfig
from sweeps.spec.space import By, Choices, Path, Problem, Range, Space, _holds, _options, _possible, order


def parse(raw: object) -> tuple[Space, list[Problem]]:
    """What `search.space` of a spec says, and what is wrong with it: axes with a problem are left out."""
    if not isinstance(raw, dict):
        return {}, [((), f"found {show(raw)}; give a mapping of axes to lists of choices or ranges")]
    space: Space = {}
    problems: list[Problem] = []
    for axis, value in raw.items():
        wrong: list[Problem] = []
        if axis not in AXES:
            why = REFUSED.get(f"adapter.{axis}")
            wrong.append(((), f"not available: {why}" if why else f"not an axis{nearest(axis, AXES)}"))
        else:
            domain = _domain(axis, value, raw, wrong)
            if domain is not None and not wrong:
                space[axis] = domain
        problems += [((axis, *path), message) for path, message in wrong]
    for axis, domain in list(space.items()):
        if isinstance(domain, By) and domain.axis in space:
            wrong = [((axis, *path), message) for path, message in _coverage(domain, space[domain.axis])]
            problems += wrong
            if wrong:
                del space[axis]
    # what hangs on an axis with a problem is left out too, and has none of its own
    while orphans := [axis for axis, domain in space.items() if isinstance(domain, By) and domain.axis not in space]:
        space = {axis: domain for axis, domain in space.items() if axis not in orphans}
    try:
        order(space)
    except ValueError as error:
        problems += [((axis, "by"), f"axes hang on each other: {', '.join(error.args)}") for axis in error.args]
        space = {}
    return space, problems


def parse_points(
    raws: Iterable[Mapping[str, Any]], space: Space, axes: Iterable[Any]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """`search.first`: configurations that may leave axes out, values as their axes type them, and what is wrong.

    One of `axes`, those that the spec names, that is not in the space has its own error already.
    """
    points: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for index, raw in enumerate(raws):
        point: dict[str, Any] = {}
        wrong: list[Problem] = []
        for axis, value in raw.items():
            if axis in space:
                point[axis] = _value(axis, value, wrong, (axis,))
            elif axis not in axes:
                wrong.append(((axis,), f"not an axis of search.space{nearest(axis, space)}"))
        if not wrong:
            wrong = [
                ((axis,), f"{show(raw[axis])} is not in search.space.{axis}; add it there or choose one of its values")
                for axis, value in point.items()
                if not any(_holds(domain, value) for _, domain in _possible(space, axis, point))
            ]
        if not wrong and point in points:
            wrong.append(((), f"the same as search.first.{points.index(point)}"))
        points.append(point)
        problems += [((index, *at), message) for at, message in wrong]
    return points, problems


def _domain(axis: str, raw: object, axes: Mapping[Any, Any], wrong: list[Problem]) -> Choices | Range | By | None:
    if not isinstance(raw, dict) or "by" not in raw:
        return _leaf(axis, raw, wrong, ())
    parent = raw["by"]
    others = [name for name in axes if name in AXES and name != axis]
    if parent not in others:
        wrong.append((("by",), f"{show(parent)} is not another axis of search.space{nearest(parent, others)}"))
        return None
    branches: dict[Any, Choices | Range] = {}
    default = None
    for key, value in raw.items():
        if key == "by":
            continue
        leaf = _leaf(axis, value, wrong, (key,))
        if key == "default":
            default = leaf
        else:
            typed = _value(parent, key, wrong, (key,))
            if leaf is not None:
                branches[typed] = leaf
    if len(raw) == 1:
        wrong.append(((), f"nothing but by; give choices or a range for each value of {parent}, or default"))
    return By(parent, branches, default)


def _leaf(axis: str, raw: object, wrong: list[Problem], at: Path) -> Choices | Range | None:
    if isinstance(raw, list):
        return _choices(axis, raw, wrong, at)
    if isinstance(raw, dict):
        return _range(axis, raw, wrong, at)
    right = "a list of choices or {low: …, high: …} (a fixed value stands in adapter, train or base)"
    wrong.append((at, f"found {show(raw)}; give {right}"))
    return None


def _choices(axis: str, raw: list[Any], wrong: list[Problem], at: Path) -> Choices:
    values: list[Any] = []
    if not raw:
        wrong.append((at, "found an empty list; give at least one value"))
    for index, item in enumerate(raw):
        before = len(wrong)
        value = _value(axis, item, wrong, (*at, index))
        if len(wrong) == before and value in values:
            wrong.append(((*at, index), f"{show(value)} stands in the list twice"))
        values.append(value)
    return Choices(tuple(values))


def _range(axis: str, raw: dict[Any, Any], wrong: list[Problem], at: Path) -> Range | None:
    whole = TrialConfig.model_fields[axis].annotation is int
    if not whole and TrialConfig.model_fields[axis].annotation is not float:
        wrong.append((at, f"found a range; {axis} takes a list of choices"))
        return None
    before = len(wrong)
    known = ("low", "high", "log", "step")
    wrong += [((*at, key), f"unknown key{nearest(key, (*known, 'by'))}") for key in raw if key not in known]
    wrong += [((*at, key), "required key is missing") for key in ("low", "high") if key not in raw]
    low, high = (_value(axis, raw[key], wrong, (*at, key)) if key in raw else 0 for key in ("low", "high"))
    log, step = raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        wrong.append(((*at, "log"), f"found {show(log)}; give true or false"))
    number = int if whole else int | float
    if step is not None and (isinstance(step, bool) or not isinstance(step, number) or not step > 0):
        wrong.append(((*at, "step"), f"found {show(step)}; give a {'whole ' if whole else ''}number above 0"))
    if len(wrong) > before:
        return None
    if low >= high:
        wrong.append(((*at, "low"), f"low {show(low)} is not below high {show(high)}"))
    elif log and low <= 0:
        wrong.append(((*at, "low"), f"found {show(low)}; with log: true give a number above 0"))
    elif log and step is not None:
        wrong.append(((*at, "step"), "a range has either log: true or a step, not both"))
    elif step is not None and step > high - low:
        wrong.append(((*at, "step"), f"step {show(step)} is wider than the range from {show(low)} to {show(high)}"))
    return Range(low, high, log, step if whole or step is None else float(step))


def _coverage(domain: By, parent: Choices | Range | By) -> Iterable[Problem]:
    """The branches against the values that the axis they hang on can take."""
    options = [option for _, option in _options("", parent)]
    values = [value for option in options if isinstance(option, Choices) for value in option.values]
    for key in domain.branches:
        if not any(_holds(option, key) for option in options):
            yield (key,), f"not a value of search.space.{domain.axis}{nearest(key, [*map(str, values), 'default'])}"
    missing = [str(value) for value in values if value not in domain.branches]
    if domain.default is None and (missing or any(isinstance(option, Range) for option in options)):
        lacking = f"{domain.axis} {', '.join(dict.fromkeys(missing))}" if missing else f"every value of {domain.axis}"
        yield (), f"nothing for {lacking}; add a branch or default"


@functools.cache
def _adapter(axis: str) -> TypeAdapter[Any]:
    field = TrialConfig.model_fields[axis]
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated)


def _value(axis: str, value: object, wrong: list[Problem], at: Path) -> Any:
    try:
        return _adapter(axis).validate_python(value, strict=True)
    except ValidationError as error:
        why = REFUSED.get(f"adapter.{axis}: {value}")
        said = explain(error.errors(include_url=False), value)
        wrong.append((at, f"{value} is not available: {why}" if why else said))
        return value
