"""Trials' actors are all used again. Written for the Ray release that pyproject.toml pins.

With `reuse_actors` Tune keeps the actors of trials that have ended only as far as others are staged, and one beyond that.
Trials of a pack end together, at the same step, before their successors exist: all but one of their actors would be ended
and as many interpreters started, a few seconds of CPU each on the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.tune.execution import tune_controller
from ray.tune.utils.object_cache import _ObjectCache


class _KeepsAll(_ObjectCache):  # type: ignore[misc]
    """As many as there ever were at once, which is what the search's concurrency allows."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:
        return super().flush_cached_objects(force_all) if force_all else iter(())


def keep_actors() -> None:
    """From now on, in this process."""
    tune_controller._ObjectCache = _KeepsAll
