"""The search space: parsed, suggested, enumerated."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from sweeps.spec.parse_space import parse
from sweeps.spec.space import (
    By,
    Choices,
    Range,
    Space,
    contains,
    dump,
    endless,
    extent,
    grid,
    order,
    params,
    suggest,
    together,
)

HANGING = {
    "learning_rate": {
        "by": "quantizer",
        "none": {"low": 1e-4, "high": 2e-3, "log": True},
        "default": {"low": 5e-3, "high": 1e-2},
    },
    "quantizer": ["none", "binary", "ternary"],
}


def good(raw: Any) -> Space:
    space, problems = parse(raw)
    assert problems == []
    return space


def test_parse_types_each_axis_by_its_own() -> None:
    space = good(
        {"rank": [4, 8], "alpha": [8, 16.5], "seed": {"low": 0, "high": 9}, "dropout": {"low": 0, "high": 0.5}}
    )
    assert space == {
        "rank": Choices((4, 8)),
        "alpha": Choices((8.0, 16.5)),
        "seed": Range(0, 9),
        "dropout": Range(0.0, 0.5),
    }
    assert [type(value) for value in (*space["rank"].values, space["seed"].low)] == [int, int, int]  # type: ignore[union-attr]
    assert type(space["dropout"].low) is float  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "raw",
    [{"rank": {"low": 4, "high": 16, "step": 4}, "quantizer": ["none"]}, HANGING, {}, {"alpha": {"low": 1, "high": 2}}],
)
def test_dump_parses_back(raw: Any) -> None:
    assert good(dump(good(raw))) == good(raw)


@pytest.mark.parametrize(
    ("raw", "path", "said"),
    [
        (3, (), "found 3"),
        ({"rnk": [4]}, ("rnk",), "did you mean rank?"),
        ({"steps": [4]}, ("steps",), "not an axis; valid: quantizer"),
        ({"rank": 4}, ("rank",), "give a list of choices"),
        ({"rank": []}, ("rank",), "empty list"),
        ({"rank": [4, 0]}, ("rank", 1), "at least 1"),
        ({"rank": [4, 8.0]}, ("rank", 1), "whole number"),
        ({"alpha": [8, 8.0]}, ("alpha", 1), "twice"),
        ({"quantizer": ["bianry"]}, ("quantizer", 0), "did you mean binary?"),
        ({"quantizer": {"low": 1, "high": 2}}, ("quantizer",), "takes a list"),
        ({"alpha": {"low": 2, "high": 1}}, ("alpha", "low"), "not below"),
        ({"alpha": {"low": 2, "high": 2}}, ("alpha", "low"), "not below"),
        ({"alpha": {"low": 2}}, ("alpha", "high"), "missing"),
        ({"alpha": {"low": 2, "high": 3, "lg": True}}, ("alpha", "lg"), "did you mean log?"),
        ({"dropout": {"low": 0, "high": 1}}, ("dropout", "high"), "below 1"),
        ({"dropout": {"low": 0, "high": 0.5, "log": True}}, ("dropout", "low"), "above 0"),
        ({"rank": {"low": 4, "high": 8, "step": 0.5}}, ("rank", "step"), "whole number"),
        ({"rank": {"low": 4, "high": 8, "step": 5}}, ("rank", "step"), "wider"),
        ({"rank": {"low": 4, "high": 8, "step": 2, "log": True}}, ("rank", "step"), "not both"),
        ({"alpha": {"low": 1, "high": 8, "log": "yes"}}, ("alpha", "log"), "true or false"),
        ({"rank": {"by": "alpha", "default": [4]}}, ("rank", "by"), "not another axis"),
        ({"rank": {"by": ["x"], "default": [4]}}, ("rank", "by"), "not another axis"),
        ({"rank": {"by": "rank", "default": [4]}}, ("rank", "by"), "not another axis"),
        ({"rank": {"by": "alpha"}, "alpha": [1]}, ("rank",), "nothing but by"),
        ({"rank": {"by": "alpha", 1: [4]}, "alpha": [1, 2]}, ("rank",), "nothing for alpha 2.0"),
        ({"rank": {"by": "alpha", 1: [4]}, "alpha": {"low": 1, "high": 2}}, ("rank",), "every value of alpha"),
        ({"rank": {"by": "alpha", 3: [4], "default": [4]}, "alpha": [1]}, ("rank", 3), "not a value"),
        ({"rank": {"by": "quantizer", "bin": [4], "none": [4]}, "quantizer": ["none"]}, ("rank", "bin"), "give none"),
    ],
)
def test_what_is_wrong_has_its_path(raw: Any, path: tuple[str | int, ...], said: str) -> None:
    _, problems = parse(raw)
    assert [at for at, _ in problems] == [path]
    assert said in problems[0][1]


def test_a_circle_is_an_error_on_each_axis_of_it() -> None:
    raw = {"rank": {"by": "alpha", "default": [4]}, "alpha": {"by": "rank", "default": [4]}, "seed": [1]}
    assert [at for at, _ in parse(raw)[1]] == [("rank", "by"), ("alpha", "by")]


def test_an_axis_that_hangs_on_a_broken_one_has_no_error_of_its_own() -> None:
    space, problems = parse({"rank": {"by": "alpha", "default": [4]}, "alpha": 3, "seed": [1]})
    assert [at for at, _ in problems] == [("alpha",)]
    assert list(space) == ["seed"]


def test_parents_come_first() -> None:
    space = good({**HANGING, "alpha": {"by": "learning_rate", "default": [1]}, "seed": [0]})
    assert order(space) == ["quantizer", "learning_rate", "alpha", "seed"]


def test_suggested_points_lie_in_the_space_and_branches_keep_their_distributions() -> None:
    space = good({**HANGING, "rank": {"low": 4, "high": 16, "step": 4}, "alpha": {"low": 1, "high": 64, "log": True}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: dict[str, set[str]] = {}
    for _ in range(40):
        trial = study.ask()
        config = suggest(trial, space)
        assert set(config) == set(space)
        assert contains(space, config)
        assert type(config["rank"]) is int
        assert (config["learning_rate"] <= 2e-3) == (config["quantizer"] == "none")
        for name, distribution in trial.distributions.items():
            seen.setdefault(name, set()).add(repr(distribution))
    assert set(seen) == {
        "quantizer",
        "rank",
        "alpha",
        "learning_rate[quantizer=none]",
        "learning_rate[quantizer=default]",
    }
    assert all(len(each) == 1 for each in seen.values())


def test_contains() -> None:
    space = good({**HANGING, "rank": [4, 8], "seed": {"low": 0, "high": 8, "step": 4}})
    assert contains(space, {})
    assert contains(space, {"rank": 4, "seed": 8})
    assert contains(space, {"quantizer": "none", "learning_rate": 1e-3})
    assert contains(space, {"learning_rate": 1e-3})
    assert not contains(space, {"quantizer": "binary", "learning_rate": 1e-3})
    assert not contains(space, {"rank": 5})
    assert not contains(space, {"seed": 2})
    assert not contains(space, {"seed": 4.0})
    assert not contains(space, {"alpha": 1})


def test_params_make_suggest_give_the_point() -> None:
    space = good({**HANGING, "rank": [4, 8]})
    study = optuna.create_study()
    for point in ({"quantizer": "binary", "learning_rate": 7e-3, "rank": 8}, {"learning_rate": 7e-3}):
        study.enqueue_trial(params(space, point))
        config = suggest(study.ask(), space) if "quantizer" in point else None
        assert config is None or config == point
    assert params(space, {"learning_rate": 7e-3}) == {"learning_rate[quantizer=default]": 7e-3}


def test_grid_in_order_with_branches() -> None:
    space = good(
        {
            "quantizer": ["none", "binary"],
            "rank": {"by": "quantizer", "none": [4, 8], "default": [16]},
            "dropout": {"low": 0.1, "high": 0.3, "step": 0.1},
        }
    )
    rows = grid(space)
    assert [tuple(row.values()) for row in rows] == [
        (quantizer, rank, dropout)
        for quantizer, rank in (("none", 4), ("none", 8), ("binary", 16))
        for dropout in (0.1, 0.2, 0.3)
    ]
    assert all(contains(space, row) for row in rows)
    assert grid({}) == [{}]


def test_a_grid_needs_an_end() -> None:
    space: Space = {"alpha": Range(1.0, 2.0), "rank": By("alpha", {}, Range(1, 2)), "seed": Range(0, 4, step=2)}
    assert endless(space) == ["alpha", "rank"]
    with pytest.raises(ValueError, match="without a step"):
        grid(space)
    with pytest.raises(ValueError, match="more than 10,000"):
        grid({"seed": Range(0, 10**9, step=1)})
    with pytest.raises(ValueError, match="more than 10,000"):
        grid({"seed": Range(0, 200, step=1), "rank": Range(1, 200, step=1)})


def test_an_axis_goes_as_far_as_its_branches_do():
    by = By("quantizer", {"none": Choices((4, 8)), "binary": Range(16, 64)}, Range(1, 2))
    assert extent(by) == {1, 2, 4, 8, 16, 64}
    assert extent(Range(1, 9, step=2)) == {1, 9}


def test_what_axes_can_be_together_is_what_the_grid_has_of_them() -> None:
    space = good(
        {
            "learning_rate": {"by": "quantizer", "none": [1e-4], "default": [1e-3, 2e-3]},
            "rank": {"by": "quantizer", "none": [1, 2], "binary": [16], "default": [8]},
            "quantizer": ["none", "binary", "ternary"],
            "alpha": [8, 16],
        }
    )
    found = together(space, ("rank", "quantizer", "dora"))
    assert found == [
        {"rank": 1, "quantizer": "none"},
        {"rank": 2, "quantizer": "none"},
        {"rank": 16, "quantizer": "binary"},
        {"rank": 8, "quantizer": "ternary"},
    ]
    assert {(point["rank"], point["quantizer"]) for point in grid(space)} == {
        (1, "none"),
        (2, "none"),
        (16, "binary"),
        (8, "ternary"),
    }
    assert together(space, ("dora",)) == [{}]
    assert together(space, ("rank",)) == [{"rank": 1}, {"rank": 2}, {"rank": 16}, {"rank": 8}]


def test_ranges_are_together_with_what_hangs_on_their_values() -> None:
    space = good({"rank": {"low": 4, "high": 32}, "quantizer": {"by": "rank", 8: ["binary"], "default": ["none"]}})
    found = [(point["rank"], point["quantizer"]) for point in together(space, ("rank", "quantizer"))]
    assert found == [(4, "none"), (8, "binary"), (32, "none")]
