"""The layout of a slot's vector: every number has one place, and the views are the matrices."""

from itertools import pairwise

import pytest
import torch
from adapters import SMOLLM2, of_rank
from hypothesis import given
from hypothesis import strategies as st

from bitlora.adapter.cost import adapter_params
from bitlora.base.info import LayerShape
from bitlora.engine.slots.vector import PackLayout, VectorLayout
from bitlora.quantizers.weights import QUANTIZERS

SHAPES = st.lists(st.builds(LayerShape, st.just("layer"), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


@given(SHAPES, st.integers(1, 6), st.booleans())
def test_every_number_has_exactly_one_place(shapes, rank, learns_scales):
    layout = VectorLayout.make([(shape, rank) for shape in shapes], learns_scales)
    blocks = [block for layer in layout.layers for block in (layer.a, layer.b, layer.a_scales, layer.b_scales) if block]
    assert blocks[0].offset == 0
    assert all(before.stop == after.offset for before, after in pairwise(blocks))
    assert blocks[-1].stop == layout.size


@given(SHAPES, st.integers(1, 6), st.booleans())
def test_views_are_the_matrices_in_the_order_of_the_model(shapes, rank, learns_scales):
    layout = VectorLayout.make([(shape, rank) for shape in shapes], learns_scales)
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
    layout = VectorLayout.make([(shape, 8) for shape in SMOLLM2], QUANTIZERS[quantizer].learns_scales)
    assert layout.size == adapter_params(of_rank(SMOLLM2, 8), quantizer)


@given(SHAPES, st.data(), st.booleans())
def test_a_pack_has_a_place_for_every_number_of_each_slot(shapes, data, learns_scales):
    """Ranks differ from slot to slot and from layer to layer; 0 is no adapter. The two layouts give the same matrices in
    the same order, and a layer that no slot has takes nothing."""
    count = len(shapes)
    ranks = data.draw(st.lists(st.lists(st.integers(0, 4), min_size=count, max_size=count), min_size=2, max_size=3))
    alike = [n for n, s in enumerate(shapes) if s.in_features == shapes[-1].in_features][::-1]
    layout = PackLayout.make(shapes, ranks, learns_scales, [alike])
    rows = torch.zeros(len(ranks), layout.size)
    for place, own in enumerate(ranks):
        vector = VectorLayout.make([(s, r) for s, r in zip(shapes, own, strict=True) if r], learns_scales)
        flat = torch.arange(1.0, vector.size + 1)
        placed = layout.of(rows[place], place, learns_scales)
        assert [*placed] == [number for number, rank in enumerate(own) if rank]
        for matrices, into in zip(vector.of(flat), placed.values(), strict=True):
            for source, target in zip(matrices.tensors, into.tensors, strict=True):
                target.copy_(source)
        assert sorted(rows[place][rows[place] > 0].tolist()) == flat.tolist()  # no two share a place
        assert not rows[place + 1 :].any()
        for matrices, found in zip(vector.of(flat), placed.values(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(matrices.tensors, found.tensors, strict=True))
    most = [max(each) for each in zip(*ranks, strict=True)]
    assert (
        layout.size == VectorLayout.make([(s, r) for s, r in zip(shapes, most, strict=True) if r], learns_scales).size
    )
    for number, found in layout.of(rows).items():
        assert found.a.shape == (len(ranks), most[number], shapes[number].in_features)
    numbers = [n for n in alike if [own[n] for own in ranks] == [own[alike[0]] for own in ranks]]
    if most[alike[0]]:
        behind = torch.cat([layout.of(rows)[number].a for number in numbers], -2)
        assert torch.equal(layout.a_of(rows, numbers), behind)
    inside = torch.zeros(layout.size)
    for side in layout.sides:
        for part in side:
            inside[part] += 1
    assert (inside == 1).all()
