"""What is planned of memory: the decision by its properties, the measurement against what a real engine then takes."""

import math
import os

import pytest
import torch
from adapters import trial
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_program import batch

from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import EVAL_TOKENS, Engine
from bitlora.engine.gauge import peak_during
from bitlora.engine.memory import LongestRow, MemoryNeeds, NotMeasured, fit, measure, rows_at_once
from bitlora.engine.workers import Workers
from bitlora.forward.forward_plan import bound_plan
from bitlora.forward.inject import load_base
from bitlora.forward.multi_lora import MultiLoraLinear

CPU = torch.device("cpu")
PLENTY = 10**15

# ---- the decision

NEEDS = st.builds(
    MemoryNeeds,
    base=st.floats(1, 1e6),
    slot=st.floats(1, 1e5),
    token=st.floats(1, 1e3),
    eval_token=st.floats(1, 1e3),
    row=st.integers(1, 500),
)


@settings(max_examples=500)
@given(NEEDS, st.floats(0, 1e7), st.integers(1, 9), st.integers(1, 40), st.booleans())
def test_what_is_decided_fits_and_is_the_most_that_does(needs, budget, slots, rows, given):
    found = fit(needs, budget, slots, rows, given)
    whole = found.slots * rows * needs.row
    a_row_each = [n for n in range(1, slots + 1) if needs.at(n, n * needs.row) <= budget * (1 + 1e-9)]
    assert 1 <= found.slots <= slots
    assert 1 <= found.eval_tokens <= EVAL_TOKENS
    if given:
        assert found.slots == slots
    elif found.fits:
        assert found.slots == max(a_row_each)
    else:
        assert found.slots == 1
    tokens = whole if found.pass_tokens is None else found.pass_tokens
    if found.fits:
        assert needs.at(found.slots, tokens) <= budget * (1 + 1e-9)
        assert tokens >= found.slots * needs.row  # each slot has a row in a pass
        assert found.slots in a_row_each
    else:
        assert found.pass_tokens is not None or rows == 1 or needs.at(found.slots, whole) <= budget * (1 + 1e-9)
    # a row more would not fit, or there is none
    assert found.pass_tokens is None or needs.at(found.slots, found.pass_tokens + 1) > budget * (1 - 1e-9)


@given(NEEDS, st.floats(0, 1e7), st.floats(0, 1e6), st.integers(1, 9), st.integers(1, 40))
def test_with_more_memory_nothing_gets_smaller(needs, budget, more, slots, rows):
    one, other = (fit(needs, bytes_, slots, rows) for bytes_ in (budget, budget + more))
    assert other.slots >= one.slots
    assert other.fits >= one.fits
    if one.slots == other.slots:
        assert (other.pass_tokens or math.inf) >= (one.pass_tokens or math.inf)
        assert other.eval_tokens >= one.eval_tokens


def test_rows_are_cut_before_slots():
    needs = MemoryNeeds(base=1000, slot=100, token=1, eval_token=0.5, row=50)
    assert fit(needs, 10_000, 4, 8).pass_tokens is None
    cut = fit(needs, 1000 + 400 + 200, 4, 8)  # a row of each, to the byte
    assert (cut.slots, cut.pass_tokens, cut.fits) == (4, 200, True)
    fewer = fit(needs, 1000 + 400 + 199, 4, 8)
    assert (fewer.slots, fewer.pass_tokens, fewer.fits) == (3, 299, True)
    kept = fit(needs, 1000 + 400 + 199, 4, 8, given=True)
    assert (kept.slots, kept.pass_tokens, kept.fits) == (4, 199, False)
    nothing = fit(needs, 500, 4, 8)
    assert (nothing.slots, nothing.pass_tokens, nothing.fits) == (1, 50, False)


def test_what_was_written_is_read_again_and_nothing_else():
    needs = MemoryNeeds(base=1.5, slot=2.0, token=3.0, eval_token=4.0, row=5)
    raw = {"base": 1.5, "slot": 2.0, "token": 3.0, "eval_token": 4.0, "row": 5}
    assert MemoryNeeds.read(raw) == needs
    for wrong in (None, [], {**raw, "more": 1}, {**raw, "token": 0}, {**raw, "base": "1"}, {"reason": "no"}):
        assert MemoryNeeds.read(wrong) is None


# ---- the measurement


@pytest.fixture(scope="module")
def larger_base(larger_folder):
    return load_base(BaseConfig(model=str(larger_folder), quantization="none"), torch.float32, CPU)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_real_engine_takes_what_was_measured(larger_base, dropout):
    longest, rows = LongestRow(128, 100), 12
    widest = trial("ternary", rank=64, batch_size=rows, dropout=dropout)
    needs = measure(larger_base, Workers(), widest, longest, lambda: PLENTY)
    engine = Engine(larger_base, 3)
    found = {}
    for slots in (1, 2, 3):
        engine.attach(widest.model_copy(update={"seed": slots}))
        rows_of = longest.rows(rows, larger_base.vocab_size)
        engine.step(dict.fromkeys(engine.slots, rows_of))
        _, found[slots] = peak_during(lambda given=rows_of: engine.step(dict.fromkeys(engine.slots, given)), CPU)
    for slot in list(engine.slots):
        engine.detach(slot)
    for slots in (1, 2, 3):  # of what a pass takes, not of the process
        said = needs.at(slots, slots * rows * 128) - needs.base
        true = found[slots] - needs.base
        assert 0.7 < said / true < 1.5, (slots, said / 1e6, true / 1e6)
    assert needs.eval_token <= needs.token


@pytest.fixture
def base(float64_base):
    return load_base(BaseConfig(model=str(float64_base), quantization="none"), torch.float64, CPU)


def losses(engine):
    slots = {rank: engine.attach(trial("ternary", rank=rank, seed=rank, dropout=0.1, batch_size=4)) for rank in (2, 5)}
    found = []
    for step in range(4):
        stats = engine.step({slot: batch(100 * rank + step, 4) for rank, slot in slots.items()})
        found += [stats[slot] for slot in slots.values()]
    found += list(engine.evaluate(list(slots.values()), batch(9, 5)).values())
    for slot in slots.values():
        engine.detach(slot)
    return found


def test_a_dry_run_leaves_nothing_behind(base):
    before = losses(Engine(base, 2))
    random = torch.get_rng_state()
    names = {name for name, _ in base.model.named_parameters()}
    measure(
        base, Workers(), trial("double_binary", rank=8, batch_size=8, dropout=0.2), LongestRow(40, 30), lambda: PLENTY
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not layer.slots for layer in base.targets.values())
    assert {name for name, _ in base.model.named_parameters()} == names
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert losses(Engine(base, 2)) == before  # to the last bit


def watch(monkeypatch, condition=lambda rows, slots: False, error=None):
    """Notes (slots, rows of a slot) of every pass, and raises `error` in those for which `condition` holds."""
    whole, seen = MultiLoraLinear.forward, []

    def forward(self, x):
        spans = bound_plan().spans
        rows = sum(span.stop - span.start for span in spans) // 40 // len(spans)
        if self.index == 0:
            seen.append((len(spans), rows))
        if condition(rows, len(spans)):
            raise error
        return whole(self, x)

    monkeypatch.setattr(MultiLoraLinear, "forward", forward)
    return seen


WIDEST = trial("ternary", rank=4, batch_size=16, micro_batch=6)


def test_what_is_not_promised_to_fit_is_not_tried(base, monkeypatch):
    assert rows_at_once(WIDEST) == 6
    seen = watch(monkeypatch)
    measure(base, Workers(), WIDEST, LongestRow(40, 30), lambda: 0)
    assert set(seen) == {(1, 1)}
    seen.clear()
    measure(base, Workers(), WIDEST, LongestRow(40, 30), lambda: PLENTY)
    assert seen == [(1, 1), (1, 1), (1, 6), (2, 3), (2, 3)]  # the last one scores


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_what_does_not_fit_is_tried_smaller(base, monkeypatch, error):
    watch(monkeypatch, lambda rows, slots: rows > 2 or slots > 1, error)
    needs = measure(base, Workers(), WIDEST, LongestRow(40, 30), lambda: PLENTY)
    assert needs.row == 40
    assert needs.token >= 1


def test_one_row_that_does_not_fit_is_said_and_so_is_one_that_cannot_be_computed(base, monkeypatch):
    watch(monkeypatch, lambda *_: True, MemoryError("no"))
    with pytest.raises(NotMeasured, match="MemoryError: no") as short:
        measure(base, Workers(), WIDEST, LongestRow(40, 30), lambda: PLENTY)
    assert short.value.lack
    watch(monkeypatch, lambda *_: True, NotImplementedError("rows of 40 tokens over a sliding window of 32"))
    with pytest.raises(NotMeasured, match="sliding window") as never:
        measure(base, Workers(), WIDEST, LongestRow(40, 30), lambda: PLENTY)
    assert not never.value.lack
    assert all(not layer.slots for layer in base.targets.values())


def test_the_longest_row_differs_from_its_neighbours_and_is_learned_at_its_end():
    rows = LongestRow(10, 4).rows(3, 50, CPU)
    assert rows.lengths == (10, 10, 10)
    assert rows.learn.view(3, 10).sum(1).tolist() == [4, 4, 4]
    assert not rows.learn.view(3, 10)[:, 0].any()
    assert rows.common_prefix() == 0
    assert len({tuple(row) for row in rows.tokens.view(3, 10).tolist()}) == 3


def test_here_the_kernel_keeps_the_peak():
    size = 64 * 2**20
    _, small = peak_during(lambda: None, CPU)
    _, large = peak_during(lambda: bytearray(os.urandom(1024)) * (size // 1024), CPU)
    assert large - small > 0.9 * size
