"""What is wrong with values that are right each by itself: of an adapter, in the spec or its space, and of judging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from bitlora.config.sections import AdapterConfig
from bitlora.config.targets import pattern
from sweeps.spec import space as spaces

if TYPE_CHECKING:
    from sweeps.spec.spec import Spec

Clash = tuple[str, tuple[str, ...], str]
"""Key, the other keys involved, and what is wrong."""
RUNGS: Final = ("asha", "hyperband", "bohb")
"""Schedulers that judge at rungs, where there must be an evaluation."""

ONLY: Final[tuple[tuple[str, Any, str, Any, str], ...]] = (
    ("dora", True, "activations", "full",
     "divides by the norms of the merged weight, and with activations: int8 no weight does what the adapter does"),
    ("init", "orthogonal", "quantizer", "none",
     "orthogonal starts where B times A is zero, and quantized they no longer are"),
    ("init", "pissa", "quantizer", "none",
     "pissa takes out of the base what A and B begin as, and quantized they are no longer that"),
    ("init", "pissa", "activations", "full",
     "pissa takes out of the base what A and B begin as, and of inputs in 8 bits they give something else"),
    ("init", "pissa", "dora", False, "the norms of a base without its principal components are not computed"),
)  # fmt: skip
"""A value of an axis, another axis, its one value that goes with it, and why."""


def adapter_clashes(adapter: AdapterConfig, space: spaces.Space) -> Iterator[Clash]:
    """What values of `adapter` do not go together."""
    for axis, value, other, right, why in ONLY:
        if value in _possible(adapter, space, axis) and _possible(adapter, space, other) != {right}:
            shown = str(right).lower() if isinstance(right, bool) else right
            yield _key(space, axis), (_key(space, other),), f"{why}; give {other}: {shown}"
    if "orthogonal" not in _possible(adapter, space, "init"):
        return
    ranks = space.get("rank")
    ranges = [ranks, *ranks.branches.values(), ranks.default] if isinstance(ranks, spaces.By) else [ranks]
    steps = any(isinstance(one, spaces.Range) and (one.log or (one.step or 1) % 2) for one in ranges)
    every = _possible(adapter, space, "rank") | {
        r for text in _possible(adapter, space, "rank_pattern") for r in pattern(text).values()
    }
    if steps or any(rank % 2 for rank in every):
        message = "orthogonal needs even ranks; give a list of even ones, or a range with a step of 2"
        yield _key(space, "init"), (_key(space, "rank"), _key(space, "rank_pattern")), message


def _possible(adapter: AdapterConfig, space: spaces.Space, axis: str) -> set[Any]:
    domain = space.get(axis)
    return {getattr(adapter, axis)} if domain is None else spaces.extent(domain)


def _key(space: spaces.Space, axis: str) -> str:
    """Where the spec says what an axis of the adapter may be."""
    return f"search.space.{axis}" if axis in space else f"adapter.{axis}"


def judging_clashes(spec: Spec) -> Iterator[Clash]:
    """What does not go with scoring until it is known who is stopped, or with a front."""
    scheduler, rungs = spec.scheduler, ", ".join(RUNGS)
    if scheduler.scoring == "sequential" and scheduler.name not in RUNGS:
        message = f"scheduler.name {scheduler.name} judges at no rung; give all, or one of {rungs}"
        yield "scheduler.scoring", ("scheduler.name",), message
    if len(spec.search.objectives) < 2:
        return
    front = "search.objectives: [loss, bytes]"
    if scheduler.name not in (*RUNGS, "none"):
        yield (
            "scheduler.name",
            ("search.objectives",),
            f"{scheduler.name} does not go with {front}; give {rungs} or none",
        )
    if scheduler.scoring == "sequential" and scheduler.name in RUNGS:
        yield "scheduler.scoring", ("search.objectives",), f"sequential does not go with {front}; give all"
    if spec.confirm is not None and spec.confirm.by is not None:
        yield "confirm.by", ("search.objectives",), f"with {front} the front is confirmed; leave it out"
