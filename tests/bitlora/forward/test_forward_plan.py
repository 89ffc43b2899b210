"""The plan of a forward pass: where tokens stand, and that a pass runs by its own plan alone."""

import threading
from itertools import accumulate

import pytest
import torch
from commands import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

from bitlora.config.sections import BaseConfig
from bitlora.forward import inject
from bitlora.forward.forward_plan import ForwardPlan, Span, bound_plan, recomputation
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")


@st.composite
def layouts(draw):
    """Rows of several slots, and how many first tokens those of a slot share."""
    rows = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
    shared = [draw(st.integers(0, min(lengths) - 1)) if len(lengths) > 1 else 0 for lengths in rows]
    return rows, shared


@given(layouts())
def test_attention_finds_every_row_whole_and_every_token_once(case):
    rows, shared = case
    plan = ForwardPlan.make([], rows, shared, CPU)
    own = [length - (common if number else 0) for lengths, common in zip(rows, shared, strict=True)
           for number, length in enumerate(lengths)]  # fmt: skip
    assert plan.tokens == sum(own)
    as_it_stands = torch.arange(plan.tokens)
    pad, unpad = (as_it_stands if places is None else places for places in (plan.pad, plan.unpad))
    padded = pad.view(-1, plan.longest)
    lengths = [length for each in rows for length in each]
    for row, length in zip(padded, lengths, strict=True):
        assert plan.positions[0, row[:length]].tolist() == list(range(length))
        assert (row[length:] == row[length - 1]).all()  # padding repeats the row's own last token
    # From the padded form back, each token is itself.
    assert torch.equal(pad[unpad], as_it_stands)


@settings(deadline=None)
@given(layouts(), st.integers(0, 99))
def test_there_and_back_are_gathers_with_the_gradients_of_gathers(case, seed):
    rows, shared = case
    ends = [sum(lengths) - common * (len(lengths) - 1) for lengths, common in zip(rows, shared, strict=True)]
    stops = [*accumulate(ends)]
    spans = [Span(slot, start, stop) for slot, (start, stop) in enumerate(zip([0, *stops], stops, strict=False))]
    plan = ForwardPlan.make(spans, rows, shared, CPU)
    tokens = torch.arange(plan.tokens)
    pad, unpad = (tokens if places is None else places for places in (plan.pad, plan.unpad))
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, plan.tokens, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    padded = plan.padded(x)
    plain = x.index_select(1, pad).view(2, -1, plan.longest, 3).transpose(0, 1)
    assert torch.equal(padded, plain)
    gradient = torch.randn(padded.shape, generator=draw, dtype=torch.float64)
    for row, length in enumerate(length for each in rows for length in each):
        gradient[row, :, length:] = 0  # as attention gives it
    torch.testing.assert_close(*(torch.autograd.grad(found, x, gradient)[0] for found in (padded, plain)))

    if plan.rows.chosen is not None:  # as attention without padding has the keys
        keys = plan.rows.chosen.of(x, 1)
        plain = x.index_select(1, plan.rows.chosen.index)
        assert torch.equal(keys, plain)
        gradient = torch.randn(keys.shape, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(*(torch.autograd.grad(found, x, gradient)[0] for found in (keys, plain)))

    y = padded.detach().requires_grad_()
    back = plan.unpadded(y)
    plain = y.transpose(1, 2).flatten(0, 1).index_select(0, unpad)
    assert torch.equal(back, plain)
    gradient = torch.randn(back.shape, generator=draw, dtype=torch.float64)
    assert torch.equal(*(torch.autograd.grad(found, y, gradient)[0] for found in (back, plain)))


def test_it_never_changes():
    plan = ForwardPlan.make([Span(0, 0, 3)], [[3]], [0], CPU)
    with pytest.raises(AttributeError):
        plan.longest = 4


def test_it_holds_for_as_long_as_it_is_bound_and_on_that_thread_alone():
    outer, inner = (ForwardPlan.make([], [[length]], [0], CPU) for length in (3, 5))
    seen = []

    def look():
        try:
            seen.append(bound_plan())
        except RuntimeError as error:
            seen.append(str(error))

    with outer.bound():
        with inner.bound():
            assert bound_plan() is inner
        assert bound_plan() is outer
        elsewhere = threading.Thread(target=look)
        elsewhere.start()
        elsewhere.join()
    look()
    assert [text.startswith("a base with injected adapters runs by a plan alone") for text in seen] == [True, True]


def test_a_block_is_recomputed_by_the_plan_that_it_first_ran_by():
    first, later = (ForwardPlan.make([], [[length]], [0], CPU) for length in (3, 5))
    with first.bound():
        run, again = recomputation()
        with run:
            assert bound_plan() is first
    with later.bound(), again:
        assert bound_plan() is first


def test_two_passes_before_either_goes_backward(tiny_base):
    """With checkpointing each pass is recomputed in its backward: by its own plan, whatever ran since."""
    gradients = {}
    for checkpointing in (False, True):
        base = load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, CPU, checkpointing)
        leaf = base.model.get_input_embeddings().weight.requires_grad_()
        losses = []
        for lengths in ([4, 6], [9]):
            plan = ForwardPlan.make([], [lengths], [0], CPU)
            tokens = torch.arange(3, 3 + plan.tokens)
            losses.append(base.logits(plan, tokens, torch.arange(plan.tokens)).square().sum())
        for loss in losses:  # the first while the second was the last to run
            loss.backward()
        gradients[checkpointing] = leaf.grad.clone()
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-5, atol=1e-6)
    assert gradients[True].any()


def test_checkpointing_switches_no_dropout_on(tmp_path, monkeypatch):
    """OPT's blocks hand their rate to a function, its decoder leaves whole blocks out; both in training mode alone."""
    config = OPTConfig(
        vocab_size=save_tokenizer(tmp_path), hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    found, recomputed = [], []
    monkeypatch.setattr(inject, "recomputation", lambda: recomputed.append(1) or recomputation())
    for checkpointing in (False, True):
        base = load_base(BaseConfig(model=str(tmp_path), quantization="none"), torch.float64, CPU, checkpointing)
        leaf = base.model.get_input_embeddings().weight.requires_grad_()
        plan = ForwardPlan.make([], [[7, 5]], [0], CPU)
        logits = base.logits(plan, torch.arange(3, 15), torch.arange(12))
        logits.square().sum().backward()
        found.append((logits.detach(), leaf.grad.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert len(recomputed) == config.num_hidden_layers
