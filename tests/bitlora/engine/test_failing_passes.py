"""A pass that raises is one trial's: its neighbours end with the numbers of an undisturbed pack, to 1e-9 in float64."""

import pytest
import torch
from adapters import trial
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_program import batch

from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch, Piece, split_pass, split_rows
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import bound_plan
from bitlora.forward.inject import load_base
from bitlora.forward.multi_lora import MultiLoraLinear

CPU = torch.device("cpu")
RANKS = (2, 4, 6)
STEPS = 8


@pytest.fixture
def engine(float64_base):
    return Engine(load_base(BaseConfig(model=str(float64_base), quantization="none"), torch.float64, CPU), len(RANKS))


def run(engine, steps=STEPS, dropout=0.1):
    """Train a trial of each rank; gives losses by rank, reasons by rank, and the evaluation at the end."""
    slots = {
        rank: engine.attach(trial("ternary", rank=rank, seed=rank, dropout=dropout, batch_size=4)) for rank in RANKS
    }
    losses, reasons = {rank: [] for rank in RANKS}, {}
    for step in range(steps):
        stats = engine.step({slot: batch(100 * rank + step, 4) for rank, slot in slots.items()})
        for rank, slot in list(slots.items()):
            if stats[slot].failed:
                reasons[rank] = stats[slot].failed
                engine.detach(slots.pop(rank))
            else:
                losses[rank].append(stats[slot].loss)
    scores = engine.evaluate(list(slots.values()), batch(999, 5))
    found = {rank: scores[slot] for rank, slot in slots.items()}
    for slot in slots.values():
        engine.detach(slot)
    return losses, reasons, found


@pytest.fixture
def undisturbed(engine):
    return run(engine)


def breaks(monkeypatch, condition, error):
    """Let every layer raise `error` in a pass for which `condition` holds: of the spans and the number of tokens."""
    whole = MultiLoraLinear.forward

    def forward(self, x):
        plan = bound_plan()
        if condition(self, plan.spans, plan.tokens):
            raise error
        return whole(self, x)

    monkeypatch.setattr(MultiLoraLinear, "forward", forward)


def with_rank(layer, spans, rank):
    return [span for span in spans if layer.slots.get(span.slot) and layer.slots[span.slot].rank == rank]


def same(found, expected, ranks):
    for rank in ranks:
        assert found[0][rank] == pytest.approx(expected[0][rank], rel=1e-9, abs=0)
        assert found[2][rank].losses == pytest.approx(expected[2][rank].losses, rel=1e-9, abs=0)
        assert not found[2][rank].failed


@pytest.mark.parametrize(
    "error", [NotImplementedError("no such kernel"), MemoryError(), torch.OutOfMemoryError("CUDA")]
)
def test_a_trial_that_can_never_take_a_step_fails_alone(engine, undisturbed, monkeypatch, error):
    breaks(monkeypatch, lambda layer, spans, tokens: with_rank(layer, spans, 4), error)
    found = run(engine)
    assert found[1] == {4: f"{type(error).__name__}: {str(error) or type(error).__name__}"}
    assert found[0][4] == []
    same(found, undisturbed, (2, 6))


def test_a_trial_that_fails_at_its_seventh_step_had_the_six_before(engine, undisturbed, monkeypatch):
    breaks(
        monkeypatch,
        lambda layer, spans, tokens: any(span.seed and span.seed[1] == 6 for span in with_rank(layer, spans, 6)),
        RuntimeError("at last\nand more"),
    )
    found = run(engine)
    assert found[1] == {6: "RuntimeError: at last"}
    assert found[0][6] == pytest.approx(undisturbed[0][6][:6], rel=1e-9, abs=0)
    same(found, undisturbed, (2, 4))


def test_what_fits_only_row_by_row_is_trained_row_by_row(engine, undisturbed, monkeypatch):
    passes = []
    longest = max(max(batch(100 * rank + step, 4).lengths) for rank in RANKS for step in range(STEPS))

    def too_large(layer, spans, tokens):
        if layer.index == 0 and torch.is_grad_enabled():
            passes.append(tokens)
        return torch.is_grad_enabled() and tokens > longest

    breaks(monkeypatch, too_large, torch.OutOfMemoryError("CUDA out of memory"))
    found = run(engine)
    assert found[1] == {}
    same(found, undisturbed, RANKS)
    # What did not fit is known: later steps do not try it again.
    assert max(passes[-12:]) <= longest


def test_what_does_not_fit_together_is_scored_apart(engine, undisturbed, monkeypatch):
    breaks(
        monkeypatch,
        lambda layer, spans, tokens: not torch.is_grad_enabled() and len(spans) > 1,
        torch.OutOfMemoryError("CUDA out of memory"),
    )
    same(run(engine), undisturbed, RANKS)


def test_a_trial_that_cannot_be_scored_is_told_apart(engine, undisturbed, monkeypatch):
    breaks(
        monkeypatch,
        lambda layer, spans, tokens: not torch.is_grad_enabled() and with_rank(layer, spans, 2),
        RuntimeError("no"),
    )
    losses, reasons, scores = run(engine)
    assert reasons == {}
    assert scores[2].failed == "RuntimeError: no"
    assert [scores[rank].losses for rank in (4, 6)] == [
        pytest.approx(undisturbed[2][rank].losses, rel=1e-9, abs=0) for rank in (4, 6)
    ]
    assert losses == {rank: pytest.approx(undisturbed[0][rank], rel=1e-9, abs=0) for rank in RANKS}


def test_half_a_backward_pass_leaves_nothing_behind(engine, undisturbed, monkeypatch):
    """The error comes in the backward pass, when some layers have added their gradients already."""
    left = [3]

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("in the backward")
            return grads[0]

    whole = MultiLoraLinear.forward
    monkeypatch.setattr(
        MultiLoraLinear, "forward", lambda self, x: Breaks.apply(whole(self, x)) if self.index == 4 else whole(self, x)
    )
    found = run(engine)
    assert left == [0]
    same(found, undisturbed, RANKS)


def test_a_lost_device_is_nobodys(engine, monkeypatch):
    breaks(monkeypatch, lambda *_: True, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        run(engine)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=200)
@given(st.lists(LENGTHS, min_size=1, max_size=4), st.integers(1, 30), st.integers(1, 4))
def test_a_pass_in_parts_has_every_row_once_in_order(slots, tokens, rows):
    pieces = []
    for slot, lengths in enumerate(slots):
        total = sum(lengths)
        own = torch.arange(total) + 1000 * slot
        pieces.append(Piece(slot, Batch(own, own % 2 == 0, tuple(lengths)), 10, total + 20, (1, 2)))
    cuts = [split_pass(pieces, tokens), [[part] for piece in pieces for part in split_rows(piece, rows)]]
    for cut in cuts:
        for slot, piece in enumerate(pieces):
            parts = [part for each in cut for part in each if part.slot == slot]
            assert torch.equal(torch.cat([part.batch.tokens for part in parts]), piece.batch.tokens)
            assert torch.equal(torch.cat([part.batch.learn for part in parts]), piece.batch.learn)
            assert [length for part in parts for length in part.batch.lengths] == list(piece.batch.lengths)
            for part in parts:  # where the dropout masks are
                assert part.batch_start == 10 + int(part.batch.tokens[0]) - 1000 * slot
                assert (part.batch_tokens, part.seed) == (piece.batch_tokens, piece.seed)
    for each in cuts[0]:
        count = sum(len(part.batch.tokens) for part in each)
        assert count <= tokens or (len(each) == 1 and len(each[0].batch.lengths) == 1)
    assert all(len(part.batch.lengths) <= rows for (part,) in cuts[1])
    assert split_pass(pieces, None) == [pieces]
