"""What packs promise, on a GPU: against the plain loop over stock PEFT layers on the same GPU, in float32, bfloat16 and
float16, with and without NF4; two packs on one GPU; adapters handed on; sums by NCCL.

With BITLORA_GPU_TESTS_ON=cpu they run on a CPU, so that the tests themselves can be tested.
"""

import os

import numpy as np
import pytest
import torch
from adapters import exact
from both_ways import STEPS, VOCAB, Trial, batch_of, worst
from torch import distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from varlen import without_padding

from bitlora.adapter.apply import attach_weights
from bitlora.adapter.latent import quantized_weights
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.workers import Workers
from bitlora.forward import attention
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.host import read
from bitlora.forward.inject import load_base

ON_CPU = os.environ.get("BITLORA_GPU_TESTS_ON") == "cpu"
DEVICE = torch.device("cpu" if ON_CPU else "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_CPU and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""How far losses may be from the plain loop's in float32, relative: in half precision by the resolution of the base."""
NF4_BOUNDS = BOUNDS | {torch.float16: 3e-2}
"""Weights that were rounded to half precision before have other codes, here and there."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}  # fmt: skip
    config = LlamaConfig(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    place = tmp_path_factory.mktemp("bases") / "llama"
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def open_engine(folder, dtype, quantization, slots, workers=None):
    return Engine(
        load_base(BaseConfig(model=str(folder), quantization=quantization), dtype, DEVICE, longest=30), slots, workers
    )


def stock(folder, dtype, quantization):
    options = {"device_map": {"": str(DEVICE)}}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return exact(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options))


def train(engine, trials):
    """Starts and losses of each; the slots stay."""
    slots = [engine.attach(trial.config) for trial in trials]
    starts = [engine.latent(slot) for slot in slots]
    losses = [[] for _ in trials]
    for step in range(STEPS):
        stats = engine.step({slot: batch_of(trial.batches[step]) for slot, trial in zip(slots, trials, strict=True)})
        for slot, each in zip(slots, losses, strict=True):
            each.append(stats[slot].loss)
    for slot, trial, each in zip(slots, trials, losses, strict=True):
        each.append(engine.evaluate([slot], batch_of(trial.held_out))[slot].loss)
    return slots, starts, losses


def trials_of(*quantizers):
    return [
        Trial(seed=number, quantizer=name, rank=2**number, rate=5e-4, weight_decay=0.1, prefix=3 * (number % 2))
        for number, name in enumerate(quantizers, 1)
    ]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_promise(folder, dtype, quantization):
    trials = trials_of("none", "binary", "ternary", "int4")
    _, starts, losses = train(open_engine(folder, dtype, quantization, len(trials)), trials)
    for trial, start, ours in zip(trials, starts, losses, strict=True):
        model = stock(folder, torch.float32, quantization)
        with DEVICE:
            alone = trial.alone(model, start)
        assert worst(ours, alone) < (NF4_BOUNDS if quantization == "nf4" else BOUNDS)[dtype], trial.recipe


def test_a_neighbour_that_turns_nan_changes_nothing_to_the_last_bit(folder):
    def run(poison):
        engine = open_engine(folder, torch.float32, "nf4", 3)
        trials = trials_of("ternary", "binary", "none")
        slots = [engine.attach(trial.config) for trial in trials]
        losses = []
        for step in range(6):
            if step == 3 and poison:
                engine.slots[slots[1]].latent[0].a[0, 1] = float("nan")
                engine.bank.quantize()
            stats = engine.step({slot: batch_of(each.batches[step]) for slot, each in zip(slots, trials, strict=True)})
            losses.append([stats[slot].loss for slot in (slots[0], slots[2])])
        return losses, [engine.state(slot).latent for slot in (slots[0], slots[2])]

    clean, weights = run(False)
    beside, weights_beside = run(True)
    assert beside == clean
    assert all(torch.equal(one, other) for one, other in zip(weights_beside, weights, strict=True))


def test_two_packs_on_one_gpu(folder):
    trials = trials_of("none", "ternary")
    _, _, alone = train(open_engine(folder, torch.float32, "nf4", 1), trials[:1])
    engines = [open_engine(folder, torch.float32, "nf4", 1) for _ in trials]
    slots = [engine.attach(trial.config) for engine, trial in zip(engines, trials, strict=True)]
    losses = []
    for step in range(STEPS):
        for engine, slot, trial in zip(engines, slots, trials, strict=True):
            losses.append(engine.step({slot: batch_of(trial.batches[step])})[slot].loss)
    assert worst(losses[::2], alone[0][:-1]) < 1e-6


class Options(nn.Module):
    """Nothing, as attention is called with."""


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_without_padding_is_the_padded_one(monkeypatch, dtype, window):
    if ON_CPU:
        without_padding(monkeypatch)
    rows, shared = [[70, 30, 41], [1, 200], [33]], [20, 0, 0]
    tokens = sum(map(sum, rows)) - 2 * 20
    ends = np.cumsum([0, *(sum(row) - (len(row) - 1) * common for row, common in zip(rows, shared, strict=True))])
    spans = [Span(number, int(ends[number]), int(ends[number + 1])) for number in range(len(rows))]
    plan = ForwardPlan.make(spans, rows, shared, DEVICE)
    drawn = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, heads, tokens, 64, generator=drawn).to(DEVICE) for heads in (6, 2, 2, 6)]
    *inputs, weights = heads

    def run(dtype):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        with plan.bound():
            out, _ = attention.row_attention(Options(), *given, None, sliding_window=window)
        (out.float() * weights.transpose(1, 2)).sum().backward()
        return [out.float(), *(x.grad.float() for x in given)]

    assert ON_CPU or attention.fits_unpadded(inputs[0].to(dtype), inputs[2].to(dtype))
    found = run(dtype)
    monkeypatch.setattr(attention, "fits_unpadded", lambda query, value: False)
    for ours, exact_one in zip(found, run(torch.float32), strict=True):
        apart = (ours - exact_one).abs().max() / exact_one.abs().max()
        assert apart < (2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize("quantizer", ["none", "binary"])
def test_an_adapter_that_is_handed_on_does_what_it_did(folder, quantizer):
    (trial,) = trials_of(quantizer)
    engine = open_engine(folder, torch.float32, "nf4", 1)
    (slot,), _, (losses,) = train(engine, [trial])
    weights = quantized_weights(engine.latent(slot), trial.config)
    model = attach_weights(
        stock(folder, torch.float32, "nf4"), weights, {"r": trial.config.rank, "lora_alpha": trial.config.alpha}
    )
    total = count = 0.0
    with torch.no_grad():
        for tokens, learn in trial.held_out:
            ids, learned = torch.tensor([tokens], device=DEVICE), torch.tensor(learn[1:], device=DEVICE)
            scores = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            total -= float(scores[learned].sum())
            count += float(learned.sum())
    assert total / count == pytest.approx(losses[-1], rel=1e-4)


class OneRank(Workers):
    """One worker that sums all the same."""

    def share(self, rows, turn=0):
        return 0, rows


def test_sums_by_nccl(folder, tmp_path):
    trials = trials_of("none", "binary")
    _, _, plain = train(open_engine(folder, torch.float32, "none", 2), trials)
    backend = "gloo" if ON_CPU else "nccl"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        workers = OneRank(0, 2, DEVICE)
        _, _, summed = train(open_engine(folder, torch.float32, "none", 2, workers), trials)
    finally:
        dist.destroy_process_group()
    for one, other in zip(summed, plain, strict=True):
        assert worst(one, other) < 1e-6


@pytest.mark.skipif(ON_CPU, reason="it is CUDA that tells of a host that waits")
@pytest.mark.parametrize("recipe", [{}, {"dropout": 0.1, "int8": True, "micro": 2}])
def test_the_host_waits_in_one_place_alone(folder, monkeypatch, recipe):
    def reads(tensor):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    engine = open_engine(folder, torch.bfloat16, "nf4", 4)
    trials = [Trial(seed=1, quantizer="ternary", prefix=4, **recipe), Trial(seed=2, rank=4, sizes=(1, 5), **recipe)]
    slots = [engine.attach(trial.config) for trial in trials]
    batches = [dict(zip(slots, (batch_of(t.batches[n]) for t in trials), strict=True)) for n in range(3)]
    held_out, others = (batch_of(trial.held_out) for trial in trials)
    engine.step(batches[0])  # what is made once waits
    engine.evaluate(slots, held_out)
    following = [*batches[1:], {}]
    monkeypatch.setattr("bitlora.engine.engine.read", reads)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for given, coming in zip(batches[1:], following[1:], strict=True):  # laid out in it, and laid out before it
            assert all(stats.finite for stats in engine.step(given, lambda coming=coming: coming).values())
        for _ in range(2):  # laid out in it, and kept
            assert not any(result.failed for result in engine.evaluate(slots, others).values())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_copies_to_be_written_are_awaited_by_the_writer_alone(folder):
    """And are of the moment at which they were asked for."""
    (trial,) = trials_of("ternary")
    engine = open_engine(folder, torch.float32, "nf4", 1)
    (slot,), _, _ = train(engine, [trial])
    before, weights = engine.state(slot), engine.latent(slot)
    if not ON_CPU:
        torch.cuda.set_sync_debug_mode("error")
    try:
        coming, latent = engine.fetch_state(slot), engine.fetch_latent(slot)
        engine.slots[slot].vectors.latent.zero_()
        engine.slots[slot].vectors.exp_avg_sq.zero_()
    finally:
        if not ON_CPU:
            torch.cuda.set_sync_debug_mode("default")
    found, found_weights = coming.arrived(), latent.arrived()
    for name in ("latent", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(found, name), getattr(before, name))
        assert getattr(found, name).is_pinned() is not ON_CPU
    assert found.step == STEPS
    for name, layer in weights.items():
        for one, other in zip(found_weights[name].tensors, layer.tensors, strict=True):
            assert torch.equal(one, other)
    assert not engine.latent(slot)[next(iter(weights))].a.any()


def test_values_of_nf4_that_are_kept_change_no_number(folder):
    trials = trials_of("none", "ternary")
    engine = open_engine(folder, torch.bfloat16, "nf4", 2)
    slots, _, losses = train(engine, trials)
    for slot in slots:
        engine.detach(slot)
    engine.base.keep_values()
    assert train(engine, trials)[2] == losses
