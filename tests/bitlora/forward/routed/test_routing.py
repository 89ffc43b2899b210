"""Copies of tokens at their experts, and products with another matrix for each expert and slot."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlora.forward.routed.routing import GroupProducts, Routing

EXPERTS = 3


def layout(tokens, copies, slots, seed):
    """A routing, whose expert and slot each place is, and the router's choice."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=draw)[:copies] for _ in range(tokens)])
    whose = torch.randint(slots, (tokens,), generator=draw)
    routing = Routing.make(chosen, EXPERTS, whose, slots)
    at = routing.order
    return routing, chosen.flatten()[at], whose.repeat_interleave(copies)[at], chosen


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, EXPERTS), st.integers(1, 4), st.integers(0, 99))
def test_copies_stand_by_expert_and_slot_and_come_back(tokens, copies, slots, seed):
    routing, expert, slot, _ = layout(tokens, copies, slots, seed)
    key = expert * slots + slot
    assert torch.equal(key, key.sort().values)
    assert torch.equal(routing.expert, expert)
    ends = torch.tensor([int((key <= group).sum()) for group in range(EXPERTS * slots)])
    assert torch.equal(routing.ends, ends)
    x = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(tokens, copies, dtype=torch.float64, requires_grad=True)
    found = routing.gathered(routing.spread(x) * routing.placed(weights))
    torch.testing.assert_close(found, x * weights.sum(1, keepdim=True))
    gradient = torch.randn_like(found)
    ours = torch.autograd.grad(found, (x, weights), gradient)
    plain = torch.autograd.grad(x * weights.sum(1, keepdim=True), (x, weights), gradient)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grouped", [False, True])
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, EXPERTS), st.integers(1, 4), st.integers(0, 99), st.integers(1, 9))
def test_products_are_each_rows_own(dtype, grouped, tokens, copies, slots, seed, width):
    """A row that is not finite stays the only one, and a slot without an adapter adds nothing."""
    routing, expert, slot, _ = layout(tokens, copies, slots, seed)
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw).to(dtype)

    x, y, matrices = normal(len(expert), 4), normal(len(expert), width), normal(EXPERTS, slots, 4, width)
    matrices[:, 0] = 0
    products = GroupProducts(routing.ends, slots, {0}, grouped=grouped)
    near = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    wanted = torch.stack([row.double() @ matrices[e, s].double() for row, e, s in zip(x, expert, slot, strict=True)])
    torch.testing.assert_close(products.times(x, matrices).double(), wanted, **near)
    into = y.clone()
    products.add_times(into, x, matrices)
    torch.testing.assert_close(into.double(), y.double() + wanted, **near)
    outer = torch.zeros(EXPERTS, slots, 4, width, dtype=torch.float64)
    for row, other, e, s in zip(x, y, expert, slot, strict=True):
        outer[e, s] += row.double()[:, None] * other.double() * (s > 0 or (grouped and dtype != torch.float64))
    found = torch.zeros(EXPERTS, slots, 4, width, dtype=dtype)
    products.add_outer(found, x, y)
    torch.testing.assert_close(
        found.double(), outer, rtol=3e-2 if dtype == torch.bfloat16 else 1e-5, atol=near["atol"] * 4
    )
    x[0] = torch.nan
    assert torch.isfinite(products.times(x, matrices)[1:]).all()


@pytest.mark.parametrize("grouped", [False, True])
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, EXPERTS), st.integers(1, 3), st.integers(0, 99))
def test_a_token_of_nobody_gives_zeros_and_nobody_looks_at_it(grouped, tokens, copies, slots, seed):
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=draw)[:copies] for _ in range(tokens)])
    whose = torch.randint(slots + 1, (tokens,), generator=draw)  # the last is nobody
    routing = Routing.make(chosen, EXPERTS, whose, slots, others=True)
    expert, slot = chosen.flatten()[routing.order], whose.repeat_interleave(copies)[routing.order]
    products = GroupProducts(routing.ends, slots, others=True, grouped=grouped)
    x, y, matrices = (
        torch.randn(shape, generator=draw) for shape in ((len(slot), 4), (len(slot), 3), (EXPERTS, slots, 4, 3))
    )
    x[slot == slots] = y[slot == slots] = torch.nan
    wanted, outer = torch.zeros(len(slot), 3), torch.zeros(EXPERTS, slots, 4, 3)
    for at, (e, s) in enumerate(zip(expert, slot, strict=True)):
        if s < slots:
            wanted[at] = x[at] @ matrices[e, s]
            outer[e, s] += x[at][:, None] * y[at]
    found = torch.zeros_like(outer)
    products.add_outer(found, x, y)
    torch.testing.assert_close(products.times(x, matrices), wanted)
    torch.testing.assert_close(found, outer, rtol=1e-4, atol=1e-5)
    every = torch.randn(EXPERTS, 1, 4, 3, generator=draw)
    torch.testing.assert_close(
        routing.by_expert().times(x.nan_to_num(), every), torch.einsum("pk,pkm->pm", x.nan_to_num(), every[expert, 0])
    )
