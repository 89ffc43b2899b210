"""Scoring that stops when it knows, against chance: how often all rows would have said otherwise."""

import pickle

import numpy as np
import pytest
from scipy import stats

from sweeps.search.rules import Halving, HyperBand
from sweeps.search.rungs.sequential import (
    BLOCKS,
    ERROR,
    FEWEST,
    RowLoss,
    Rungs,
    blocks,
    clearly_worse,
    loss_of,
    make_rungs,
    scoring_order,
)
from sweeps.spec.keys.scheduler import SchedulerConfig

ROWS = 48


@pytest.mark.parametrize("rows", [1, 7, 8, 15, 16, 48, 50, 64, 1000])
def test_blocks_are_all_rows_once_and_none_is_small(rows):
    found = blocks(rows)
    assert [row for block in found for row in block] == list(range(rows))
    assert len(found) <= BLOCKS
    assert len(found) == 1 or min(map(len, found)) >= FEWEST
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert sorted(scoring_order(rows)) == list(range(rows))


def drawn(kind, generator, shape):
    """Differences of two trials that are equal but for chance, row by row."""
    if kind == "normal":
        return generator.standard_normal(shape)
    if kind == "heavy":
        return generator.standard_t(3, shape)
    return generator.lognormal(0.0, 1.0, shape) - np.exp(0.5)  # skewed: a few rows are far worse


@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed"])
@pytest.mark.parametrize("rows", [16, 48, 200])
def test_a_pair_is_called_clear_and_is_not_no_more_often_than_is_said(kind, rows):
    """The hardest pair there is: over all rows the one is better by a hair. Called worse at any look is an error."""
    generator = np.random.default_rng(rows)
    gaps = drawn(kind, generator, (4000, rows))
    gaps -= gaps.mean(axis=1, keepdims=True) + 1e-9  # each in an order of its own: they are drawn one by one
    looks = len(blocks(rows)) - 1
    wrong = np.zeros(len(gaps), bool)
    for block in blocks(rows)[:-1]:
        wrong |= clearly_worse(gaps[:, : block.stop], np.zeros((1, block.stop)), rows, looks)
    # within three standard errors of what is said
    assert wrong.mean() <= ERROR + 3 * np.sqrt(ERROR * (1 - ERROR) / len(gaps))
    assert wrong.any()


def test_a_gap_is_clear_where_students_t_with_the_finite_populations_share_says_so():
    generator = np.random.default_rng(1)
    own, other = generator.standard_normal((2, 200, 16))
    own += 0.5
    gaps = own - other
    t = gaps.mean(1) / (stats.sem(gaps, axis=1) * np.sqrt(1 - 16 / 40))
    expected = stats.t.sf(t, 15) < 0.05 / 4
    assert 20 < expected.sum() < 180
    assert (clearly_worse(own, other, 40, 4) == expected).all()
    assert not clearly_worse(np.array([np.inf, 1.0, 2.0]), np.zeros(3), 40, 4)
    assert not clearly_worse(np.array([np.nan, 1.0, 2.0]), np.zeros(3), 40, 4)


def searched(generator, trials, spread):
    """What trials come to, row by row: rows differ much, trials by `spread`, and each row has its own opinion."""
    level = 60 + 20 * generator.standard_normal(ROWS)
    return level + spread * generator.standard_normal((trials, 1)) + 4 * generator.standard_normal((trials, ROWS))


def in_waves(losses, rule, at_once):
    """Trials judged at their first rung, as packs do it: who goes on, and on how many rows each was scored."""
    rungs, scored, went_on = Rungs(rule, losses.shape[1]), {}, set()
    for start in range(0, len(losses), at_once):
        wave = {f"t{number:04d}": losses[number] for number in range(start, min(start + at_once, len(losses)))}
        open_, parts = set(wave), dict.fromkeys(wave, losses[0][:0])
        for block in rungs.blocks:
            parts |= {trial: wave[trial][: block.stop] for trial in open_}
            if block.stop < losses.shape[1]:
                open_ -= rungs.lost({trial: (8, part) for trial, part in parts.items()})
        said = {trial: (8, RowLoss(part.mean(), tuple(part))) for trial, part in parts.items()}
        rungs.heard(said)
        for trial, (step, loss) in said.items():
            rule.enter(trial, step, loss)
        went_on |= {trial for trial in wave if rule.goes_on(trial, 8)}
        scored |= {trial: len(part) for trial, part in parts.items()}
    return went_on, scored


@pytest.mark.parametrize(("spread", "least_saved"), [(0.0, 0.0), (1.0, 0.05), (8.0, 0.3)])
def test_searches_decide_as_they_would_on_all_rows(spread, least_saved):
    """From trials that are all alike to some that are worlds apart; whoever goes on was scored on all rows."""
    same, shares = [], []
    for seed in range(12):
        losses = searched(np.random.default_rng(seed), 24, spread)
        went_on, scored = in_waves(losses, Halving(8, 2, 32), 4)
        expected, _ = in_waves_on_all(losses, Halving(8, 2, 32), 4)
        same += [(trial in went_on) == (trial in expected) for trial in scored]
        shares += [count / ROWS for count in scored.values()]
        assert {scored[trial] for trial in went_on} == {ROWS}
    assert np.mean(same) >= 0.95
    assert 1 - np.mean(shares) >= least_saved


def in_waves_on_all(losses, rule, at_once):
    went_on = set()
    for start in range(0, len(losses), at_once):
        wave = {f"t{number:04d}": losses[number].sum() for number in range(start, min(start + at_once, len(losses)))}
        for trial, loss in wave.items():
            rule.enter(trial, 8, loss)
        went_on |= {trial for trial in wave if rule.goes_on(trial, 8)}
    return went_on, None


def test_losses_are_held_against_each_other_over_the_rows_that_both_have():
    full, part = RowLoss(2.0, (1.0, 1.0, 4.0)), RowLoss(1.5, (2.0, 1.0))
    assert full < part
    assert part > full
    assert part >= full
    assert full <= part
    assert not part < full
    assert 1.9 < full < 2.1  # beside a plain number it is one
    assert part < 1.6
    assert not part > 1.5
    again = pickle.loads(pickle.dumps(part))
    assert (again, again.rows) == (1.5, (2.0, 1.0))
    assert full < again


def test_a_rung_knows_its_peers_by_bracket_and_judges_each_once():
    rungs = Rungs(HyperBand(2, 2, 8), 16)
    good, bad = np.arange(16.0), np.arange(16.0) + 5 + 0.1 * np.arange(16.0)
    assert rungs.judges("t0000", 2)
    assert not rungs.judges("t0000", 1)  # before the first rung
    assert not rungs.judges("t0000", 8)  # at the end
    rungs.heard({"t0000": (2, RowLoss(1.0, tuple(good)))})
    assert not rungs.judges("t0000", 3)  # it has been
    assert rungs.judges("t0000", 4)
    assert rungs.lost({"t0001": (2, bad[:8])}) == {"t0001"}  # the same bracket
    assert rungs.lost({"t0009": (2, bad[:8])}) == set()  # its bracket stops nobody here
    assert rungs.lost({"t0001": (2, good[:8] - 1)}) == set()


def test_where_all_rows_are_scored_there_are_no_rungs_and_a_sweep_that_goes_on_knows_those_of_before():
    every, until = SchedulerConfig(), SchedulerConfig(scoring="sequential")
    past = {"t0000": [(8, RowLoss(1.0, tuple(np.arange(16.0)))), (16, 0.9)]}
    assert make_rungs(every, 32, 16, past) is None
    rungs = make_rungs(until, 32, 16, past)
    assert not rungs.judges("t0000", 8)
    assert rungs.judges("t0000", 16)
    assert rungs.lost({"t0001": (8, 5 + np.arange(8.0))}) == {"t0001"}


def test_a_line_of_metrics_is_a_loss_with_its_rows_where_it_has_them():
    from bitlora.files.record import Metrics

    line = {"step": 8, "tokens": 9, "train_loss": 2.0, "eval_loss": 1.5, "learning_rate": 0.1, "seconds": 3.0}
    assert type(loss_of(Metrics(**line))) is float
    found = loss_of(Metrics(**line, rows=2, row_losses=[1.0, 2.0]))
    assert (found, found.rows) == (1.5, (1.0, 2.0))
