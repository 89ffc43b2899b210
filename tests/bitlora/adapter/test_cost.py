"""What an adapter costs, held against counts made bit by bit."""

import math

import pytest
from adapters import SMOLLM2, WIDTHS, of_rank
from formulas import FORMULAS

from bitlora.adapter.cost import adapter_bytes, adapter_params
from bitlora.quantizers.weights import QUANTIZERS

BITS = {name: formula.bits for name, formula in FORMULAS.items()} | {"double_binary": 1}


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_bytes_bit_by_bit(quantizer, granularity):
    """The file itself is held against this in test_codes_file.py; here its data, beside a small header."""
    for rank in (1, 3, 8):
        entries = sum(rank * (shape.in_features + shape.out_features) for shape in SMOLLM2[:7])
        data = math.ceil(round(entries * BITS[quantizer], 6) / 8)
        if quantizer == "double_binary":
            data += 2 * sum(rank + shape.out_features for shape in SMOLLM2[:7])
        elif quantizer != "none":
            data += 4 * 2 * 7 * (rank if granularity == "component" else 1)
        header = adapter_bytes(of_rank(SMOLLM2[:7], rank), quantizer, granularity) - data
        assert 0 < header < 200
        assert header % 8 == 0


def test_parameters():
    plain = sum(8 * (i + o) for i, o in WIDTHS.values())
    for quantizer in QUANTIZERS:
        scales = sum(8 + o for _, o in WIDTHS.values()) if quantizer == "double_binary" else 0
        assert adapter_params(of_rank(SMOLLM2[:7], 8), quantizer) == plain + scales


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize(
    ("quantizer", "smaller"),
    [("binary", 14), ("ternary", 9), ("absmean", 9), ("twn", 9), ("int4", 3.8), ("double_binary", 12)],
)
def test_rank_32_on_smollm2_against_float16(quantizer, smaller, granularity):
    half = 2 * adapter_params(of_rank(SMOLLM2, 32))
    assert adapter_bytes(of_rank(SMOLLM2, 32), quantizer, granularity) * smaller <= half
