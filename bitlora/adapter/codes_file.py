"""A packed adapter: its codes at their true density and their scales, in two tensors of one safetensors file.

    adapter_packed.safetensors   `codes` uint8 and `scales` float32 (learned ones: float16); of `none` one tensor `weights`,
                                 float16; with DoRA also `magnitudes`, float32
    adapter_config.json          what else it takes to load it, of a type that PEFT does not know

In each tensor all layers follow each other in the order of `layers` in the configuration, first A and then B, each row by
row. Codes are one stream: of 2, 4, 16 or 256 values 8, 4, 2 or 1 to a byte, of three values five (3**5 = 243), the first
code in the lowest place. `bitlora.adapter.cost.adapter_bytes` knows the file's size from shapes alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bitlora.adapter.cost import packed_tensors
from bitlora.adapter.latent import AdapterLatent, Weights
from bitlora.adapter.peft_folder import CONFIG, EARLIER_PACKED_TYPE, PACKED_TYPE, adapter_config
from bitlora.base.info import AdaptedLayer
from bitlora.config.targets import of_pattern
from bitlora.config.trial import TrialConfig, as_written, layer_adapter
from bitlora.quantizers.codes import Side, decode, encode, from_bytes, to_bytes
from bitlora.quantizers.weights import QUANTIZERS, Quantizer

PACKED: Final = "adapter_packed.safetensors"
FORMAT: Final = 1
"""Raised when an older reader would misread what is written."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed adapter, read."""

    config: dict[str, Any]
    """adapter_config.json: PEFT's keys, `quantizer`, `granularity`, `activations`, `format`; `layers`: name, in, out,
    and of routed experts how many there are."""
    weights: dict[str, Weights]
    """Layer name -> A (rank, in), B (out, rank), float32: what is multiplied."""


def save_packed(folder: Path, latent: AdapterLatent, config: TrialConfig, base_model: str) -> None:
    """Write a packed adapter into `folder`, which exists and is empty.

    Args:
        latent: quantized in float32.
    """
    from safetensors.torch import save_file

    kept = as_written(config)
    layers = [
        AdaptedLayer(name, a.shape[1], *b.shape, experts=len(a) // layer_adapter(kept, name).rank)
        for name, (a, b, *_) in latent.items()
    ]
    quantizer = config.quantizer
    pieces: dict[str, list[Tensor]] = {name: [] for name in packed_tensors((), quantizer, dora=config.dora)}
    for layer in latent.values():
        if layer.magnitude is not None:
            pieces["magnitudes"].append(layer.magnitude.detach().float().cpu().flatten())
        sides: tuple[tuple[Side, Tensor, Tensor | None], ...] = (
            ("A", layer.a, layer.a_scales),
            ("B", layer.b, layer.b_scales),
        )
        for side, matrix, scales in sides:
            w = matrix.detach().float().cpu()
            if QUANTIZERS[quantizer].levels is None:
                pieces["weights"].append(w.half().flatten())
                continue
            own = None if scales is None else scales.detach().float().cpu()
            codes, by = encode(quantizer, w, side, config.granularity, own)
            pieces["codes"].append(codes.flatten())
            pieces["scales"].append((by.half() if own is not None else by).flatten())
    tensors = {name: torch.cat(parts) for name, parts in pieces.items()}
    if "codes" in tensors:
        tensors["codes"] = to_bytes(tensors["codes"], quantizer)
    save_file(tensors, folder / PACKED)
    (folder / CONFIG).write_text(_described(config, base_model, layers), encoding="utf-8")


def _described(config: TrialConfig, base_model: str, layers: list[AdaptedLayer]) -> str:
    """adapter_config.json: PEFT's keys and more, and a line for each layer, of which there are hundreds."""
    keys = adapter_config(config, base_model, [layer.name for layer in layers]) | {
        "peft_type": PACKED_TYPE,
        "format": FORMAT,
        "quantizer": config.quantizer,
        "granularity": config.granularity,
        "activations": config.activations,
    }
    del keys["target_modules"]
    head = json.dumps(keys, indent=2, sort_keys=True).removesuffix("\n}")
    lines = ",\n".join(
        f"    {json.dumps([s.name, s.in_features, s.out_features, *([s.experts] if s.experts > 1 else [])])}"
        for s in layers
    )
    return f'{head},\n  "layers": [\n{lines}\n  ]\n}}\n'


def load_packed(folder: str | Path) -> Packed:
    """Read a packed adapter. Its weights are to the last bit `bitlora.quantizers.codes.quantize` of the latent weights in
    float32 (a zero has no sign); of `none` those weights as float16.

    Raises:
        ValueError: it is none, of a newer format, or broken; the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / PACKED
    about = Path(folder) / CONFIG
    try:
        config = json.loads(about.read_text(encoding="utf-8"))
        if config["peft_type"] not in (PACKED_TYPE, EARLIER_PACKED_TYPE):
            raise ValueError(f"its peft_type is {config['peft_type']}, not {EARLIER_PACKED_TYPE}")
        if config["format"] != FORMAT:
            raise ValueError(
                f"format {config['format']}, and this version reads {FORMAT}; install a newer bitlora-sweeps"
            )
        ranks = config.get("rank_pattern") or {}
        quantizer, granularity = config["quantizer"], config["granularity"]
        layers = [
            AdaptedLayer(name, wide, high, math.prod((int(of_pattern(ranks, name, config["r"])), *experts)))
            for name, wide, high, *experts in config["layers"]
        ]
        expected = packed_tensors(layers, quantizer, granularity, config.get("use_dora") is True)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{about}: not a packed adapter: {_line(error)}") from None
    try:
        tensors = load_file(path)
        if (found := {name: len(tensor) for name, tensor in tensors.items()}) != {
            k: n for k, (_, n) in expected.items()
        }:
            raise ValueError(f"found tensors {found}; {CONFIG} says { ({k: n for k, (_, n) in expected.items()}) }")
        if "codes" in tensors:
            entries = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers)
            tensors["codes"] = from_bytes(tensors["codes"], entries, quantizer)
        weights = dict(_weights(tensors, layers, quantizer, granularity))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a packed adapter: {_line(error)}") from None
    return Packed(config, weights)


def _weights(
    tensors: dict[str, Tensor], layers: list[AdaptedLayer], quantizer: Quantizer, granularity: str
) -> Iterator[tuple[str, Weights]]:
    """Layer by layer its name and weights, cut off the tensors' front."""
    at = dict.fromkeys(tensors, 0)

    def take(name: str, *shape: int) -> Tensor:
        start = at[name]
        at[name] += shape[0] * shape[1]
        return tensors[name][start : at[name]].view(shape).float()

    def matrix(side: Side, rows: int, columns: int) -> Tensor:
        if QUANTIZERS[quantizer].levels is None:
            return take("weights", rows, columns)
        scales = (1, 1)
        if QUANTIZERS[quantizer].learns_scales:
            scales = (rows, 1)
        elif granularity == "component":
            scales = (rows, 1) if side == "A" else (1, columns)
        return decode(take("codes", rows, columns), take("scales", *scales))

    for layer in layers:
        a, b = matrix("A", layer.rank, layer.in_features), matrix("B", layer.out_features, layer.rank)
        yield layer.name, Weights(a, b, take("magnitudes", layer.out_features, 1) if "magnitudes" in tensors else None)


def _line(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
