"""What `search.where` allows, decided from the base's shapes alone: before anything is trained, and before Ray starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Final

from bitlora.adapter.cost import AdapterSize, adapter_size
from bitlora.base.info import BaseInfo
from bitlora.config.trial import trial_config
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

SHAPE: Final = ("targets", "rank", "rank_pattern", "quantizer", "granularity", "dora", "init")
"""The axes that parameters and bytes of an adapter hang on. They grow with the rank, the only one that may be a range."""


class Bounds:
    """The bounds of a sweep's adapters.

    Args:
        base: what the adapters are on.
    """

    def __init__(self, spec: Spec, base: BaseInfo) -> None:
        where = {} if spec.search.where is None else spec.search.where.model_dump(exclude_none=True)
        self._most: dict[str, int] = {name: bound["max"] for name, bound in where.items()}
        self._spec, self._base = spec, base
        self._sizes: dict[tuple[Any, ...], AdapterSize] = {}

    def __bool__(self) -> bool:
        """Is there any?"""
        return bool(self._most)

    def size(self, chosen: Mapping[str, Any]) -> AdapterSize:
        """What the adapter has for which `chosen` was chosen: a value for each axis of the space, or for some."""
        key = tuple(chosen.get(axis) for axis in SHAPE)
        if key not in self._sizes:
            shape = {axis: chosen[axis] for axis in SHAPE if axis in chosen}
            search = self._spec.search
            # the number of rows only counts for the steps
            trial = trial_config(self._spec.adapter, self._spec.train, 1, search.seed, shape)
            self._sizes[key] = adapter_size(self._base, trial)
        return self._sizes[key]

    def bytes(self, chosen: Mapping[str, Any]) -> int:
        """Of that adapter, as packed."""
        return self.size(chosen).bytes

    def over(self, chosen: Mapping[str, Any]) -> dict[str, float]:
        """By which share such an adapter is beyond a bound (0.5: half as much again), for each that it is beyond."""
        if not self._most:
            return {}
        size = self.size(chosen)
        has = {"adapter_bytes": size.bytes, "adapter_params": size.params}
        return {name: has[name] / most - 1 for name, most in self._most.items() if has[name] > most}

    def fitting(self, point: Mapping[str, Any], chance: Random) -> dict[str, Any]:
        """A point with `point` in it that fits, drawn from the lists of the space, with ranges at their smallest.

        Returns:
            A value for each axis that sizes hang on.

        Raises:
            ValueError: there is none (`errors` has said so).
        """
        for corner in self._corners(point, chance):
            if not self.over(corner):
                return corner
        raise ValueError(f"nothing fits search.where with {dict(point)}")

    def errors(self) -> list[str]:
        """A line where nothing in the space fits, or nothing with a configuration of `search.first`."""
        if not self._most:
            return []
        if why := self._why_none({}):
            return [
                f"search.where: {'nothing in search.space' if self._spec.search.space else 'no adapter'} fits: {why}"
            ]
        firsts = enumerate(self._spec.search.first)
        return [
            f"search.first.{at}: does not fit search.where: {why}" for at, one in firsts if (why := self._why_none(one))
        ]

    def _why_none(self, point: Mapping[str, Any]) -> str:
        """What the smallest adapter has that is too much; nothing where one fits."""
        least: tuple[float, dict[str, Any], dict[str, float]] | None = None
        for corner in self._corners(point):
            over = self.over(corner)
            if not over:
                return ""
            if least is None or sum(over.values()) < least[0]:
                least = sum(over.values()), corner, over
        assert least is not None
        _, corner, over = least
        size = self.size(corner)
        has = {"adapter_bytes": f"{size.bytes:,} bytes", "adapter_params": f"{size.params:,} parameters"}
        what = ", ".join(f"{axis}: {value}" for axis, value in corner.items())
        much = " and ".join(f"{has[name]}, and {name}.max is {self._most[name]:,}" for name in over)
        return f"the smallest{f' ({what})' if what else ''} has {much}; give more, or smaller adapters"

    def _corners(self, point: Mapping[str, Any], chance: Random | None = None) -> Iterator[dict[str, Any]]:
        """The points of the axes that sizes hang on, and of those that these hang on: all of lists, of ranges the smallest.

        Args:
            point: values that some axes have.
            chance: shuffles them.
        """
        space = self._spec.search.space | {axis: spaces.Choices((value,)) for axis, value in point.items()}
        axes = spaces.with_parents(space, SHAPE)

        def grow(depth: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if depth == len(axes):
                yield chosen
                return
            values = spaces.smallest(space, axes[depth], chosen)
            for value in values if chance is None else chance.sample(values, len(values)):
                yield from grow(depth + 1, {**chosen, axes[depth]: value})

        return grow(0, {})
