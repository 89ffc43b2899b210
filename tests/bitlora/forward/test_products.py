"""Products of each slot's tokens with each slot's matrix, against a loop over the slots."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.products import SlotProducts

CPU = torch.device("cpu")
PLACES = 5
K, M = 3, 4


def make(lengths):
    """A plan of spans of these lengths, and where in the pass each span's tokens are."""
    stops = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    spans = [
        Span(number, stop - length, stop) for number, (stop, length) in enumerate(zip(stops, lengths, strict=True))
    ]
    plan = ForwardPlan.make(spans, [[length] for length in lengths], [0] * len(lengths), CPU)
    inverse = torch.arange(plan.tokens) if plan.inverse is None else plan.inverse
    return plan, [inverse[span.start : span.stop] for span in spans]


CASES = st.lists(st.integers(1, 9), min_size=1, max_size=PLACES).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.permutations(range(PLACES)))
)


@given(CASES)
def test_every_token_has_one_place_and_spans_keep_their_order(case):
    plan, places = make(case[0])
    assert torch.cat(places).sort().values.tolist() == [*range(plan.tokens)]
    assert all(place.diff().ge(1).all() for place in places)
    for number, span in enumerate(plan.grid):
        first = number * plan.grid_tokens
        assert places[span][: plan.grid_tokens].tolist() == [*range(first, first + plan.grid_tokens)]
    behind = [tail for tail in plan.tails for _ in range(tail.stop - tail.start)]
    assert len(behind) == plan.tokens - len(plan.grid) * plan.grid_tokens


@given(CASES, st.sampled_from([torch.float64, torch.float32]))
def test_they_are_those_of_a_loop(case, into):
    lengths, order = case
    plan, places = make(lengths)
    mine = order[: len(lengths)]
    products = SlotProducts(plan, mine, CPU)
    generator = torch.Generator().manual_seed(sum(lengths))

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, right, matrices = draw(plan.tokens, K), draw(plan.tokens, M), draw(PLACES, K, M)
    times, outer = torch.zeros(plan.tokens, M, dtype=torch.float64), torch.zeros(PLACES, K, M, dtype=torch.float64)
    for place, tokens in zip(mine, places, strict=True):
        times[tokens] = x[tokens] @ matrices[place]
        outer[place] = x[tokens].T @ right[tokens]
    close = {"rtol": 1e-12, "atol": 1e-12} if into == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(products.times(x, matrices), times, rtol=1e-12, atol=1e-12)
    y, grads = torch.ones(plan.tokens, M, dtype=into), torch.ones(PLACES, K, M, dtype=into)
    products.add_times(y, x, matrices)
    products.add_outer(grads, x, right)
    torch.testing.assert_close(y, (times + 1).to(into), **close)
    torch.testing.assert_close(grads, (outer + 1).to(into), **close)


@given(CASES, st.sets(st.integers(0, PLACES - 1)))
def test_what_has_no_matrix_gives_zeros_and_nobody_looks_at_it(case, absent):
    """Wherever it stands among the others, and whatever is in it."""
    lengths, order = case
    plan, places = make(lengths)
    gone = [number in absent for number in range(len(lengths))]
    mine = [PLACES if out else place for place, out in zip(order, gone, strict=False)]  # where there is none
    products = SlotProducts(plan, mine, CPU, gone)
    x, right, matrices = (
        torch.randn(*shape).double() for shape in ((plan.tokens, K), (plan.tokens, M), (PLACES, K, M))
    )
    for tokens, out in zip(places, gone, strict=True):
        if out:
            x[tokens] = right[tokens] = math.nan
    close = {"rtol": 1e-12, "atol": 1e-12}
    filled = products.times(x, matrices, out=torch.full((plan.tokens, M), 7.0, dtype=torch.float64))
    added = torch.ones(plan.tokens, M, dtype=torch.float64)
    products.add_times(added, x, matrices)
    grads = torch.zeros(PLACES, K, M, dtype=torch.float64)
    products.add_outer(grads, x, right)
    expected = torch.zeros(PLACES, K, M, dtype=torch.float64)
    for place, tokens, out in zip(mine, places, gone, strict=True):
        y = torch.zeros(len(tokens), M, dtype=torch.float64) if out else x[tokens] @ matrices[place]
        torch.testing.assert_close(filled[tokens], y, **close)
        torch.testing.assert_close(added[tokens], y + 1, **close)
        if not out:
            expected[place] = x[tokens].T @ right[tokens]
    torch.testing.assert_close(grads, expected, **close)
    torch.testing.assert_close(products.times(x, matrices), filled, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@given(case=CASES)
def test_a_slot_that_is_not_finite_changes_no_other_to_the_last_bit(poison, case):
    lengths, order = case
    plan, places = make(lengths)
    mine = order[: len(lengths)]
    products = SlotProducts(plan, mine, CPU)
    x, right, matrices = torch.randn(plan.tokens, K), torch.randn(plan.tokens, M), torch.randn(PLACES, K, M)

    def run():
        grads = torch.zeros(PLACES, K, M)
        products.add_outer(grads, x, right)
        return products.times(x, matrices), grads

    clean = run()
    x[places[0]], right[places[0]], matrices[mine[0]] = poison, poison, poison
    poisoned = run()
    for place, tokens in [*zip(mine, places, strict=True)][1:]:
        assert torch.equal(clean[0][tokens], poisoned[0][tokens])
        assert torch.equal(clean[1][place], poisoned[1][place])
