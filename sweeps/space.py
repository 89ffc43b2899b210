"""The search space: plain frozen data as the spec gives it, a point of it as Optuna suggests it, and its grid.

An axis is a key of `bitlora.config.AXES`; its values are a list of choices, a range, or hang on another axis. What is
wrong with a space comes back as a list of problems, each with its path below `search.space`, never as the first alone.
Optuna is only ever handed in, so reading a spec does not pay for importing it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError

from bitlora.config import AXES, REFUSED, TrialConfig, explain, nearest, show

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

GRID_MAX: Final = 10_000
"""A grid of more points is a mistake: nobody waits for it."""

Path = tuple[str | int, ...]
Problem = tuple[Path, str]
"""Where, and in words what was found there and what would be right."""


@dataclass(frozen=True, slots=True)
class Choices:
    """One of these, without an order between them."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number from low to high, both included; integers where the axis takes whole numbers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True, slots=True)
class By:
    """The domain hangs on the value of another axis."""

    axis: str
    branches: dict[Any, Choices | Range]
    default: Choices | Range | None = None
    """For the values of `axis` without a branch of their own."""


Space = dict[str, Choices | Range | By]


def order(space: Space) -> list[str]:
    """The axes, each after the one it hangs on, else as they stand in the spec.

    Raises:
        ValueError: axes hang on each other, or on one that is not there; its args are those axes.
    """
    done: list[str] = []
    left = list(space)
    while left:
        domains = ((axis, space[axis]) for axis in left)
        ready = next((axis for axis, domain in domains if not isinstance(domain, By) or domain.axis in done), None)
        if ready is None:
            raise ValueError(*left)
        left.remove(ready)
        done.append(ready)
    return done


def suggest(trial: BaseTrial, space: Space) -> dict[str, Any]:
    """A value for every axis, suggested by `trial` (define by run).

    An axis that hangs on another has one Optuna parameter per branch, such as `learning_rate[quantizer=none]`: so each
    parameter keeps one distribution through the whole study, as samplers need it.
    """
    chosen: dict[str, Any] = {}
    for axis in order(space):
        name, domain = _option(space, axis, chosen)
        if isinstance(domain, Choices):
            chosen[axis] = trial.suggest_categorical(name, domain.values)
        elif isinstance(domain.low, int) and isinstance(domain.high, int):
            step = 1 if domain.step is None else int(domain.step)
            chosen[axis] = trial.suggest_int(name, domain.low, domain.high, step=step, log=domain.log)
        else:
            chosen[axis] = trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)
    return chosen


def params(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """The Optuna parameters that make `suggest` give `config`, which may leave axes out.

    Where the axis that decides is left out, each branch that can hold the value is given it.
    """
    return {
        name: value
        for axis, value in config.items()
        for name, domain in _possible(space, axis, config)
        if _holds(domain, value)
    }


def contains(space: Space, config: Mapping[str, Any]) -> bool:
    """Whether a configuration, which may leave axes out, lies in the space."""
    return all(
        axis in space and any(_holds(domain, value) for _, domain in _possible(space, axis, config))
        for axis, value in config.items()
    )


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point, the last axis fastest.

    Raises:
        ValueError: a range has no step, or there are more than `GRID_MAX` points.
    """
    rows: list[dict[str, Any]] = [{}]
    for axis in order(space):
        values = [_values(axis, _option(space, axis, row)[1]) for row in rows]
        if sum(map(len, values)) > GRID_MAX:
            raise ValueError(f"the grid has more than {GRID_MAX:,} points")
        rows = [{**row, axis: value} for row, listed in zip(rows, values, strict=True) for value in listed]
    return rows


def endless(space: Space) -> list[str]:
    """The axes with a range that has no step: a grid cannot list them."""
    return [
        axis
        for axis, domain in space.items()
        if any(isinstance(option, Range) and option.step is None for _, option in _options(axis, domain))
    ]


def dump(space: Space) -> dict[str, Any]:
    """The space as the spec writes it: `parse` reads it back to an equal one."""
    return {axis: _plain(domain) for axis, domain in space.items()}


def _plain(domain: Choices | Range | By) -> Any:
    if isinstance(domain, Choices):
        return list(domain.values)
    if isinstance(domain, Range):
        step = {} if domain.step is None else {"step": domain.step}
        return {"low": domain.low, "high": domain.high, "log": domain.log, **step}
    default = {} if domain.default is None else {"default": _plain(domain.default)}
    return {"by": domain.axis, **{value: _plain(branch) for value, branch in domain.branches.items()}, **default}


def _options(axis: str, domain: Choices | Range | By) -> list[tuple[str, Choices | Range]]:
    """The Optuna parameters of an axis and their domains: one, or one per branch."""
    if not isinstance(domain, By):
        return [(axis, domain)]
    options = [(f"{axis}[{domain.axis}={value}]", branch) for value, branch in domain.branches.items()]
    return options if domain.default is None else [*options, (f"{axis}[{domain.axis}=default]", domain.default)]


def _option(space: Space, axis: str, chosen: Mapping[str, Any]) -> tuple[str, Choices | Range]:
    """The one of them that holds once the axis it hangs on is chosen."""
    domain = space[axis]
    options = _options(axis, domain)
    if not isinstance(domain, By):
        return options[0]
    keys = list(domain.branches)
    parent = chosen[domain.axis]
    return options[keys.index(parent) if parent in keys else -1]


def _possible(space: Space, axis: str, config: Mapping[str, Any]) -> list[tuple[str, Choices | Range]]:
    domain = space[axis]
    if isinstance(domain, By) and domain.axis not in config:
        return _options(axis, domain)
    return [_option(space, axis, config)]


def _holds(domain: Choices | Range, value: Any) -> bool:
    if isinstance(domain, Choices):
        return value in domain.values
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return False
    if isinstance(domain.low, int) and not isinstance(value, int):
        return False
    return domain.step is None or (_decimal(value) - _decimal(domain.low)) % _decimal(domain.step) == 0


def _values(axis: str, domain: Choices | Range) -> Sequence[Any]:
    if isinstance(domain, Choices):
        return domain.values
    if domain.step is None:
        raise ValueError(f"{axis}: a range without a step has no grid")
    # Decimal: 0.1 + 2 * 0.1 is 0.3 here, as the spec's author reads it
    low, step = _decimal(domain.low), _decimal(domain.step)
    count = int((_decimal(domain.high) - low) // step) + 1
    if count > GRID_MAX:
        raise ValueError(f"the grid has more than {GRID_MAX:,} points")
    number = type(domain.low)
    return [number(low + index * step) for index in range(count)]


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))


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
    right = "a list of choices or {low: …, high: …} (a fixed value stands in adapter or train)"
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
        wrong.append((at, explain(error.errors(include_url=False), value)))
        return value
