"""The search space: plain frozen data as the spec gives it, a point of it as Optuna suggests it, and its grid.

An axis is a key of `bitlora.config.trial.AXES`; its values are a list of choices, a range, or hang on another axis. What is
wrong with a space comes back as a list of problems, each with its path below `search.space`, never as the first alone.
Optuna is only ever handed in, so reading a spec does not pay for importing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

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
        name, domain = option(space, axis, chosen)
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


def axis_of(parameter: str) -> str:
    """The axis that an Optuna parameter of `suggest` gives a value of."""
    return parameter.partition("[")[0]


def listed(domain: Choices | Range | By | None) -> bool:
    """Whether an axis is a list, or one for each value of the axis that it hangs on."""
    return domain is not None and all(isinstance(branch, Choices) for _, branch in _options("", domain))


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
        values = [_values(axis, option(space, axis, row)[1]) for row in rows]
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


def extent(domain: Choices | Range | By) -> set[Any]:
    """The values of an axis as far as it goes: all of a list, the ends of a range, of every branch."""
    if isinstance(domain, Choices):
        return set(domain.values)
    if isinstance(domain, Range):
        return {domain.low, domain.high}
    return {value for _, branch in _options("", domain) for value in extent(branch)}


def smallest(space: Space, axis: str, chosen: Mapping[str, Any]) -> list[Any]:
    """The values of an axis, once the one it hangs on is chosen: all of a list; of a range the smallest, and where others
    hang on it also those for which they have branches of their own, and the largest."""
    _, domain = option(space, axis, chosen)
    if isinstance(domain, Choices):
        return list(domain.values)
    hanging = [other for other in space.values() if isinstance(other, By) and other.axis == axis]
    keys = [key for other in hanging for key in other.branches if _holds(domain, key)]
    return list(dict.fromkeys([domain.low, *keys, *([domain.high] if hanging else [])]))


def with_parents(space: Space, axes: Iterable[str]) -> list[str]:
    """Those of `axes` that are in the space, and what they hang on, each after the one it hangs on."""
    needed = set(axes)
    ordered = order(space)
    for axis in reversed(ordered):
        domain = space[axis]
        if axis in needed and isinstance(domain, By):
            needed.add(domain.axis)
    return [axis for axis in ordered if axis in needed]


def together(space: Space, axes: Iterable[str]) -> list[dict[str, Any]]:
    """What those of `axes` that are in the space can be at once: all of a list, the ends of a range, and of one that
    others hang on the values that have branches of their own."""
    wanted = [axis for axis in axes if axis in space]
    rows: list[dict[str, Any]] = [{}]
    for axis in with_parents(space, wanted):
        rows = [{**row, axis: value} for row in rows for value in _ends(space, axis, row)]
    found = [{axis: row[axis] for axis in wanted} for row in rows]
    return list({tuple(one.values()): one for one in found}.values())


def _ends(space: Space, axis: str, chosen: Mapping[str, Any]) -> list[Any]:
    domain = domain_of(space, axis, chosen)
    if isinstance(domain, Choices):
        return list(domain.values)
    return list(dict.fromkeys([*smallest(space, axis, chosen), domain.high]))


def domain_of(space: Space, axis: str, chosen: Mapping[str, Any]) -> Choices | Range:
    """The domain of an axis, once the one it hangs on is chosen."""
    return option(space, axis, chosen)[1]


def fitted(domain: Range, value: float) -> float:
    """The number of a range that is next to `value`."""
    value = min(max(value, domain.low), domain.high)
    if domain.step is not None:
        low, step = _decimal(domain.low), _decimal(domain.step)
        steps = min(round((_decimal(value) - low) / step), int((_decimal(domain.high) - low) // step))
        value = float(low + steps * step)
    return round(value) if isinstance(domain.low, int) else float(value)


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


def option(space: Space, axis: str, chosen: Mapping[str, Any]) -> tuple[str, Choices | Range]:
    """The Optuna parameter of an axis and its domain, once the axis it hangs on is chosen."""
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
    return [option(space, axis, config)]


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
