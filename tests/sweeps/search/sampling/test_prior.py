"""`search.prior`: its rates against the formula written out, where trials go first, and that data outweigh it."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.search import Searcher

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.bounds import Bounds
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.sampling.prior import FirstPoints, RatePrior, rate_prior
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec

RANGE = {"low": 1e-4, "high": 1e-1, "log": True}
LIST = [1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3]
SPACE: dict[str, Any] = {"quantizer": ["none", "binary"], "rank": [4, 8, 16, 32], "learning_rate": RANGE}


def base(width: int = 576) -> BaseInfo:
    """Most layers take in what is its width."""
    layers = (*(LayerShape(name, width, 64) for name in ("q", "k", "v")), LayerShape("down", 4 * width, width))
    return BaseInfo("base", "nf4", "1", layers, ("q", "k", "v", "down"), 96, 1000)


def spec(space: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None, **search: Any) -> Spec:
    data = {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "adapter": adapter or {}}
    return Spec.model_validate({**data, "search": {"space": SPACE if space is None else space, **search}})


def prior(sweep: Spec, steps: int = 32, width: int = 576) -> RatePrior:
    found = rate_prior(sweep, base(width), steps)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("adapter", "chosen", "steps", "width", "rate"),
    [
        # alpha 16 is the default
        ({}, {}, 32, 2000, 5e-5 * 15 * 2**0.5),
        ({"alpha": 32}, {}, 100, 2000, 7.5e-4),
        ({"alpha": 32}, {}, 101, 2000, 5e-4),
        ({"alpha": 32}, {"rank": 4}, 12, 576, 5e-5 * 15 * (2000 / 576) ** 0.781),
        ({"alpha": 32}, {"rank": 64}, 12, 576, 5e-5 * 15 * (2000 / 576) ** 0.781),
        ({}, {"alpha": 128}, 270, 4096, 5e-5 * 10 * (2000 / 4096) ** 0.781 / 2),
        ({"scaling": "rslora"}, {"alpha": 8, "rank": 16}, 12, 2000, 7.5e-4),
        ({"alpha": 32}, {"quantizer": "int4"}, 12, 2000, 7.5e-4),
        ({"alpha": 32}, {"quantizer": "int2"}, 12, 2000, 1.5e-3),
        ({"alpha": 32}, {"quantizer": "ternary"}, 12, 2000, 1.5e-3),
        ({"alpha": 32, "quantizer": "double_binary"}, {}, 12, 2000, 1.5e-3),
    ],
)
def test_the_likeliest_rate(
    adapter: dict[str, Any], chosen: dict[str, Any], steps: int, width: int, rate: float
) -> None:
    assert prior(spec(adapter=adapter), steps, width).likeliest(chosen) == pytest.approx(rate, rel=1e-12)


def test_between_batch_sizes_of_a_sweep_it_goes_with_the_square_root() -> None:
    alone = prior(spec({"learning_rate": RANGE})).likeliest({})
    several = prior(spec({"learning_rate": RANGE, "batch_size": [4, 8, 64]}))
    assert [several.likeliest({"batch_size": size}) / alone for size in (4, 16, 64)] == pytest.approx([0.5, 1, 2])


def test_shares_of_what_is_probable() -> None:
    """Of a range by the normal distribution cut off at its ends, of a list by the density at its values."""
    middle = prior(spec()).likeliest({"quantizer": "none"})
    normal = NormalDist(math.log(middle), math.log(2))
    one = prior(spec({**SPACE, "learning_rate": {"low": middle / 4, "high": middle, "log": True}}))
    below, above = normal.cdf(math.log(middle / 4)), 0.5
    for share in (0.01, 0.3, 0.5, 0.99, 1.0):
        rate = one.rate({"quantizer": "none"}, share)
        assert normal.cdf(math.log(rate)) == pytest.approx(below + share * (above - below))
    listed = prior(spec({**SPACE, "learning_rate": [4 * middle, middle, middle / 2]}))
    drawn = Counter(listed.rate({"quantizer": "none"}, (n + 0.5) / 1000) for n in range(1000))
    weights = {middle / 2: math.exp(-0.5), middle: 1.0, 4 * middle: math.exp(-2)}
    for rate, weight in weights.items():
        assert drawn[rate] / 1000 == pytest.approx(weight / sum(weights.values()), abs=0.002)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ({"low": 1e-9, "high": 1e-8, "log": True}, 1e-8),
        ({"low": 10.0, "high": 100.0, "log": True}, 10.0),
        ([1e-9, 1e-8], 1e-8),
        ([100.0, 10.0], 10.0),
        ({"low": 0.001, "high": 0.0101, "step": 0.003}, None),
        ({"by": "quantizer", "none": [1e-3], "binary": [2e-3]}, 1e-3),
    ],
)
def test_rates_stay_in_the_space_however_far_that_is(domain: Any, expected: float | None) -> None:
    one = prior(spec({**SPACE, "learning_rate": domain}))
    for share in (0.01, 0.1, 0.5, 0.9, 1.0):
        rate = one.rate({"quantizer": "none"}, share)
        assert rate == pytest.approx(expected, rel=0.5) if expected else rate in (0.001, 0.004, 0.007, 0.01)
        if isinstance(domain, dict) and "low" in domain:
            assert domain["low"] <= rate <= domain["high"]


def test_who_has_none() -> None:
    hung = {"learning_rate": [1e-3, 1e-2], "alpha": {"by": "learning_rate", 1e-3: [8], 1e-2: [16]}}
    for sweep in (spec(prior="none"), spec(sampler="random"), spec({"rank": [4, 8]}), spec(hung)):
        assert rate_prior(sweep, base(), 32) is None
    assert rate_prior(spec(sampler="auto"), base(), 32) is not None


def test_first_points_go_everywhere_once() -> None:
    space = spec({**SPACE, "learning_rate": [1e-3, 2e-3], "dropout": {"low": 0.0, "high": 0.1}}).search.space
    firsts = FirstPoints(space, 4, Random(0))
    points = [firsts.point() for _ in range(4)]
    assert Counter(point["quantizer"] for point in points) == {"none": 2, "binary": 2}
    assert {point["rank"] for point in points} == {4, 8, 16, 32}
    assert all(set(point) == {"quantizer", "rank"} for point in points)
    assert sorted(firsts.share() for _ in range(4)) == [0.125, 0.375, 0.625, 0.875]


def search(folder: Path, sweep: Spec, best: float, **more: Any) -> list[dict[str, Any]]:
    """The configurations of a sweep whose trials do best at a rate of `best`."""
    one = OptunaSearcher(sweep, folder / "study.journal", prior=rate_prior(sweep, base(), 32), **more)
    found: list[dict[str, Any]] = []
    while (suggestion := one.suggest(f"tune{len(found)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        config = suggestion["config"]
        found.append(config)
        one.finish(suggestion["trial_id"], "completed", 2.0 + math.log10(config["learning_rate"] / best) ** 2)
    return found


def test_the_first_trials_are_spread_over_it(tmp_path: Path) -> None:
    """No rank twice, and none of the fifths of the prior; what is planned comes before, as it is."""
    first = {"quantizer": "none", "rank": 4, "learning_rate": 2e-4}
    sweep = spec(trials=4, startup=5, first=[first])
    planned, *configs = search(tmp_path, sweep, best=1e-3)
    assert planned == first
    one = prior(sweep)
    shares = [NormalDist().cdf(math.log(c["learning_rate"] / one.likeliest(c)) / math.log(2)) for c in configs]
    assert len({int(share * 5) for share in shares}) == len(configs) == 3
    assert len({config["rank"] for config in configs}) == 3


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize(
    "space", [{"learning_rate": RANGE}, {"learning_rate": LIST, "rank": [4, 8]}], ids=["range", "lists"]
)
def test_more_slots_than_first_trials_are_not_given_the_same(
    tmp_path: Path, sampler: str, space: dict[str, Any]
) -> None:
    """Equal trials are trained once: whoever asks before anything is known would get none that is new."""
    sweep = spec(space, sampler=sampler, trials=9, startup=4)
    more: dict[str, Any] = {"prior": prior(sweep), "essence": lambda config: json.dumps(config, sort_keys=True)}
    searcher = OptunaSearcher(sweep, tmp_path / "study.journal", **more)
    asked = [searcher.suggest(f"tune{number}") for number in range(9)]
    assert all(isinstance(one, dict) for one in asked)


def test_data_soon_outweigh_a_prior_that_is_wrong(tmp_path: Path) -> None:
    """The best rate is 15 times the likeliest, or a fifteenth of it: four standard deviations off."""
    for times in (15.0, 1 / 15):
        last, firsts = [], []
        for seed in range(3):
            sweep = spec({"learning_rate": {"low": 1e-5, "high": 1.0, "log": True}}, trials=40, startup=4, seed=seed)
            best = prior(sweep).likeliest({}) * times
            off = [abs(math.log(c["learning_rate"] / best)) for c in search(tmp_path / f"{times}{seed}", sweep, best)]
            firsts.append(min(off[:4]))
            last.append(min(off))
        assert fmean(firsts) > math.log(4)
        assert fmean(last) < math.log(1.5)


def test_it_goes_along_when_the_searcher_is_pickled(tmp_path: Path) -> None:
    """As Ray's Tuner does at the start."""
    sweep = spec(trials=4)
    one = OptunaSearcher(sweep, tmp_path / "study.journal", prior=rate_prior(sweep, base(), 32))
    lock = threading.RLock()
    one.confirm_by(lambda *_: {"seeds": len(repr(lock))}, lambda total: repr(lock))
    assert cloudpickle.loads(cloudpickle.dumps(one)).left == 4


def test_what_earlier_sweeps_came_to_counts_as_data(tmp_path: Path) -> None:
    """From the first trial on; and bounds hold."""
    sweep = spec(trials=12, startup=4, where={"adapter_params": {"max": 30_000}})
    far = 10 * prior(sweep).likeliest({})
    earlier = [
        EarlierTrial({"quantizer": "none", "rank": 4, "learning_rate": far * 1.1 ** (n - 20)}, 2.0 + 0.01 * abs(n - 20))
        for n in range(40)
    ]
    configs = search(tmp_path, sweep, best=far, bounds=Bounds(sweep, base()), earlier=earlier)
    assert {config["rank"] for config in configs} <= {4}
    rates = [config["learning_rate"] for config in configs]
    assert sum(rate > far / 3 for rate in rates) >= 6


def test_it_says_in_words_which_rates_it_takes() -> None:
    """Of a width of 2000 and a hundred steps 7.5e-4 with alpha 32, half of it with 128; twice as much for low bits."""
    space = {"quantizer": ["none", "binary"], "alpha": [32, 128], "learning_rate": RANGE}
    said = "half to twice as much, by the literature and by sweeps recorded before"
    assert prior(spec(space), 100, 2000).words() == f"learning rates around 0.00038 to 0.0015, {said}"
    alone = prior(spec({"learning_rate": RANGE}, {"alpha": 32}), 100, 2000)
    assert alone.words() == f"learning rates around 0.00075, {said}"


def test_it_counts_the_trials_that_have_their_rate_from_it(tmp_path: Path) -> None:
    for sampler, startup in (("tpe", 4), ("gp", 3)):
        sweep = spec(trials=startup, startup=startup, sampler=sampler, first=[{"learning_rate": 1e-3}])
        one = OptunaSearcher(sweep, tmp_path / sampler / "study.journal", prior=prior(sweep))
        for number in range(startup):
            suggestion = one.suggest(f"tune{number}")
            assert isinstance(suggestion, dict)
            one.finish(suggestion["trial_id"], "completed", 2.0 + number)
        assert one.by_prior == startup - 1
