"""The layout of a slot's vector: every number has one place, and the views are the matrices."""

from itertools import pairwise

import pytest
import torch
from adapters import SMOLLM2
from hypothesis import given
from hypothesis import strategies as st

from bitlora.adapter.cost import adapter_params
from bitlora.base.info import LayerShape
from bitlora.engine.vector import VectorLayout
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
