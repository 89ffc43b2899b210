"""How much of the eval split a slot is scored on, over a small base in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import trial
from played_pack import attach

from bitlora.config.sections import BaseConfig
from bitlora.data.rows import Rows
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base
from sweeps.pack.measuring.scoring import Scoring
from sweeps.pool.messages import Peers, Stop
from sweeps.search.rules import Halving
from sweeps.search.rungs.sequential import RowLoss, Rungs, scoring_order

COUNT = 24


class Told(Rungs):
    """Says who has lost by a table: rows scored -> trials."""

    def __init__(self, says):
        super().__init__(Halving(4, 2, 8), COUNT)
        self.says = says

    def lost(self, wave):
        return self.says.get(max(len(losses) for _, losses in wave.values()), set())


@pytest.fixture(scope="module")
def rows():
    chance = np.random.default_rng(3)
    lengths = chance.integers(4, 12, COUNT)
    learn = np.concatenate([np.arange(length) >= 2 for length in lengths])
    tokens = chance.integers(3, 90, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Rows(tokens, learn, offsets, tuple(f"r{n}" for n in range(COUNT)), np.full(COUNT, 9))


@pytest.fixture
def engine(float64_base):
    base = BaseConfig(model=str(float64_base), quantization="none")
    engine = Engine(load_base(base, torch.float64, torch.device("cpu")), 3)
    one = Rows(np.arange(3, 9, dtype=np.int32), np.arange(6) > 2, np.array([0, 6]), ("x",), np.array([9]))
    for seed in range(3):
        slot = engine.attach(trial("ternary", rank=2 + seed, seed=seed, batch_size=2))
        engine.step({slot: Batch.of(one)})
    yield engine
    for slot in list(engine.slots):
        engine.detach(slot)


def judged(scoring):
    return {slot: scoring.judged(f"t{slot}", 4) for slot in range(3)}


def test_rows_of_a_trial_that_was_scored_in_part_are_those_of_one_that_was_scored_in_full_to_the_last_bit(engine, rows):
    every = Scoring(engine, rows, Told({}))
    full = every.evaluate(judged(every))
    some = Scoring(engine, rows, Told({8: {"t1"}, 16: {"t1", "t2"}}))
    part = some.evaluate(judged(some))
    order = scoring_order(COUNT).tolist()
    for slot, count in ((0, COUNT), (1, 8), (2, 16)):
        at = sorted(order[:count])
        assert part[slot].rows == (None if count == COUNT else at)
        assert part[slot].tokens == [full[slot].tokens[row] for row in at]
        first = sorted(order[:8])  # in the first block all three were scored together, both times
        again = dict(zip(at, part[slot].losses, strict=True))
        assert [again[row] for row in first] == [full[slot].losses[row] for row in first]
        assert part[slot].losses == pytest.approx([full[slot].losses[row] for row in at], rel=1e-12, abs=0)
        assert list(some.by_rows(part[slot]).rows) == [again[row] for row in order[:count]]
        assert some.by_rows(part[slot]) == part[slot].loss
    # and in the order of the split they are what they are where all is scored at once
    whole = Scoring(engine, rows, None)
    assert whole.judged("t0", 4) is None
    for slot, result in whole.evaluate(dict.fromkeys(range(3))).items():
        assert result.rows is full[slot].rows is None
        assert result.tokens == full[slot].tokens
        assert full[slot].losses == pytest.approx(result.losses, rel=1e-12, abs=0)


def test_who_is_not_judged_is_scored_on_all_rows_and_who_fails_on_no_more(engine, rows, monkeypatch):
    real, calls = Engine.evaluate, []

    def failing(self, slots, batch, part=None):
        calls.append((tuple(slots), part))
        found = real(self, slots, batch, part)
        return {slot: replace(one, failed="RuntimeError: no room" if slot == 2 else "") for slot, one in found.items()}

    monkeypatch.setattr(Engine, "evaluate", failing)
    scoring = Scoring(engine, rows, Told({8: {"t1"}}))
    found = scoring.evaluate({0: None, 1: scoring.judged("t1", 4), 2: scoring.judged("t2", 4)})
    assert calls == [((0, 1, 2), range(8)), ((0,), range(8, 16)), ((0,), range(16, 24))]
    assert [one.failed for one in found.values()] == ["", "", "RuntimeError: no room"]
    assert [one.rows and len(one.rows) for one in found.values()] == [None, 8, 8]


def test_a_trial_that_is_clearly_stopped_at_a_rung_is_scored_on_fewer_rows_there_and_on_all_at_the_end(run):
    """Another pack's trial is better on each row. Nobody says stop here: it trains on, as one that was not told yet."""
    peers = Peers({"t9": (4, RowLoss(0.0, (0.0,) * COUNT))})
    script = {"at first": [*attach("a"), *attach("c", confirms="a"), peers], ("released", "c", 1): [Stop()]}
    link = run(script, rungs=Rungs(Halving(4, 2, 8), COUNT), scored=COUNT)
    assert [(one.step, one.rows) for one in link.metrics["a"]] == [(4, 8), (8, None)]
    at_rung = link.metrics["a"][0]
    assert at_rung.eval_loss == pytest.approx(sum(at_rung.row_losses) / (8 * 3), rel=1e-12)
    step, loss = link.waves["a", 4]["a"]
    assert (step, loss, list(loss.rows)) == (4, at_rung.eval_loss, at_rung.row_losses)
    # Nobody stops one that confirms, and all of its rows are scored.
    assert [(one.rows, one.row_losses) for one in link.metrics["c"]] == [(None, None)] * 2
    plain = run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, scored=COUNT)
    assert link.metrics["a"][1].eval_loss == pytest.approx(plain.metrics["a"][1].eval_loss, rel=1e-12)
