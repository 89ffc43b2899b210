"""When a study has all the trials of its sweep, so that there is nothing to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from sweeps.search.agenda import complete
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import read_study
from sweeps.spec.spec import Spec


def spec(sampler: str, trials: int, confirm: dict[str, Any] | None = None) -> Spec:
    data = {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}}
    search = {"sampler": sampler, "trials": trials, "startup": 1, "space": {"rank": [4, 8], "alpha": [8, 16]}}
    return Spec.model_validate({**data, "search": search, "confirm": confirm})


@pytest.mark.parametrize(
    ("sampler", "trials", "confirm", "total"),
    [
        ("random", 3, None, 3),
        ("grid", 9, None, 4),
        ("grid", 2, None, 2),
        ("grid", 9, {"top": 2, "seeds": 2}, 8),
        # as many configurations as there are, fewer than are asked for
        ("grid", 2, {"top": 3, "seeds": 1}, 4),
    ],
)
@pytest.mark.parametrize("last", ["completed", "failed", "interrupted"])
def test_it_is_complete_when_the_last_trial_has_ended(
    tmp_path: Path, sampler: str, trials: int, confirm: dict[str, Any] | None, total: int, last: str
) -> None:
    sweep = spec(sampler, trials, confirm)
    journal = tmp_path / "study.journal"
    one = OptunaSearcher(sweep, journal)
    ended = 0
    while (found := one.suggest(f"tune{ended}")) != Searcher.FINISHED:
        assert isinstance(found, dict)
        assert not complete(sweep, read_study(journal)), ended
        ended += 1
        status: Any = last if ended == total else "completed"
        one.finish(found["trial_id"], status, 2.0 if status == "completed" else None)
        if ended == total:
            break
        assert not complete(sweep, read_study(journal)), ended
    assert ended == total
    assert complete(sweep, read_study(journal)) is (last != "interrupted")
