"""The masks of dropout: as many as asked for, and functions of (trial seed, step, layer) alone."""

import pytest
import torch
from scipy.stats import binom, chi2

from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import Span

CPU = torch.device("cpu")
TOKENS, WIDTH = 1000, 577


def mask(dropout=0.05, start=0, stop=TOKENS, seed=3, step=7, layer=11):
    span = Span(0, 100 + start, 100 + stop, start, TOKENS, (seed, step))
    return dropout_mask(span, layer, WIDTH, dropout, CPU)


@pytest.mark.parametrize("dropout", [0.001, 0.05, 0.5, 0.999])
def test_as_many_are_dropped_as_asked_for(dropout):
    keep = mask(dropout)
    assert (keep.shape, keep.dtype) == ((TOKENS, WIDTH), torch.bool)
    low, high = binom.interval(1 - 1e-6, keep.numel(), dropout)
    assert low <= int((~keep).sum()) <= high
    for axis in (0, 1):  # no row, no column and no place in a word of the generator is special
        counts = (~keep).sum(axis).double()
        spread = float(((counts - counts.mean()) ** 2).sum() / (keep.shape[axis] * dropout * (1 - dropout)))
        assert chi2.ppf(1e-6, len(counts) - 1) < spread < chi2.ppf(1 - 1e-6, len(counts) - 1)
    lanes = (~keep).flatten().view(-1, 4).sum(0)
    low, high = binom.interval(1 - 1e-6, keep.numel() // 4, dropout)
    assert all(low <= int(count) <= high for count in lanes)


def test_nothing_and_all_are_not_beyond_what_can_be_drawn():
    assert mask(1e-9).all()
    assert not mask(1 - 1e-9).any(1).all()


def test_a_micro_batch_sees_its_part_of_the_batch():
    whole = mask()
    assert torch.equal(mask(start=0, stop=321), whole[:321])
    assert torch.equal(mask(start=321, stop=1000), whole[321:])


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 8}, {"layer": 12}])
def test_seed_step_and_layer_each_give_another(other):
    changed = (mask() != mask(**other)).double().mean()
    assert abs(float(changed) - 2 * 0.05 * 0.95) < 0.005
