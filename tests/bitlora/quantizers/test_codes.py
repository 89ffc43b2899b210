"""Codes as bytes: any come back, and lie where the format of the packed file says."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bitlora.quantizers.codes import from_bytes, to_bytes
from bitlora.quantizers.weights import QUANTIZERS, Levels

CODED = [name for name, quantizer in QUANTIZERS.items() if quantizer.levels is not None]


@given(st.data())
def test_any_codes_come_back(data):
    quantizer = data.draw(st.sampled_from(CODED))
    levels = QUANTIZERS[quantizer].levels
    digits = data.draw(st.lists(st.integers(0, levels.count - 1), max_size=70))
    codes = torch.tensor([levels.lowest + levels.step * digit for digit in digits], dtype=torch.int8)
    packed = to_bytes(codes, quantizer)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(codes) // levels.per_byte)
    assert torch.equal(from_bytes(packed, len(codes), quantizer), codes)


def test_bits_and_trits_lie_as_the_format_says():
    assert to_bytes(torch.tensor([1, -1, -1, -1, -1, -1, -1, -1, 1], dtype=torch.int8), "binary").tolist() == [1, 1]
    assert to_bytes(torch.tensor([1, 0, -1, 0, 1], dtype=torch.int8), "ternary").tolist() == [2 + 3 + 27 + 162]
    assert to_bytes(torch.tensor([-3, 3], dtype=torch.int8), "int2").tolist() == [12]
    assert to_bytes(torch.tensor([-8, 7], dtype=torch.int8), "int4").tolist() == [240]


def test_a_byte_holds_as_many_codes_as_fit():
    assert {count: Levels(0, 1, count).per_byte for count in (2, 3, 4, 5, 6, 7, 16, 17, 256)} == {
        2: 8, 3: 5, 4: 4, 5: 3, 6: 3, 7: 2, 16: 2, 17: 1, 256: 1}  # fmt: skip
