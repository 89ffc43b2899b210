"""float16: each slot has a loss scale of its own; the article's four systems train; an overflow costs one slot one step."""

import math

import oracle
import pytest
import torch
import worker_program
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig, layer_adapter
from bitlora.engine.checkpoint import TrialProgress, load_checkpoint, save_checkpoint
from bitlora.engine.engine import Engine
from bitlora.engine.slots.bank import Bank
from bitlora.engine.slots.optim import GROWTH_STEPS, LossScale
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base
from bitlora.forward.multi_lora import MultiLoraLinear

CPU = torch.device("cpu")
ARTICLE = [("none", "full"), ("binary", "int8"), ("binary", "full"), ("ternary", "full")]


def trial(quantizer, activations, seed=1, rank=8):
    return TrialConfig(
        quantizer=quantizer,
        activations=activations,
        rank=rank,
        alpha=16,
        dropout=0.05,
        scaling="lora",
        learning_rate=2e-3,
        weight_decay=0.01,
        batch_size=3,
        micro_batch=2,
        max_grad_norm=1.0,
        schedule="cosine",
        warmup=0.1,
        floor=0.1,
        steps=20,
        eval_every=10,
        seed=seed,
    )


def open_engine(folder, dtype=torch.float16, quantization="none", slots=4):
    return Engine(load_base(BaseConfig(model=str(folder), quantization=quantization), dtype, CPU), slots)


def train(engine, slots, first, last):
    steps = range(first, last)
    return [engine.step({slot: worker_program.batch(100 * slot + step, 3) for slot in slots}) for step in steps]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_articles_four_systems(tiny_base, quantization):
    losses = {}
    for dtype in (torch.float16, torch.float32):
        engine = open_engine(tiny_base, dtype, quantization)
        slots = [engine.attach(trial(*system)) for system in ARTICLE]
        stats = train(engine, slots, 0, 20)
        assert all(stat.finite and not stat.skipped for step in stats for stat in step.values())
        losses[dtype] = [[step[slot].loss for slot in slots] for step in stats]
        assert all(engine.state(slot).latent.isfinite().all() for slot in slots)
    ours, theirs = torch.tensor(losses[torch.float16]), torch.tensor(losses[torch.float32])
    assert float(((ours - theirs) / theirs).abs().max()) < 5e-3


def test_an_overflow_skips_one_slots_step_and_no_other(tiny_base):
    def run(scale):
        engine = open_engine(tiny_base)
        slots = [engine.attach(trial(*system)) for system in ARTICLE]
        engine.slots[1].loss_scale = LossScale(scale)
        seen = []
        for step in range(4):
            before = engine.state(1).latent
            stats = train(engine, slots, step, step + 1)[0]
            changed = not torch.equal(engine.state(1).latent, before)
            seen.append((stats, engine.slots[1].loss_scale, changed))
        return seen, [engine.state(slot).latent for slot in (0, 2, 3)]

    calm, weights = run(2.0**12)
    wild, weights_beside = run(2.0**60)
    for (stats, _, _), (others, _, _) in zip(wild, calm, strict=True):
        assert [stats[slot] for slot in (0, 2, 3)] == [others[slot] for slot in (0, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_beside, strict=True))
    for number, (stats, scale, changed) in enumerate(wild, 1):
        assert (stats[1].finite, stats[1].skipped, changed) == (True, True, False)
        assert math.isfinite(stats[1].loss)
        assert scale == LossScale(2.0 ** (60 - number), 0, number)
    assert [scale for _, scale, _ in calm] == [LossScale(2.0**12, number, 0) for number in (1, 2, 3, 4)]
    assert all(changed for _, _, changed in calm)


def test_it_finds_its_scale_and_goes_on_from_a_checkpoint_as_if_nothing_had_been(tiny_base, tmp_path):
    engine = open_engine(tiny_base)
    config = trial("binary", "int8")
    slot = engine.attach(config)
    engine.slots[slot].loss_scale = LossScale(2.0**24)
    skipped = 0
    while train(engine, [slot], skipped, skipped + 1)[0][slot].skipped:
        skipped += 1
        assert skipped < 12
    assert skipped > 2
    train(engine, [slot], skipped + 1, skipped + 3)
    progress = TrialProgress(step=skipped + 3, tokens=0, seconds=0.0, losses=[], first_loss=0.0)
    save_checkpoint(tmp_path, engine.state(slot), progress, config, "a base")
    after = train(engine, [slot], skipped + 3, skipped + 6)
    weights, scale = engine.state(slot).latent, engine.slots[slot].loss_scale
    assert scale.value == 2.0 ** (24 - scale.skipped)
    assert engine.slots[slot].taken == skipped + 6 - scale.skipped
    engine.detach(slot)
    state, *_ = load_checkpoint(tmp_path, config, "a base")
    slot = engine.attach(config, state=state)
    assert train(engine, [slot], skipped + 3, skipped + 6) == after
    assert torch.equal(engine.state(slot).latent, weights)
    assert engine.slots[slot].loss_scale == scale


def test_a_gradient_that_is_never_finite_ends_as_diverged(tiny_base, monkeypatch):
    engine = open_engine(tiny_base)
    slot = engine.attach(trial("ternary", "full"))
    engine.slots[slot].loss_scale = LossScale(4.0)
    monkeypatch.setattr(engine.workers, "sum", lambda parts, dtype, failed: bool(parts[1].fill_(math.inf) is None))
    stats = [step[slot] for step in train(engine, [slot], 0, 4)]
    assert [(stat.finite, stat.skipped) for stat in stats] == [
        (True, True),
        (True, True),
        (False, False),
        (False, False),
    ]


def test_a_loss_that_is_not_finite_is_diverged_at_once(tiny_base):
    engine = open_engine(tiny_base)
    slot = engine.attach(trial("ternary", "full"))
    # In the last layer: PyTorch's float16 attention on CPUs swallows a NaN query.
    engine.slots[slot].latent[-1].b[-1, -3] = math.nan
    engine.bank.quantize()
    assert [step[slot].finite for step in train(engine, [slot], 0, 2)] == [False, False]


def test_the_scale_grows_after_many_clean_steps():
    scale = LossScale(8.0)
    for _ in range(GROWTH_STEPS - 1):
        scale = scale.after(True)
    assert scale == LossScale(8.0, GROWTH_STEPS - 1)
    assert scale.after(True) == LossScale(16.0)
    assert scale.after(False) == LossScale(4.0, 0, 1)


@pytest.mark.parametrize("width", [3072, 8192])
@pytest.mark.parametrize(("quantizer", "activations"), ARTICLE)
def test_a_layer_at_large_widths(quantizer, activations, width):
    """Forward and gradients in float16 with the loss scale, against the plain formulas in float64."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(6, width, generator=generator).half()
    x[:, 7] *= 200  # as the outlying features of large models
    grad = torch.randn(6, 32, generator=generator) / 512  # of a mean over some hundred tokens
    base = nn.Linear(width, 32, bias=False).half().requires_grad_(False)
    layer = MultiLoraLinear(base, "layer", 0, torch.float16)
    plan = ForwardPlan.make([Span(0, 0, 6)], [[6]], [0], CPU)
    config = trial(quantizer, activations)
    bank = Bank([layer], torch.float32, torch.float16, CPU)
    slot = bank.add(0, config, [layer_adapter(config, "layer")])
    latent, gradient = slot.latent[0], slot.gradients[0]
    latent.b.copy_(torch.randn(latent.b.shape, generator=generator) * 5e-3)
    bank.quantize()
    leaf = x.clone().requires_grad_()
    with plan.bound():
        out = layer(leaf)
    out.backward((grad * slot.loss_scale.value).half())
    bank.backward_to_latent([0])

    def plain(matrix, axis):
        linear = nn.Linear(1, 1, bias=False)
        linear.weight.data = matrix.double()
        return oracle.FakeQuantLinear(linear, oracle.Recipe(quantizer, int8=activations == "int8"), axis)

    lora_a, lora_b = plain(latent.a, 1), plain(latent.b, 0)
    exact = x.double().requires_grad_()
    expected = nn.functional.linear(exact, base.weight.double()) + 2 * lora_b(lora_a(exact))
    expected.backward(grad.double())

    def near(ours, theirs, most):
        assert ours.isfinite().all()
        assert ours.any()
        assert float((ours.double() - theirs).norm() / theirs.norm()) < most

    near(out.detach(), expected.detach(), 1e-3)
    near(leaf.grad.detach() / slot.loss_scale.value, exact.grad, 1e-2)
    near(gradient.a / slot.loss_scale.value, lora_a.weight.grad, 1e-2)
    near(gradient.b / slot.loss_scale.value, lora_b.weight.grad, 1e-2)


@pytest.mark.parametrize("width", [3072, 8192])
def test_the_articles_four_systems_at_large_widths(width, tmp_path):
    """A base whose inner width alone is large: so is the input of its down projection, and the rest is cheap on a CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    engine = open_engine(tmp_path)
    slots = [engine.attach(trial(*system)) for system in ARTICLE]
    stats = train(engine, slots, 0, 8)
    assert all(stat.finite and not stat.skipped for step in stats for stat in step.values())
    again = train(engine, slots, 0, 1)[0]
    assert all(again[slot].loss < stats[0][slot].loss for slot in slots)
