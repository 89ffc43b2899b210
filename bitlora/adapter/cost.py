"""What an adapter costs, from shapes alone: parameters, and bytes of its codes and scales. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from bitlora.base.info import AdaptedLayer, BaseInfo
from bitlora.config.trial import TrialConfig, as_written
from bitlora.quantizers.weights import QUANTIZERS, Granularity, Quantizer

DTYPE_BYTES: Final = {"F32": 4, "F16": 2, "U8": 1}
"""A scale that is a statistic is a float32; a learned one is used, and so stored, as a float16."""


def adapter_params(layers: Iterable[AdaptedLayer], quantizer: Quantizer = "none", dora: bool = False) -> int:
    """Trained parameters of an adapter: `rank * (in + out)` for every layer that it is on, with learned scales also one for
    each of the `rank` rows of A and the `out` rows of B, with DoRA `out` magnitudes."""
    scales = QUANTIZERS[quantizer].learns_scales
    return sum(
        s.rank * (s.in_features + s.out_features) + scales * (s.rank + s.out_features) + dora * s.out_features
        for s in layers
    )


def packed_tensors(
    layers: Iterable[AdaptedLayer], quantizer: Quantizer, granularity: Granularity = "tensor", dora: bool = False
) -> dict[str, tuple[str, int]]:
    """The tensors of an adapter as packed (`bitlora.adapter.codes_file`), in each A and B of every layer in turn.

    A matrix has one scale, or with `component` one for each of `rank`; where scales are learned A has one for each of its
    `rank` rows and B for each of its `out`. A layer with DoRA has `out` magnitudes, in float32: the base's own weights hang
    on them.

    Returns:
        Name -> safetensors' name of its dtype, and its length; in the order in which they stand in the file.
    """
    layers = tuple(layers)
    found = {"magnitudes": ("F32", sum(layer.out_features for layer in layers))} if dora else {}
    entries = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers)
    levels = QUANTIZERS[quantizer].levels
    if levels is None:
        return found | {"weights": ("F16", entries)}
    if QUANTIZERS[quantizer].learns_scales:
        found["scales"] = ("F16", sum(layer.rank + layer.out_features for layer in layers))
    else:
        found["scales"] = ("F32", sum(2 * (layer.rank if granularity == "component" else 1) for layer in layers))
    return found | {"codes": ("U8", -(-entries // levels.per_byte))}


def adapter_bytes(
    layers: Iterable[AdaptedLayer], quantizer: Quantizer, granularity: Granularity = "tensor", dora: bool = False
) -> int:
    """Bytes of an adapter as packed: the size of its safetensors file, header included."""
    return _safetensors_bytes(packed_tensors(layers, quantizer, granularity, dora))


class AdapterSize(NamedTuple):
    """What a trial's adapter has."""

    params: int
    """Trained."""
    bytes: int
    """As packed."""


def adapter_size(base: BaseInfo, trial: TrialConfig) -> AdapterSize:
    """What the adapter of a trial has over a base: what its record says, known beforehand."""
    written = base.layers(as_written(trial))
    return AdapterSize(
        adapter_params(base.layers(trial), trial.quantizer, trial.dora),
        adapter_bytes(written, trial.quantizer, trial.granularity, trial.dora),
    )


def _safetensors_bytes(tensors: dict[str, tuple[str, int]]) -> int:
    """Bytes of a safetensors file without metadata: the header's length in 8 bytes, the header, which is compact JSON with
    spaces up to a multiple of 8, and the data."""
    header, end = {}, 0
    for name, (dtype, length) in tensors.items():
        start, end = end, end + DTYPE_BYTES[dtype] * length
        header[name] = {"dtype": dtype, "shape": [length], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end
