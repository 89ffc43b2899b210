"""`search.hours`, `search.tokens`, `search.patience`: after that no new trial is asked for, and what has begun goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from sweeps.search.agenda import complete
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import read_study
from sweeps.spec.spec import Spec


def spec(confirm: dict[str, Any] | None = None, **search: Any) -> Spec:
    data = {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}}
    space = {"learning_rate": {"low": 1e-4, "high": 1e-3}}
    return Spec.model_validate(
        {**data, "search": {"space": space, "sampler": "random", "trials": 20, **search}, "confirm": confirm}
    )


class Driver:
    """A run of a sweep by hand. `now`: its clock, in seconds."""

    def __init__(self, folder: Path, sweep: Spec) -> None:
        self.now = 0.0
        self._journal = folder / "study.journal"
        self._spec = sweep
        self.searcher = OptunaSearcher(sweep, self._journal, clock=lambda: self.now)
        self.said: list[str] = []
        self.searcher.ended_early = self.said.append

    def ask(self) -> str:
        """Our id of the next trial; nothing where there is none."""
        found = self.searcher.suggest(f"tune{self.searcher.total - self.searcher.left}")
        return found["trial_id"] if isinstance(found, dict) else ""

    def train(self, trial: str, tokens: int) -> None:
        (tune,) = [tune for tune, ours in self.searcher._ours.items() if ours == trial]
        self.searcher.on_trial_result(tune, {"step": tokens, "eval_loss": 3.0, "tokens": tokens})

    def end(self, trial: str, loss: float | None = None, status: Any = "completed") -> None:
        self.searcher.finish(trial, status, loss)

    @property
    def complete(self) -> bool:
        return complete(self._spec, read_study(self._journal))


def test_without_budgets_all_trials_are_asked_for(tmp_path: Path) -> None:
    run = Driver(tmp_path, spec(trials=3))
    for loss in (1.0, 2.0, 3.0):
        run.now += 1e9
        run.end(run.ask(), loss)
    assert run.ask() == ""
    assert (run.said, run.searcher.why_ended, run.complete) == ([], "", True)


def test_after_its_hours_no_new_trial_is_asked_for_and_those_that_run_end(tmp_path: Path) -> None:
    run = Driver(tmp_path, spec(hours=2.0))
    first, second = run.ask(), run.ask()
    run.now = 7199.0
    run.end(first, 2.0)
    third = run.ask()
    assert third == "t0002"
    run.now = 7200.0
    assert run.searcher.suggest("more") == Searcher.FINISHED
    assert run.said == ["search.hours (2) are over"]
    assert (run.searcher.total, run.searcher.left) == (3, 0)
    assert not run.complete
    run.end(second, 2.5)
    run.end(third, 1.5)
    assert run.complete
    assert run.searcher.suggest("more") == Searcher.FINISHED
    assert run.said == ["search.hours (2) are over"]


def test_hours_of_earlier_runs_count(tmp_path: Path) -> None:
    """Of a driver that was killed up to what began or ended last; an interrupted trial goes on all the same."""
    one = Driver(tmp_path, spec(hours=2.0))
    first, second = one.ask(), one.ask()
    one.now = 5000.0
    one.end(first, 2.0)
    one.now = 5500.0  # and is killed
    two = Driver(tmp_path, spec(hours=2.0))
    two.now = 2199.0
    assert two.ask() == second
    assert two.ask() == "t0002"
    two.now = 2200.0
    assert two.ask() == ""
    two.searcher.close()
    three = Driver(tmp_path, spec(hours=2.0))
    assert (three.searcher.total, three.searcher.left) == (3, 2)
    assert [three.ask(), three.ask(), three.ask()] == [second, "t0002", ""]
    three.end(second, 2.0)
    assert not three.complete
    three.end("t0002", 2.0)
    assert three.complete
    assert three.searcher.why_ended == "search.hours (2) are over"
    assert Driver(tmp_path, spec(hours=2.0)).searcher.left == 0


def test_hours_that_were_over_when_a_driver_died_leave_nothing_to_ask_for(tmp_path: Path) -> None:
    one = Driver(tmp_path, spec(hours=1.0))
    trial = one.ask()
    one.now = 4000.0
    one.end(trial, 2.0)
    two = Driver(tmp_path, spec(hours=1.0))
    assert (two.searcher.left, two.searcher.total, two.complete) == (0, 1, True)


def test_tokens_are_those_of_all_trials(tmp_path: Path) -> None:
    run = Driver(tmp_path, spec(tokens=1000))
    first, second = run.ask(), run.ask()
    run.train(first, 300)
    run.train(first, 600)
    run.train(second, 399)
    third = run.ask()
    assert third == "t0002"
    run.train(third, 1)
    assert run.ask() == ""
    assert run.said == ["search.tokens (1,000) are spent: trials were trained on 1,000"]


def test_tokens_of_earlier_runs_count_once(tmp_path: Path) -> None:
    one = Driver(tmp_path, spec(tokens=1000))
    first, second = one.ask(), one.ask()
    one.end(first, 2.0)
    one.searcher.close()
    two = Driver(tmp_path, spec(tokens=1000))
    two.searcher.trained({first: 500, second: 300})
    assert two.ask() == second
    two.train(second, 450)  # since its first step
    assert two.ask() == "t0002"
    two.train("t0002", 50)
    assert two.ask() == ""
    three = Driver(tmp_path / "three", spec(tokens=1000))
    three.searcher.trained({"t0000": 1000})
    assert (three.searcher.left, three.searcher.total) == (0, 0)


def test_patience_is_over_after_so_many_in_a_row_without_a_new_best_in_full(tmp_path: Path) -> None:
    run = Driver(tmp_path, spec(patience=3))
    ends: list[tuple[Any, float | None]] = [
        ("diverged", None),
        ("failed", None),
        ("completed", 2.0),
        ("pruned", 1.0),  # not at full budget
        ("completed", 2.0),
        ("completed", 1.9),
        ("completed", 1.95),
        ("interrupted", None),  # has not ended
        ("pruned", 3.0),
    ]
    for status, loss in ends:
        trial = run.ask()
        assert trial, run.said
        run.end(trial, loss, status)
    last, running = run.ask(), run.ask()
    run.end(last, 1.9)
    assert run.ask() == ""
    assert run.said == ["search.patience (3) is over: so many trials in a row ended without a new best at full budget"]
    run.end(running, 1.0)  # whatever it comes to
    assert run.ask() == ""
    run.searcher.close()


@pytest.mark.parametrize("ended", [2, 3])
def test_patience_of_an_earlier_run_counts(tmp_path: Path, ended: int) -> None:
    one = Driver(tmp_path, spec(patience=3))
    trials = [one.ask() for _ in range(4)]
    one.end(trials[3], 1.0)  # in the order in which they end
    for trial in trials[:ended]:
        one.end(trial, 2.0)
    one.searcher.close()
    two = Driver(tmp_path, spec(patience=3))
    assert two.searcher.left == (17 if ended == 2 else 0)


@pytest.mark.parametrize(
    ("bound", "right"),
    [
        ({"hours": 2.0}, "search.hours (2) are over; give --resume --set search.hours=N with more than 2.51, or null"),
        (
            {"tokens": 1000},
            "search.tokens (1,000) are spent: trials were trained on 1,200; "
            "give --resume --set search.tokens=N with more than 1200, or null",
        ),
        (
            {"patience": 1},
            "search.patience (1) is over: so many trials in a row ended without a new best at full budget; "
            "give --resume --set search.patience=N with more than 2, or null",
        ),
    ],
    ids=["hours", "tokens", "patience"],
)
@pytest.mark.parametrize("asked", [True, False])
def test_more_trials_are_refused_where_a_bound_is_spent(
    tmp_path: Path, bound: dict[str, Any], right: str, asked: bool
) -> None:
    """Has the search been asked for another trial since then, or not yet?"""
    run = Driver(tmp_path, spec(**bound))
    first, second, third, running = (run.ask() for _ in range(4))
    assert run.searcher.more(1) == ""
    run.now = 2.501 * 3600
    run.train(first, 1200)
    run.end(first, 2.0)
    run.end(second, 3.0)
    run.end(third, 3.0)
    if asked:
        assert run.ask() == ""
    before = (tmp_path / "study.journal").read_bytes()
    assert run.searcher.more(3) == f"{right}, when this sweep has ended"
    assert (tmp_path / "study.journal").read_bytes() == before
    assert run.searcher.spec == spec(**bound, trials=21)
    assert run.ask() == ""
    run.end(running, 4.0)
    # whoever reads what the sweep says of itself by then finds it ended
    assert complete(run.searcher.spec, read_study(tmp_path / "study.journal"))
    assert run.searcher.why_ended == right.partition("; give")[0]


def test_confirm_follows_and_its_trials_spend_no_patience(tmp_path: Path) -> None:
    sweep = spec(patience=2, confirm={"top": 2, "seeds": 2})
    run = Driver(tmp_path, sweep)
    for loss in (1.0, 2.0):
        run.end(run.ask(), loss)
    running = run.ask()
    run.end(run.ask(), 3.0)
    assert run.searcher.suggest("t") is None  # one that searches still runs
    assert run.searcher.total == 4 + 4
    run.end(running, 0.5)
    for _ in range(4):
        trial = run.ask()
        assert run.searcher._suggested[trial]["config"]["confirms"] in ("t0000", "t0002")
        assert not run.complete
        run.end(trial, 2.0)
    assert run.ask() == ""
    assert run.complete


def test_whichever_is_spent_first(tmp_path: Path) -> None:
    run = Driver(tmp_path, spec(hours=1.0, tokens=10, patience=1))
    first = run.ask()
    run.train(first, 9)
    run.end(first, 2.0)
    second = run.ask()
    run.end(second, 3.0)
    assert run.ask() == ""
    assert run.said == ["search.patience (1) is over: so many trials in a row ended without a new best at full budget"]
