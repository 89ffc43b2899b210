"""What a search tells of the confirmation that follows it: held against formulas written out with pandas."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from constructed import add_extended, spread

from reports.design.first_look import ASSUMED, Asked, Candidate, choose, known
from reports.statistics.full_precision import Margin
from sweeps.search.first_look import planned
from sweeps.spec.spec import Spec

ROWS = 60
TOKENS = np.arange(5, 5 + ROWS)
SHARED = np.random.default_rng(1).normal(2.5, 0.4, ROWS)


def scored(apart=0.0, noise=0.03, seed=0, rows=ROWS):
    own = SHARED + apart + np.random.default_rng(seed).normal(0, noise, ROWS)
    frame = pd.DataFrame({"example_id": [f"e{i}" for i in range(ROWS)], "loss": TOKENS * own, "tokens": TOKENS})
    return frame.head(rows)


def pair(**more):
    return [Candidate("none", {0: scored()}), Candidate("binary", {0: scored(0.01, seed=5), **more})]


def asked(margin=0.01, of="loss", seeds="auto", rows="auto", test_rows=400, trained=240):
    return Asked(Margin(margin, of), seeds, rows, 20, 3, test_rows, trained)


def test_the_rows_tell_the_variance_of_the_difference_less_the_margin():
    one, other = scored(), scored(0.01, seed=5)
    found = known(pair(), Margin(0.01, "loss"))
    (look,) = found.looks
    d, t = other["loss"] - one["loss"] - 0.01 * one["loss"], one["tokens"]
    left = d - d.sum() / t.sum() * t
    assert look.variance == pytest.approx(ROWS / (ROWS - 1) * (left**2).sum() / t.sum() ** 2, rel=1e-12)
    assert look.amount == pytest.approx(one["loss"].sum() / t.sum(), rel=1e-12)
    assert look.rows == ROWS
    assert (found.apart, found.freedom) == (pytest.approx(ASSUMED), 0)
    assert look.of_seed == pytest.approx((1.01 * ASSUMED * look.amount) ** 2)


def test_seeds_that_were_searched_tell_how_far_they_are_apart():
    held = [Candidate(name, {seed: scored(apart[seed]) for seed in range(3)}) for name, apart in (
        ("none", [0.0, 0.02, -0.02]), ("binary", [0.01, -0.01, 0.03]))]  # fmt: skip
    found = known(held, Margin(0.01, "loss"))
    level = scored()["loss"].sum() / TOKENS.sum()
    apart = pd.Series([0.01, -0.03, 0.05]).std()  # of the differences by seed
    assert (found.apart, found.freedom) == (pytest.approx(apart / level, rel=1e-6), 2)
    one_alone = [held[0], Candidate("binary", {0: scored(0.01)})]
    found = known(one_alone, Margin(0.01, "loss"))
    assert (found.apart, found.freedom) == (pytest.approx(math.sqrt(2) * 0.02 / level, rel=1e-6), 2)


def test_a_margin_of_the_gain_is_of_what_full_precision_is_below_the_base():
    bare = scored(0.8)
    (look,) = known(pair(), Margin(0.05, "gain"), bare).looks
    assert look.amount == pytest.approx((bare["loss"] - scored()["loss"]).sum() / TOKENS.sum(), rel=1e-12)
    assert known(pair(), Margin(0.05, "gain")) == "the base was not scored on the same rows"
    assert known(pair(), Margin(0.05, "gain"), scored(-0.8)) == "full precision gains nothing over the base"


def test_of_several_of_one_quantizer_the_best_is_held_to_its_part():
    held = [*pair(), Candidate("binary", {0: scored(0.02, seed=6)}), Candidate("int4", {0: scored(0.02, seed=7)})]
    assert {round(look.tail, 6) for look in known(held, Margin(0.01, "loss")).looks} == {0.025, 0.05}
    assert len(known(held, Margin(0.01, "loss")).looks) == 2


def test_it_says_what_it_takes_and_what_that_costs():
    choice = choose(pair(), asked())
    assert choice.shows
    assert 2 <= choice.design.seeds <= 20
    assert 30 <= choice.design.rows <= 400
    seeds, rows = choice.design
    times = 2 * seeds * (240 + rows / 2) / 2400
    assert choice.words(searched=2400, took=600.0) == [
        f"confirm: {seeds} seeds and {rows} test rows for each of 2 configurations, {2 * seeds} trials",
        "of quantizers that are equal they show 1 % of the loss in four of five cases, at the least cost",
        f"cost: {times:.2g} times what the search trained, at its pace {round(times * 10)} min",
        "a seed is taken to put two 0.3 % of the loss apart, which is assumed: the search tried each on one seed",
    ]


def test_a_margin_that_nothing_shows_is_not_paid_for():
    choice = choose(pair(), asked(margin=0.0005))
    assert (choice.shows, choice.design) == (False, (3, 400))
    assert choice.least > 0.0005
    assert "not even 20 seeds would show 0.05 % of the loss on the 400 test rows" in choice.words()[1]


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (pair()[:1], "full precision, or all else, is not among those that are confirmed"),
        ([Candidate("none", {}), pair()[1]], "the scores of full precision cannot be read"),
        ([pair()[0], Candidate("binary", {0: scored(rows=59)})], "the search scored them on other rows, or on too few"),
    ],
)
def test_where_nothing_can_be_computed_it_is_the_usual_and_says_why(held, why):
    choice = choose(held, asked())
    assert (choice.design, choice.untold) == ((3, 400), why)
    assert choice.words()[1] == f"how many it takes to show 1 % of the loss is not known: {why}"


def test_what_the_spec_fixes_stays():
    assert choose(pair(), asked(seeds=4)).design.seeds == 4
    assert choose(pair(), asked(rows=None)).design.rows == 400
    assert choose(pair(), asked(rows=150)).design.rows == 150
    assert choose(pair(), asked(test_rows=20)).untold == "it takes 30 test rows, and there are 20"


def test_before_the_sweep_runs_again_it_goes_by_what_ranks_in_its_folder(folder, add):
    """Not by the one trial that a person gave more steps, beside which nothing else has its budget."""
    for name, quantizer, loss in (("t0", "none", 2.5), ("t1", "binary", 2.52)):
        add(name, eval_loss=loss, quantizer=quantizer, scores=spread(loss, 0.1))
    spec = Spec.model_validate({
        "name": "s", "base": {"model": "a"}, "data": {"source": "b"}, "out": str(folder),
        "confirm": {"top": 2, "seeds": "auto", "rows": "auto", "margin": "5 %"},
    })  # fmt: skip
    before = planned(spec, 100, 32)
    assert "for each of 2 configurations" in before[0]
    add_extended(add, "t2", 2.1, quantizer="binary", rank=8, scores=spread(2.1, 0.1))
    assert planned(spec, 100, 32)[:2] == before[:2]
