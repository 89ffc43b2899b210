"""Which sampler `auto` stands for."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.search.sampling.choice import sampler_of
from sweeps.spec.spec import Spec

RANGE = {"low": 1e-4, "high": 1e-2, "log": True}
RANKS = {"low": 4, "high": 32, "log": True}


def spec(space: dict[str, Any], **search: Any) -> Spec:
    return Spec.model_validate(
        {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "search": {"space": space, **search}}
    )


@pytest.mark.parametrize(
    ("space", "trials", "chosen"),
    [
        ({"learning_rate": RANGE, "rank": RANKS}, 250, "gp"),
        ({"learning_rate": RANGE, "rank": RANKS}, 251, "tpe"),
        ({"learning_rate": RANGE, "dropout": {"low": 0.0, "high": 0.2, "step": 0.05}}, 12, "gp"),
        ({"learning_rate": RANGE, "quantizer": ["none", "binary"]}, 12, "gp"),
        ({"learning_rate": {"by": "rank", "default": RANGE}, "rank": RANKS}, 12, "gp"),
        ({}, 12, "tpe"),
    ],
)
def test_auto_goes_by_the_space_and_the_trials(space: dict[str, Any], trials: int, chosen: str) -> None:
    assert sampler_of(spec(space, trials=trials, sampler="auto").search) == chosen
    for asked in ("tpe", "gp", "random", "grid"):
        assert sampler_of(spec(space, trials=trials, sampler=asked).search) == asked


def test_with_two_objectives_auto_is_tpe() -> None:
    assert sampler_of(spec({"learning_rate": RANGE}, sampler="auto", objectives=["loss", "bytes"]).search) == "tpe"
