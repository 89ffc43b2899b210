"""`search.where`: what is beyond it is not trained and no trial; the sampler hears of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.search import Searcher

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.agenda import complete
from sweeps.search.bounds import Bounds
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import read_study
from sweeps.spec.spec import Spec

SHAPES = tuple(LayerShape(f"model.layers.{at}.{part}", 100, 50) for at in (0, 1) for part in ("q_proj", "up_proj"))
BASE = BaseInfo("base", "none", "1", SHAPES, tuple(shape.name for shape in SHAPES), 96, 1000)
"""At rank r an adapter on all four layers has 600 r parameters; in 16 bits it has 1200 r bytes and a header."""
SPACE: dict[str, Any] = {
    "quantizer": ["none", "binary"],
    "rank": [4, 8, 16, 32],
    "learning_rate": {"low": 1e-4, "high": 5e-3, "log": True},
}


def spec(where: dict[str, Any] | None, **search: Any) -> Spec:
    data = {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}}
    return Spec.model_validate({**data, "search": {"space": SPACE, "where": where, **search}})


def params(most: float) -> dict[str, Any]:
    return {"adapter_params": {"max": most}}


def searcher(folder: Path, sweep: Spec) -> OptunaSearcher:
    return OptunaSearcher(sweep, folder / "study.journal", bounds=Bounds(sweep, BASE))


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))


def search(one: OptunaSearcher) -> list[dict[str, Any]]:
    """The configurations that it hands out, each trained at once: the larger the rank, the better."""
    found: list[dict[str, Any]] = []
    while (suggestion := one.suggest(f"tune{len(found)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        config = suggestion["config"]
        found.append(config)
        one.finish(suggestion["trial_id"], "completed", 3.0 - 0.01 * config["rank"])
    return found


@pytest.mark.parametrize(
    ("chosen", "params", "least_bytes"),
    [
        ({"rank": 4, "quantizer": "none"}, 2400, 4800),
        ({"rank": 32, "quantizer": "none"}, 19200, 38400),
        ({"rank": 32, "quantizer": "binary"}, 19200, 2400),
        ({"rank": 4, "quantizer": "none", "targets": "q_proj"}, 1200, 2400),
        ({"rank": 4, "quantizer": "none", "rank_pattern": "up_proj: 8"}, 3600, 7200),
    ],
)
def test_sizes_are_those_of_the_shapes(chosen: dict[str, Any], params: int, least_bytes: int) -> None:
    size = Bounds(spec(None), BASE).size(chosen)
    assert size.params == params
    assert least_bytes < size.bytes < least_bytes + 300  # scales and the header


def test_over_says_by_how_much() -> None:
    bounds = Bounds(spec({**params(4800), "adapter_bytes": {"max": "5KB"}}), BASE)
    assert bounds.over({"rank": 4, "quantizer": "none"}) == {}
    assert bounds.over({"rank": 8, "quantizer": "binary"}) == {}
    assert bounds.over({"rank": 32, "quantizer": "binary"}) == {"adapter_params": 3.0}
    found = bounds.over({"rank": 8, "quantizer": "none"})
    assert found.keys() == {"adapter_bytes"}
    assert math.isclose(found["adapter_bytes"], 0.94, abs_tol=0.05)
    assert not Bounds(spec(None), BASE)
    assert Bounds(spec(None), BASE).over({"rank": 32}) == {}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_is_beyond_is_no_trial(tmp_path: Path, sampler: str) -> None:
    """As many trials as the spec asks for, all within; those that were refused are nowhere in the journal."""
    sweep = spec(params(4800), sampler=sampler, trials=20)
    one = searcher(tmp_path, sweep)
    configs = search(one)
    assert {config["rank"] for config in configs} == {4, 8}
    assert len(configs) == one.total == 20
    assert one.refused > 0
    told = study(tmp_path).trials
    assert [trial.state for trial in told] == 20 * [TrialState.COMPLETE]
    assert [trial.user_attrs["trial_id"] for trial in told] == [f"t{number:04d}" for number in range(20)]
    assert [trial.params for trial in told] == configs
    assert complete(sweep, read_study(tmp_path / "study.journal"))
    assert searcher(tmp_path, sweep).left == 0


def test_the_sampler_hears_of_what_was_refused(tmp_path: Path) -> None:
    """Here the best would be beyond the bounds, and half of the space is: drawn at random as many are refused as taken."""
    refused = {}
    for sampler in ("tpe", "random"):
        refused[sampler] = 0
        for seed in range(3):
            one = searcher(tmp_path / sampler / str(seed), spec(params(4800), sampler=sampler, trials=24, seed=seed))
            search(one)
            refused[sampler] += one.refused
    assert refused["random"] > 3 * 24 / 2
    assert refused["tpe"] < refused["random"] / 2


def test_as_many_are_random_as_without_bounds(tmp_path: Path) -> None:
    """What is refused is none of the trials that a sampler begins with."""
    one = searcher(tmp_path, spec(params(2400), startup=8, trials=8, seed=3))
    other = searcher(tmp_path / "random", spec(params(2400), sampler="random", trials=8, seed=3))
    rates = [[config["learning_rate"] for config in search(each)] for each in (one, other)]
    assert one.refused >= 8
    assert rates[0] == rates[1]


def test_where_hardly_anything_fits_something_is_found(tmp_path: Path) -> None:
    space = {"rank": {"low": 1, "high": 100_000}, "learning_rate": [1e-4, 1e-3]}
    one = searcher(tmp_path, spec(params(600), sampler="random", space=space, trials=3))
    assert [config["rank"] for config in search(one)] == [1, 1, 1]


def test_a_grid_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    space = {"rank": [16, 4, 8], "learning_rate": [1e-4, 1e-3]}
    sweep = spec(params(4800), sampler="grid", space=space, first=[{"rank": 8, "learning_rate": 1e-3}])
    one = searcher(tmp_path, sweep)
    assert one.total == 4
    for number in range(4):
        assert not complete(sweep, read_study(tmp_path / "study.journal"))
        suggestion = one.suggest(f"tune{number}")
        assert isinstance(suggestion, dict)
        one.finish(suggestion["trial_id"], "completed", 2.0)
    assert one.suggest("more") == Searcher.FINISHED
    told = study(tmp_path)
    assert [(trial.params["rank"], trial.params["learning_rate"]) for trial in told.trials] == [
        (8, 1e-3), (4, 1e-4), (4, 1e-3), (8, 1e-4)
    ]  # fmt: skip
    assert complete(sweep, read_study(tmp_path / "study.journal"))
    assert told.user_attrs["search_ended"] == "only 4 points of the grid fit search.where"


def test_a_first_configuration_that_leaves_axes_out_is_not_lost(tmp_path: Path) -> None:
    """Its other axes are drawn until it fits."""
    space = {**SPACE, "quantizer": ["none", "int8", "int4", "binary"], "rank": [4, 32]}
    for seed in range(4):
        bounds = {"adapter_bytes": {"max": 3000}}
        sweep = spec(bounds, space=space, first=[{"rank": 32}, {"quantizer": "int8"}], trials=2, seed=seed)
        configs = search(searcher(tmp_path / str(seed), sweep))
        assert [(c["rank"], c["quantizer"]) for c in configs] == [(32, "binary"), (4, "int8")]


def errors(where: dict[str, Any] | None, **search: Any) -> list[str]:
    return Bounds(spec(where, **search), BASE).errors()


def test_a_space_in_which_nothing_fits_is_refused() -> None:
    assert errors(params(2400)) == errors(None) == []
    assert errors(params(2399)) == [
        "search.where: nothing in search.space fits: the smallest (quantizer: none, rank: 4) has 2,400 parameters, and "
        "adapter_params.max is 2,399; give more, or smaller adapters"
    ]
    (line,) = errors({"adapter_bytes": {"max": 500}}, space={"rank": {"low": 2, "high": 64}})
    assert line.startswith("search.where: nothing in search.space fits: the smallest (rank: 2) has 2,4")
    (line,) = errors(params(1), space={})
    assert line.startswith("search.where: no adapter fits: the smallest has 9,600 parameters")
    one = [{"rank": 4, "quantizer": "binary"}, {"rank": 16}]
    assert errors(params(2400), first=one) == [
        "search.first.1: does not fit search.where: the smallest (quantizer: none, rank: 16) has 9,600 parameters, and "
        "adapter_params.max is 2,400; give more, or smaller adapters"
    ]


def test_each_bound_alone_fits_and_both_do_not() -> None:
    """The fewest parameters are in 16 bits, the fewest bytes at the larger rank."""
    space = {"rank": {"by": "quantizer", "none": [4], "binary": [8]}, "quantizer": ["none", "binary"]}
    assert errors({"adapter_params": {"max": 2400}}, space=space) == []
    assert errors({"adapter_bytes": {"max": 1500}}, space=space) == []
    (line,) = errors({"adapter_params": {"max": 2400}, "adapter_bytes": {"max": 1500}}, space=space)
    assert "(quantizer: binary, rank: 8) has 4,800 parameters, and adapter_params.max is 2,400;" in line


def test_branches_of_a_range_are_all_looked_at() -> None:
    """Only where the batch is 6, or between the ends, there is an adapter that fits."""
    for branches in ({6: [4], "default": [64]}, {2: [64], "default": [4]}):
        space = {"batch_size": {"low": 2, "high": 8}, "rank": {"by": "batch_size", **branches}}
        assert errors(params(2400), space=space) == []
        assert len(errors(params(2399), space=space)) == 1


def test_survives_what_tune_does_to_it(tmp_path: Path) -> None:
    """It pickles the searcher, with whoever is told of what."""
    one = searcher(tmp_path, spec(params(4800), trials=8, startup=2))
    one.ended_early = lambda why: one.total
    for number in range(4):
        suggestion = one.suggest(f"tune{number}")
        assert isinstance(suggestion, dict)
        one.finish(suggestion["trial_id"], "completed", 2.0)
    copy = cloudpickle.loads(cloudpickle.dumps(one))
    assert copy.refused == one.refused
    assert copy.suggest("tune4")["config"]["rank"] <= 8
