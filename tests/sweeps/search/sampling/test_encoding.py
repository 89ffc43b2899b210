"""Spaces as points, and the configurations that are looked at."""

from __future__ import annotations

import math
from random import Random
from statistics import pstdev
from typing import Any

import pytest

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.sampling.candidates import LISTED, Candidates
from sweeps.search.sampling.encoding import CATEGORY, LENGTHS, Encoding
from sweeps.search.sampling.prior import RatePrior, rate_prior
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

SHAPES = (LayerShape("q", 576, 64),)
BASE = BaseInfo("base", "nf4", "1", SHAPES, ("q",), 96, 1000)
RATES = {"low": 1e-4, "high": 1e-2, "log": True}
SPACE: dict[str, Any] = {
    "quantizer": ["none", "binary", "ternary"],
    "rank": [4, 16],
    "dora": [False, True],
    "dropout": {"low": 0.0, "high": 0.2, "step": 0.05},
    "learning_rate": {"by": "quantizer", "none": RATES, "default": {**RATES, "high": 4e-2}},
}
POINT = {"quantizer": "ternary", "rank": 16, "dora": True, "dropout": 0.1, "learning_rate": 1e-3}


def made(space: dict[str, Any]) -> tuple[spaces.Space, RatePrior]:
    spec = Spec.model_validate(
        {"name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "search": {"space": space, "sampler": "gp"}}
    )
    prior = rate_prior(spec, BASE, 32)
    assert prior is not None
    return spec.search.space, prior


def test_numbers_go_by_their_logarithm_where_they_have_one() -> None:
    space, prior = made(SPACE)
    points, offsets = Encoding(space, None).points([POINT])
    assert points.tolist() == [pytest.approx([2, math.log(16), 1, 0.1, math.log(1e-3)])]
    assert offsets.tolist() == [0]
    encoding = Encoding(space, prior)
    assert encoding.categories.tolist() == [True, False, True, False, False]
    assert encoding.lengths == pytest.approx([CATEGORY, LENGTHS["rank"], CATEGORY, 1.5 * 0.2, LENGTHS["learning_rate"]])
    alpha = Encoding(made({**SPACE, "alpha": [8, 32]})[0], None)
    assert alpha.lengths[-1] == pytest.approx(1.5 * math.log(4))


def test_learning_rates_go_by_how_far_they_are_from_the_likeliest() -> None:
    space, prior = made(SPACE)
    likeliest = prior.likeliest(POINT)
    chosen = [{**POINT, "learning_rate": likeliest * times} for times in (1, 2, 1 / 4, 1e-9)]
    points, offsets = Encoding(space, prior).points(chosen)
    assert points[:, -1] == pytest.approx([0, math.log(2), -math.log(4), math.log(1e-9)])
    assert offsets == pytest.approx([0, 0.25, 1, 4])


def test_what_is_drawn_lies_in_the_space_and_has_what_is_planned() -> None:
    space, prior = made(SPACE)
    candidates = Candidates(space, prior, Random(0))
    assert candidates.all is None
    drawn = [candidates.drawn({"rank": 4}) for _ in range(300)]
    near = [candidates.near(POINT, 0.03, {"dora": False}) for _ in range(300)]
    assert all(spaces.contains(space, one) and one.keys() == space.keys() for one in drawn + near)
    assert {one["rank"] for one in drawn} == {4}
    assert {one["quantizer"] for one in drawn} == {"none", "binary", "ternary"}
    assert {one["dora"] for one in near} == {False}
    rates = [math.log(one["learning_rate"] / 1e-3) for one in near if one["quantizer"] == "ternary"]
    assert pstdev(rates) == pytest.approx(0.03 * math.log(400), rel=0.2)
    assert 0.6 < sum(one["quantizer"] == "ternary" for one in near) / 300 < 1


def test_lists_are_looked_at_in_full_while_they_are_not_too_long() -> None:
    lists = {"rank": [4, 8], "learning_rate": {"by": "rank", 4: [1e-3], "default": [1e-3, 2e-3]}}
    found = Candidates(made(lists)[0], None, Random(0)).all
    assert found == [
        {"rank": 4, "learning_rate": 1e-3},
        {"rank": 8, "learning_rate": 1e-3},
        {"rank": 8, "learning_rate": 2e-3},
    ]
    assert (
        Candidates(
            made({"rank": [*range(1, LISTED + 2)], "alpha": [8]} | {"learning_rate": [1e-3]})[0], None, Random(0)
        ).all
        is None
    )
