"""Attention by rows: whatever the layout, each row's logits are those of the row alone in transformers' own model."""

import pytest
import torch
from base_families import HELD
from both_ways import VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from varlen import without_padding

from bitlora.config.sections import BaseConfig
from bitlora.forward import attention
from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.inject import inject_adapters

CPU = torch.device("cpu")
LONGEST = 40
FAMILIES = ["Llama", "Mistral", "Gemma 2", "gpt-oss", "DeepSeek-V3"]


WITHOUT_PADDING = {"Llama": True, "Mistral": True, "Gemma 2": False, "gpt-oss": False, "DeepSeek-V3": False}
"""Whether a GPU could attend without padding as they ask for it: with neither caps, nor sinks, nor values of another width
than keys."""


@pytest.fixture(scope="module", params=[(name, how) for how in ("padded", "unpadded") for name in FAMILIES],
                ids=" ".join)  # fmt: skip
def both(request):
    """A family's model as transformers has it, and the same with attention by rows. With routed experts in float64, where
    no last bit sends a token elsewhere."""
    family, how = request.param
    dtype = torch.float64 if family in ("gpt-oss", "DeepSeek-V3") else torch.float32
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(HELD[family][0](), dtype=dtype, experts_implementation="eager")
        made.append(model.eval().requires_grad_(False))
    config = BaseConfig(model=family, quantization="none", targets=HELD[family][1])
    with pytest.MonkeyPatch.context() as patch:
        calls = without_padding(patch) if how == "unpadded" else []
        yield made[0], inject_adapters(made[1], config, dtype, CPU)
    assert bool(calls) == (how == "unpadded" and WITHOUT_PADDING[family])


@st.composite
def layouts(draw):
    """For each slot the tokens that its rows begin with in common, and the lengths of its rows, each beyond those."""
    slots = []
    for _ in range(draw(st.integers(1, 3))):
        common = draw(st.integers(0, 20))
        low = max(1, common + 1)
        slots.append((common, draw(st.lists(st.integers(low, LONGEST), min_size=1, max_size=4))))
    return slots


@settings(max_examples=25, deadline=None)
@given(slots=layouts(), seed=st.integers(0, 10**6))
def test_every_row_is_as_alone(both, slots, seed):
    model, base = both
    random = torch.Generator().manual_seed(seed)
    rows, tokens, ends = [], [], []
    for common, lengths in slots:
        prefix = torch.randint(3, VOCAB, (common,), generator=random)
        for number, length in enumerate(lengths):
            row = torch.cat([prefix, torch.randint(3, VOCAB, (length - common,), generator=random)])
            rows.append(row)
            tokens.append(row if number == 0 else row[common:])
            ends.append(sum(map(len, tokens)) - 1)
    plan = ForwardPlan.make([], [lengths for _, lengths in slots], [common for common, _ in slots], CPU)
    found = base.logits(plan, torch.cat(tokens), torch.tensor(ends))
    for row, logits in zip(rows, found, strict=True):
        alone = model(input_ids=row[None], use_cache=False).logits[0, -1]
        assert (logits - alone).abs().max() < 1e-4 * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize("asked", [{}, {"softcap": 5.0}], ids=str)
def test_half_precision_is_attended_to_in_float32_on_a_cpu(asked, monkeypatch):
    """To the last bit that of float32 on the same numbers, rounded once at its end; its gradients as well."""
    monkeypatch.setattr(attention, "fits_unpadded", lambda query, value: False)
    drawn = torch.Generator().manual_seed(0)
    plan = ForwardPlan.make([], [[5, 9], [3]], [2, 0], CPU)
    halves = [torch.randn(1, heads, plan.tokens, 8, generator=drawn).bfloat16() for heads in (4, 2, 2)]

    def run(dtype):
        given = [each.to(dtype, copy=True).requires_grad_() for each in halves]
        with plan.bound():
            out, _ = attention.row_attention(torch.nn.Module(), *given, None, **asked)
        out.sum().backward()
        return [out, *(each.grad for each in given)]

    for half, full in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert torch.equal(half, full.bfloat16())
