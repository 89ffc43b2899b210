"""The layout of a slot's vector: every number has one place, and the views are the matrices."""

from itertools import pairwise

import pytest
import torch
from adapters import SMOLLM2, of_rank
from hypothesis import given
from hypothesis import strategies as st

from bitlora.adapter.cost import adapter_params
from bitlora.base.info import LayerShape
from bitlora.engine.slots.layout import PackLayout, PackNumbers
from bitlora.engine.slots.vector import VectorLayout
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
    the same order, and a layer that a slot does not have takes nothing."""
    count = len(shapes)
    ranks = data.draw(st.lists(st.lists(st.integers(0, 4), min_size=count, max_size=count), min_size=2, max_size=3))
    alike = [n for n, s in enumerate(shapes) if s.in_features == shapes[-1].in_features][::-1]
    layout = PackLayout.make(shapes, ranks, learns_scales, [alike])
    numbers = PackNumbers.zeros(layout, torch.float32, torch.device("cpu"))
    most = [max(each) for each in zip(*ranks, strict=True)]
    for place, own in enumerate(ranks):
        vector = VectorLayout.make([(s, r) for s, r in zip(shapes, own, strict=True) if r], learns_scales)
        flat = torch.arange(1.0, vector.size + 1)
        placed = numbers.matrices_of(place, learns_scales)
        assert [*placed] == [number for number, rank in enumerate(own) if rank]
        for matrices, into in zip(vector.of(flat), placed.values(), strict=True):
            for source, target in zip(matrices.tensors, into.tensors, strict=True):
                target.copy_(source)
        row = torch.cat([torch.zeros(0), *numbers.of_slot(place)])
        assert sorted(row[row > 0].tolist()) == flat.tolist()  # no two share a place
        assert not any(part.any() for after in range(place + 1, len(ranks)) for part in numbers.of_slot(after))
        for matrices, found in zip(vector.of(flat), placed.values(), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(matrices.tensors, found.tensors, strict=True))
        room = [(s, r) for s, r, had in zip(shapes, most, own, strict=True) if had]
        assert len(row) == VectorLayout.make(room, learns_scales).size
    assert sum(part.numel() for part in numbers.parts) == sum(
        part.numel() for place in range(len(ranks)) for part in numbers.of_slot(place)
    )
    for number, found in numbers.matrices().items():
        having = sum(own[number] > 0 for own in ranks)
        assert found.a.shape == (having, most[number], shapes[number].in_features)
    together = [n for n in alike if [own[n] for own in ranks] == [own[alike[0]] for own in ranks]]
    if most[alike[0]]:
        behind = torch.cat([numbers.matrices()[number].a for number in together], -2)
        assert torch.equal(numbers.a_of(together), behind)
    for segment, part in enumerate(numbers.parts):
        inside = torch.zeros(part.shape[1])
        for where in (each for side in layout.sides(segment).values() for each in side):
            inside[where] += 1
        assert (inside == 1).all()
