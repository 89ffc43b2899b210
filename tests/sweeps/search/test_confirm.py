"""The best once more: which, on which seeds, stopped by nobody, scored on rows that nobody was tuned on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract
import optuna
import pandas as pd
import pytest
from faults import wait_for
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from bitlora.files.record import write_scores
from bitlora.files.storage import Storage
from sweeps.onray.schedulers import make_scheduler
from sweeps.search.first_look import chooser
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

LOSSES = {"t0000": 2.5, "t0001": 2.4, "t0002": 2.7, "t0003": 2.3, "t0004": 2.6, "t0005": 2.8}


def spec(**confirm: Any) -> Spec:
    space = {"quantizer": ["none", "binary"], "rank": [4, 8, 16]}
    return Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"trials": 6, "sampler": "grid", "space": space},
            "confirm": confirm,
        }
    )


def searched(folder: Path, of: Spec, losses: dict[str, float] = LOSSES) -> OptunaSearcher:
    """A searcher whose six trials of the search have ended, the last of them not yet told."""
    one = OptunaSearcher(of, folder / "study.journal")
    for index, (trial_id, loss) in enumerate(losses.items()):
        given = one.suggest(f"tune{index}")
        assert isinstance(given, dict)
        assert given["trial_id"] == trial_id
        if index < 5:
            one.finish(trial_id, "completed" if math.isfinite(loss) else "diverged", loss)
    return one


def repeats(one: OptunaSearcher) -> list[tuple[str, str, int]]:
    """What is handed out to confirm: (trial, the one it confirms, seed)."""
    found = []
    while isinstance(given := one.suggest(f"again{len(found)}"), dict):
        found.append((given["trial_id"], given["config"]["confirms"], given["config"]["seed"]))
    assert given == Searcher.FINISHED
    return found


def test_it_waits_for_the_search_and_takes_the_best_on_fresh_seeds(tmp_path: Path) -> None:
    one = searched(tmp_path, spec(top=2, seeds=2))
    assert one.total == 10
    assert one.suggest("early") is None  # one is still training
    one.finish("t0005", "completed", LOSSES["t0005"])
    assert repeats(one) == [
        ("t0006", "t0003", 1),
        ("t0007", "t0001", 1),
        ("t0008", "t0003", 2),
        ("t0009", "t0001", 2),
    ]


def test_a_repeat_has_the_configuration_that_it_confirms(tmp_path: Path) -> None:
    one = searched(tmp_path, spec(top=1, seeds=1))
    one.finish("t0005", "completed", 2.8)
    given = one.suggest("again")
    assert isinstance(given, dict)
    trials = study(tmp_path).trials
    assert trials[6].params == trials[3].params
    assert {key: given["config"][key] for key in ("quantizer", "rank")} == trials[3].params


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))


def test_the_best_of_each_value_of_an_axis(tmp_path: Path) -> None:
    one = searched(tmp_path, spec(top=1, seeds=1, by="quantizer"))
    one.finish("t0005", "completed", 2.8)
    chosen = [of for _, of, _ in repeats(one)]
    by = {study(tmp_path).trials[int(of[1:])].params["quantizer"]: of for of in chosen}
    best = {
        name: min((t.value, f"t{t.number:04d}") for t in study(tmp_path).trials[:6] if t.params["quantizer"] == name)[1]
        for name in ("none", "binary")
    }
    assert by == best


def test_the_best_of_each_combination_of_axes_also_where_one_hangs_on_the_other(tmp_path: Path) -> None:
    space = {
        "quantizer": ["none", "binary"],
        "rank": {"by": "quantizer", "none": [1, 16], "binary": [16]},
        "learning_rate": [1e-3, 1e-4],
    }
    of = Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"trials": 6, "sampler": "grid", "space": space},
            "confirm": {"top": 1, "seeds": 1, "by": ["quantizer", "rank"]},
        }
    )
    one = searched(tmp_path, of)
    assert one.total == 6 + 3
    one.finish("t0005", "completed", 2.8)
    # the grid's order: none 1, none 16, binary 16, of each two learning rates
    assert [of for _, of, _ in repeats(one)] == ["t0003", "t0001", "t0004"]


def test_what_diverged_is_not_confirmed_and_nothing_is_where_all_did(tmp_path: Path) -> None:
    one = searched(tmp_path, spec(top=9, seeds=1), {**LOSSES, "t0003": math.nan})
    one.finish("t0005", "failed", None)
    assert [of for _, of, _ in repeats(one)] == ["t0001", "t0000", "t0004", "t0002"]
    none = searched(tmp_path / "none", spec(top=1, seeds=3), dict.fromkeys(LOSSES, math.nan))
    none.finish("t0005", "diverged", None)
    assert repeats(none) == []


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """A driver that died in the middle of it: what had begun is the same trial, the rest comes as it would have."""
    one = searched(tmp_path, spec(top=2, seeds=2))
    one.finish("t0005", "completed", 2.8)
    one.suggest("again0")
    one.suggest("again1")
    one.finish("t0006", "completed", 2.2)
    other = OptunaSearcher(spec(top=2, seeds=2), tmp_path / "study.journal")
    assert (other.begun, other.left) == (["t0007"], 3)
    assert repeats(other) == [("t0007", "t0001", 1), ("t0008", "t0003", 2), ("t0009", "t0001", 2)]
    assert other.ended["t0006"].config == {**study(tmp_path).trials[3].params, "seed": 1, "confirms": "t0003"}


@dataclass(eq=False)
class Fake:
    trial_id: str
    config: dict[str, Any]
    status: str = "RUNNING"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_no_scheduler_stops_it_nor_holds_others_against_it(name: str) -> None:
    chosen = Spec.model_validate(
        {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "scheduler": {"name": name}}
    )
    scheduler: Any = make_scheduler(chosen, 32)

    def trial(name: str, **config: Any) -> Any:
        return Fake(name, {"trial_id": name, "config": config})

    repeat = trial("c", confirms="t0000")
    scheduler.on_trial_add(None, repeat)
    for other in [trial(f"s{number}") for number in range(5)]:
        scheduler.on_trial_add(None, other)
        scheduler.on_trial_result(
            None, other, {"step": 8, "eval_loss": 1.0, "training_iteration": 1, "time_total_s": 1}
        )
    worst = {"step": 8, "eval_loss": 9.0, "training_iteration": 1, "time_total_s": 1}
    assert scheduler.on_trial_result(None, repeat, worst) == TrialScheduler.CONTINUE
    for step in (16, 32):  # far better than the others will be
        best = {"step": step, "eval_loss": 0.1, "training_iteration": step // 8, "time_total_s": step // 8}
        assert scheduler.on_trial_result(None, repeat, best) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, repeat, {"step": 32, "eval_loss": 0.1})
    late = {"step": 16, "eval_loss": 0.9, "training_iteration": 2, "time_total_s": 2}
    for name_ in ("s8", "s9"):
        other = trial(name_)
        scheduler.on_trial_add(None, other)
        assert scheduler.on_trial_result(None, other, late) == TrialScheduler.CONTINUE, name_


def read(folder: Path, trial: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "trials" / trial / name)


@pytest.mark.cluster
def test_a_sweep_with_confirm_and_a_tracker_that_is_interrupted_and_goes_on(bitlora, write_spec, tmp_path, tiny_base):
    path = write_spec(
        data={"eval_rows": 6, "eval_fraction": 0.3},
        train={"steps": 40, "eval_every": 20},
        search={"trials": 4, "sampler": "grid", "space": {"rank": [2, 8], "quantizer": ["none", "binary"]}},
        confirm={"top": 2, "seeds": 2, "rows": 20},
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "trackers": ["tensorboard"]}))
    folder = tmp_path / "quick"
    running = bitlora.start("sweep", path)
    try:
        wait_for(lambda: (folder / "trials" / "t0004" / "config.json").exists(), "a trial that confirms", 120)
    finally:
        running.send_signal(2)
    assert running.wait(60) == 130
    ended = bitlora("sweep", path, "--resume")
    assert ended.code == 0, ended.err
    assert "20 to confirm on" in ended.out
    found = contract.holds(folder)
    assert contract.statuses(found) == {"completed": 8}
    best = sorted((r["eval_loss"], t) for t, r in found.items() if not r["config"]["confirms"])[:2]
    again = {(r["config"]["confirms"], r["config"]["seed"]) for r in found.values() if r["config"]["confirms"]}
    assert again == {(trial, seed) for _, trial in best for seed in (1, 2)}
    for trial, record in found.items():
        of = record["config"]["confirms"]
        assert (folder / "trials" / trial / "test.parquet").exists() == bool(of)
        if of is None:
            assert record["test_loss"] is None
            continue
        theirs, own = found[of]["config"], record["config"]
        assert {**own, "seed": 0, "confirms": None} == theirs
        tests = read(folder, trial, "test.parquet")
        assert len(tests) == 20
        assert not set(tests["example_id"]) & set(read(folder, trial, "eval.parquet")["example_id"])
        assert record["test_loss"] == pytest.approx(tests["loss"].sum() / tests["tokens"].sum(), rel=1e-12)
        assert record["test_loss"] != record["eval_loss"]
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == 2
    assert all(0 < run["worker_seconds"] < 2 * run["seconds"] for run in runs)
    assert len(list(folder.glob("logs/tune-*/t*/events.out.tfevents.*"))) >= 8


def test_what_is_left_open_is_chosen_once_when_the_search_has_ended(tmp_path: Path) -> None:
    """The finalists and the trials of the search are shown; the study remembers, also when another driver goes on."""
    of = spec(top=2, seeds="auto", rows="auto", margin="1 %")
    one = searched(tmp_path, of)
    assert one.total == 6 + 2 * 20
    told, totals = [], []

    def choose(finalists: Any, trials: Any) -> dict[str, int]:
        told.append(([(f.number, f.params["quantizer"], f.scored) for f in finalists], len(trials)))
        return {"seeds": 2, "rows": 50}

    one.confirm_by(choose, totals.append)
    assert one.suggest("early") is None
    one.finish("t0005", "completed", LOSSES["t0005"])
    given = one.suggest("again")
    assert isinstance(given, dict)
    assert given["config"] | {"quantizer": 0, "rank": 0} == {
        "quantizer": 0, "rank": 0, "seed": 1, "confirms": "t0003", "confirm_rows": 50,
    }  # fmt: skip
    params = [study(tmp_path).trials[number].params["quantizer"] for number in (3, 1)]
    assert told == [([(3, params[0], {0: "t0003"}), (1, params[1], {0: "t0001"})], 6)]
    assert (totals, one.total) == ([10], 10)
    other = OptunaSearcher(of, tmp_path / "study.journal")
    other.confirm_by(choose)
    assert [(of, seed) for _, of, seed in repeats(other)] == [("t0003", 1), ("t0001", 1), ("t0003", 2), ("t0001", 2)]
    assert len(told) == 1


def test_a_search_that_ends_chooses_by_what_is_on_disk(tmp_path: Path) -> None:
    of = spec(top=1, by="quantizer", seeds="auto", rows="auto", margin="5 %")
    one = searched(tmp_path, of)
    one.finish("t0005", "completed", LOSSES["t0005"])
    for name in LOSSES:
        losses = [10 * (LOSSES[name] + (index % 7) / 50) for index in range(40)]
        write_scores(
            tmp_path / "trials" / name / "eval.parquet", [f"e{i}" for i in range(40)], losses, [10] * 40, [40] * 40
        )
    said: list[str] = []
    one.confirm_by(chooser(of, Storage(str(tmp_path), tmp_path), 100, 32, said.append))
    confirmed = repeats(one)
    assert (
        said[0]
        == f"confirm: {len(confirmed) // 2} seeds and 30 test rows for each of 2 configurations, {len(confirmed)} trials"
    )
    assert said[1] == "of quantizers that are equal they show 5 % of the loss in four of five cases, at the least cost"
    assert "which is assumed" in said[-1]
    kept = json.loads((tmp_path / "confirm.json").read_text())
    assert (kept["seeds"], kept["rows"], kept["eval_rows"]) == (len(confirmed) // 2, 30, 40)
    assert kept["looked_at"] == list(dict.fromkeys(of for _, of, _ in confirmed))
    assert kept["shows"]
    assert kept["least"] <= 0.05
    assert (kept["apart"], kept["freedom"], kept["untold"]) == (pytest.approx(0.003), 0, "")
