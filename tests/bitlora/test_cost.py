"""What an adapter costs, held against counts made bit by bit."""

import math

import pytest

from bitlora.config import QUANTIZERS
from bitlora.cost import LayerShape, adapter_bytes, adapter_params

WIDTHS = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576),
          "gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}  # fmt: skip
SMOLLM2 = [LayerShape(f"{layer}.{name}", *widths) for layer in range(30) for name, widths in WIDTHS.items()]
BITS = {"none": 16, "binary": 1, "ternary": 8 / 5, "absmean": 8 / 5, "twn": 8 / 5, "int2": 2, "int4": 4, "int8": 8,
        "double_binary": 1}  # fmt: skip


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_bytes_bit_by_bit(quantizer, granularity):
    for rank in (1, 3, 8):
        total = 0
        for shape in SMOLLM2[:7]:
            for entries in (rank * shape.in_features, shape.out_features * rank):
                total += math.ceil(round(entries * BITS[quantizer], 6) / 8)
            if quantizer == "double_binary":
                total += 2 * (rank + shape.out_features)
            elif quantizer != "none":
                total += 4 * 2 * (rank if granularity == "component" else 1)
        assert adapter_bytes(SMOLLM2[:7], rank, quantizer, granularity) == total


def test_parameters():
    plain = sum(8 * (i + o) for i, o in WIDTHS.values())
    for quantizer in QUANTIZERS:
        scales = sum(8 + o for _, o in WIDTHS.values()) if quantizer == "double_binary" else 0
        assert adapter_params(SMOLLM2[:7], 8, quantizer) == plain + scales


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize(
    ("quantizer", "smaller"),
    [("binary", 14), ("ternary", 9), ("absmean", 9), ("twn", 9), ("int4", 3.8), ("double_binary", 12)],
)
def test_rank_32_on_smollm2_against_float16(quantizer, smaller, granularity):
    half = 2 * adapter_params(SMOLLM2, 32)
    assert adapter_bytes(SMOLLM2, 32, quantizer, granularity) * smaller <= half
