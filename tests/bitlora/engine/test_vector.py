"""The layout of a slot's vector: every number has one place, and the views are the matrices."""

from itertools import pairwise

import pytest
import torch
from adapters import SMOLLM2
from hypothesis import given
from hypothesis import strategies as st

from bitlora.adapter.cost import adapter_params
from bitlora.base.info import LayerShape
from bitlora.engine.vector import PackLayout, VectorLayout
from bitlora.quantizers.weights import QUANTIZERS

SHAPES = st.lists(st.builds(LayerShape, st.just("layer"), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


@given(SHAPES, st.integers(1, 6), st.booleans())
def test_every_number_has_exactly_one_place(shapes, rank, learns_scales):
    layout = VectorLayout.make(shapes, rank, learns_scales)
    blocks = [block for layer in layout.layers for block in (layer.a, layer.b, layer.a_scales, layer.b_scales) if block]
    assert blocks[0].offset == 0
    assert all(before.stop == after.offset for before, after in pairwise(blocks))
    assert blocks[-1].stop == layout.size


@given(SHAPES, st.integers(1, 6), st.booleans())
def test_views_are_the_matrices_in_the_order_of_the_model(shapes, rank, learns_scales):
    layout = VectorLayout.make(shapes, rank, learns_scales)
    flat = torch.arange(layout.size, dtype=torch.float64)
    layers = layout.of(flat)
    assert torch.equal(torch.cat([part.flatten() for layer in layers for part in layer.tensors]), flat)
    for shape, layer in zip(shapes, layers, strict=True):
        assert layer.a.shape == (rank, shape.in_features)
        assert layer.b.shape == (shape.out_features, rank)
        assert (layer.a_scales is not None) == (layer.b_scales is not None) == learns_scales
        if learns_scales:
            assert layer.a_scales.shape == (rank, 1)
            assert layer.b_scales.shape == (shape.out_features, 1)
    layers[-1].a.zero_()  # a view: the vector changes
    assert (flat == 0).sum() >= rank * shapes[-1].in_features


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_size_is_the_count_of_parameters(quantizer):
    layout = VectorLayout.make(SMOLLM2, 8, QUANTIZERS[quantizer].learns_scales)
    assert layout.size == adapter_params(SMOLLM2, 8, quantizer)


RANKS = st.integers(1, 6).flatmap(lambda most: st.tuples(st.just(most), st.integers(1, most)))


@given(SHAPES, RANKS, st.booleans(), st.booleans())
def test_a_pack_has_a_place_for_every_number_of_a_slot_of_smaller_rank(shapes, ranks, room, learns_scales):
    """And the two layouts give the same matrices in the same order."""
    most, rank = ranks
    learns_scales = learns_scales and room
    alike = [n for n, shape in enumerate(shapes) if shape.in_features == shapes[-1].in_features]
    layout = PackLayout.make(shapes, most, room, [alike[::-1]])
    rows = torch.zeros(2, layout.size)
    own = VectorLayout.make(shapes, rank, learns_scales)
    flat = torch.arange(1.0, own.size + 1)
    placed = layout.of(rows, rank, learns_scales)
    for matrices, into in zip(own.of(flat), placed, strict=True):
        for source, target in zip(matrices.tensors, into.tensors, strict=True):
            target[1].copy_(source)
    assert sorted(rows[1][rows[1] > 0].tolist()) == flat.tolist()  # no two share a place
    assert not rows[0].any()
    assert all(torch.equal(a[1], b) for found, made in zip(placed, own.of(flat), strict=True)
               for a, b in zip(found.tensors, made.tensors, strict=True))  # fmt: skip
    behind = torch.cat([layout.of(rows, most, room)[n].a for n in alike[::-1]], -2)
    assert torch.equal(layout.a_of(rows, alike[::-1]), behind)
    assert layout.of(rows, most, room)[0].a.shape == (2, most, shapes[0].in_features)
    assert layout.size == VectorLayout.make(shapes, most, room).size
