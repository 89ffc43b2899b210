"""Memory by calculation, against what a dry run measures and against sums done by hand."""

import pytest
import torch
from adapters import trial

from bitlora.config.sections import BaseConfig
from bitlora.engine.estimate import estimate
from bitlora.engine.memory import LongestRow, measure
from bitlora.engine.workers import Workers
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
FACTOR = 1.6
"""Within which an estimate is of what is measured: of tokens and slots, which decide what fits."""
LONGEST = LongestRow(128, 100)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_estimate_is_near_what_is_measured(larger_folder, dropout):
    config = BaseConfig(model=str(larger_folder), quantization="none")
    widest = trial("ternary", rank=128, batch_size=16, dropout=dropout)
    said = estimate(config, torch.float32, CPU, False, widest, LONGEST)
    base = load_base(config, torch.float32, CPU)
    found = measure(base, Workers(), widest, LONGEST, lambda: 10**15)
    for name in ("token", "slot"):
        assert 1 / FACTOR < getattr(said, name) / getattr(found, name) < FACTOR, (name, said, found)
    assert said.row == found.row == 128
    # as is what two slots take that share eight rows, beyond what there was
    one, other = (needs.at(2, 8 * 128) - needs.base for needs in (said, found))
    assert 1 / FACTOR < one / other < FACTOR


def test_slots_are_counted(larger_folder):
    """By hand: seven layers in each of three blocks, rank 8."""
    outs_and_ins = 3 * sum(a + b for a, b in [(128, 128), (128, 64), (128, 64), (128, 128), *[(128, 512)] * 3])
    config = BaseConfig(model=str(larger_folder), quantization="none")
    found = estimate(config, torch.float32, CPU, False, trial("ternary", rank=8), LONGEST)
    # weights, gradient, moments, quantized copies; and the four that wait to be written
    assert found.slot == 8 * outs_and_ins * (4 + 4 + 8 + 4 + 16)
    plain = estimate(config, torch.float32, CPU, False, trial("none", rank=8, alpha=8), LONGEST)
    assert plain.slot == 8 * outs_and_ins * (4 + 4 + 8 + 16)
    scaled = estimate(config, torch.float32, CPU, False, trial("none", rank=8, alpha=7), LONGEST)  # B times 7 / 8
    assert scaled.slot == found.slot


def test_checkpointing_keeps_a_block_s_input_alone(larger_folder):
    config = BaseConfig(model=str(larger_folder), quantization="none")
    whole, less = (estimate(config, torch.float32, CPU, how, trial("none"), LONGEST) for how in (False, True))
    assert less.token < 0.6 * whole.token
    assert less.slot == whole.slot


def test_weights_are_counted(larger_folder, monkeypatch):
    """On a GPU, of which this process has nothing yet. NF4 has half a byte for a weight and 4 for 64. A chunk of the head
    has its logits in bfloat16, and twice in float32; beside them a gradient of the hidden states is little."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    config = BaseConfig(model=str(larger_folder), quantization="none")
    linear, rest = 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 512), 2 * 1000 * 128 + 7 * 128
    gpu = torch.device("cuda")
    found = estimate(config, torch.bfloat16, gpu, False, trial("ternary", rank=8), LONGEST)
    chunk = found.base - 2 * (linear + rest)
    assert 256 * 1000 * (2 + 4 + 4) < chunk < 256 * 1000 * 11
    nf4 = estimate(
        BaseConfig(model=str(larger_folder), quantization="nf4"), torch.bfloat16, gpu, False, trial("none"), LONGEST
    )
    assert nf4.base == 2 * rest + 0.5625 * linear + 2 * 2 * 128 * 512 + chunk
    eight = BaseConfig(model=str(larger_folder), quantization="int8")
    int8 = estimate(eight, torch.bfloat16, gpu, False, trial("none"), LONGEST)
    assert int8.base == 2 * rest + linear + 2 * 2 * 128 * 512 + chunk
