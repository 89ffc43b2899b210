"""Which sampler `auto` stands for, and what a sampler needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.driver.prepare import prepare
from sweeps.search.sampling import choice
from sweeps.search.sampling.choice import lacking, sampler_of
from sweeps.spec.errors import InputError
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
        ({"learning_rate": RANGE, "quantizer": ["none", "binary"]}, 12, "tpe"),
        ({"learning_rate": RANGE, "rank": [4, 8]}, 12, "tpe"),
        ({"learning_rate": {"by": "rank", "default": RANGE}, "rank": RANKS}, 12, "tpe"),
        ({}, 12, "tpe"),
    ],
)
def test_auto_goes_by_the_space_and_the_trials(space: dict[str, Any], trials: int, chosen: str) -> None:
    assert sampler_of(spec(space, trials=trials, sampler="auto").search) == chosen
    for asked in ("tpe", "gp", "random", "grid"):
        assert sampler_of(spec(space, trials=trials, sampler=asked).search) == asked


def test_what_a_sampler_needs_is_looked_for_before_the_first_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ranges = {"learning_rate": RANGE}
    assert lacking(spec(ranges, sampler="gp").search) == []
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name == "scipy" else object())
    assert lacking(spec(ranges).search) == lacking(spec(ranges, sampler="random").search) == []
    right = "needs scipy, which is not installed; pip install scipy, or give tpe"
    line = f"search.sampler: gp {right}"
    assert lacking(spec(ranges, sampler="gp").search) == [line]
    assert lacking(spec(ranges, sampler="auto").search) == [
        f"search.sampler: auto, which is gp for this space, {right}"
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    sweep = spec(ranges, sampler="gp")
    sweep = sweep.model_copy(update={"data": sweep.data.model_copy(update={"source": str(rows)})})
    with pytest.raises(InputError) as refused:
        prepare(sweep)
    assert line in refused.value.lines
