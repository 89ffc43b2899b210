"""A packed adapter: its codes at their true density and their scales, in two tensors of one safetensors file.

    adapter_packed.safetensors   `codes` uint8 and `scales` float32 (learned ones: float16); of `none` one tensor `weights`,
                                 float16
    adapter_config.json          what else it takes to load it, of a type that PEFT does not know

In each tensor all layers follow each other in the order of `layers` in the configuration, first A and then B, each row by
row. Codes are one stream: of 2, 4, 16 or 256 values 8, 4, 2 or 1 to a byte, of three values five (3**5 = 243), the first
code in the lowest place. `bitlora.cost.adapter_bytes` knows the file's size from shapes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bitlora.checkpoint import CONFIG, PACKED_TYPE, adapter_config
from bitlora.config import Quantizer, TrialConfig
from bitlora.cost import CODES_PER_BYTE, LayerShape, packed_tensors
from bitlora.quantizers import Side, decode, encode

PACKED: Final = "adapter_packed.safetensors"
FORMAT: Final = 1
"""Raised when an older reader would misread what is written."""

LEVELS: Final[dict[Quantizer, tuple[int, int, int]]] = {
    "binary": (-1, 2, 2),
    "ternary": (-1, 1, 3),
    "absmean": (-1, 1, 3),
    "twn": (-1, 1, 3),
    "int2": (-3, 2, 4),
    "int4": (-8, 1, 16),
    "int8": (-128, 1, 256),
    "double_binary": (-1, 2, 2),
}
"""A quantizer's lowest code, the step to the next one, and how many there are."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed adapter, read."""

    config: dict[str, Any]
    """adapter_config.json: PEFT's keys, `quantizer`, `granularity`, `activations`, `format`; `layers`: name, in, out."""
    weights: dict[str, tuple[Tensor, Tensor]]
    """Layer name -> A (rank, in), B (out, rank), float32: what is multiplied."""


def pack_codes(codes: Tensor, quantizer: Quantizer) -> Tensor:
    """Codes as bytes.

    Args:
        codes: (n,) int8, those of `quantizer` (`bitlora.quantizers.encode`).

    Returns:
        (⌈n / codes per byte⌉,) uint8; the last byte is filled up with the lowest code.
    """
    lowest, step, values = LEVELS[quantizer]
    each = CODES_PER_BYTE[quantizer]
    digits = (codes.to(torch.int16) - lowest) // step
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % each)).view(-1, each)
    return (digits * _places(values, each)).sum(1).to(torch.uint8)


def unpack_codes(packed: Tensor, count: int, quantizer: Quantizer) -> Tensor:
    """The first `count` codes of `pack_codes`, (count,) int8.

    Raises:
        ValueError: a byte that no codes give.
    """
    lowest, step, values = LEVELS[quantizer]
    each = CODES_PER_BYTE[quantizer]
    if len(packed) and int(packed.max()) >= values**each:
        raise ValueError(f"byte {int(packed.max())} among codes of {quantizer}, which go up to {values**each - 1}")
    table = torch.arange(values**each)[:, None] // _places(values, each) % values * step + lowest
    return table.to(torch.int8)[packed.long()].flatten()[:count]


def _places(values: int, each: int) -> Tensor:
    return torch.tensor([values**place for place in range(each)], dtype=torch.int16)


def save_packed(folder: Path, latent: Mapping[str, tuple[Tensor, ...]], config: TrialConfig, base_model: str) -> None:
    """Write a packed adapter into `folder`, which exists and is empty.

    Args:
        latent: layer name -> A (rank, in), B (out, rank), and of learned scales those of A (rank, 1) and B (out, 1);
            quantized in float32.
    """
    from safetensors.torch import save_file

    layers = [LayerShape(name, a.shape[1], b.shape[0]) for name, (a, b, *_) in latent.items()]
    quantizer = config.quantizer
    pieces: dict[str, list[Tensor]] = {name: [] for name in packed_tensors((), config.rank, quantizer)}
    for a, b, *learned in latent.values():
        for side, matrix, scales in zip(("A", "B"), (a, b), learned or (None, None), strict=True):
            w = matrix.detach().float().cpu()
            if quantizer == "none":
                pieces["weights"].append(w.half().flatten())
                continue
            own = None if scales is None else scales.detach().float().cpu()
            codes, by = encode(quantizer, w, "A" if side == "A" else "B", config.granularity, own)
            pieces["codes"].append(codes.flatten())
            pieces["scales"].append((by.half() if own is not None else by).flatten())
    tensors = {name: torch.cat(parts) for name, parts in pieces.items()}
    if "codes" in tensors:
        tensors["codes"] = pack_codes(tensors["codes"], quantizer)
    save_file(tensors, folder / PACKED)
    (folder / CONFIG).write_text(_described(config, base_model, layers), encoding="utf-8")


def _described(config: TrialConfig, base_model: str, layers: list[LayerShape]) -> str:
    """adapter_config.json: PEFT's keys and more, and a line for each layer, of which there are hundreds."""
    keys = adapter_config(config, base_model, []) | {
        "peft_type": PACKED_TYPE,
        "format": FORMAT,
        "quantizer": config.quantizer,
        "granularity": config.granularity,
        "activations": config.activations,
    }
    del keys["target_modules"]
    head = json.dumps(keys, indent=2, sort_keys=True).removesuffix("\n}")
    lines = ",\n".join(f"    {json.dumps([s.name, s.in_features, s.out_features])}" for s in layers)
    return f'{head},\n  "layers": [\n{lines}\n  ]\n}}\n'


def load_packed(folder: str | Path) -> Packed:
    """Read a packed adapter. Its weights are to the last bit `bitlora.quantizers.quantize` of the latent weights in
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
        if config["peft_type"] != PACKED_TYPE:
            raise ValueError(f"its peft_type is {config['peft_type']}, not {PACKED_TYPE}")
        if config["format"] != FORMAT:
            raise ValueError(
                f"format {config['format']}, and this version reads {FORMAT}; install a newer bitlora-sweeps"
            )
        rank, quantizer, granularity = config["r"], config["quantizer"], config["granularity"]
        layers = [LayerShape(*layer) for layer in config["layers"]]
        expected = packed_tensors(layers, rank, quantizer, granularity)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{about}: not a packed adapter: {_line(error)}") from None
    try:
        tensors = load_file(path)
        if (found := {name: len(tensor) for name, tensor in tensors.items()}) != {
            k: n for k, (_, n) in expected.items()
        }:
            raise ValueError(f"found tensors {found}; {CONFIG} says { ({k: n for k, (_, n) in expected.items()}) }")
        if "codes" in tensors:
            entries = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
            tensors["codes"] = unpack_codes(tensors["codes"], entries, quantizer)
        weights = {name: (a, b) for name, a, b in _matrices(tensors, layers, rank, quantizer, granularity)}
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a packed adapter: {_line(error)}") from None
    return Packed(config, weights)


def _matrices(
    tensors: dict[str, Tensor], layers: list[LayerShape], rank: int, quantizer: Quantizer, granularity: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Layer by layer its name, A and B, cut off the tensors' front."""
    at = dict.fromkeys(tensors, 0)

    def take(name: str, *shape: int) -> Tensor:
        start = at[name]
        at[name] += shape[0] * shape[1]
        return tensors[name][start : at[name]].view(shape).float()

    def matrix(side: Side, rows: int, columns: int) -> Tensor:
        if quantizer == "none":
            return take("weights", rows, columns)
        scales = (1, 1)
        if quantizer == "double_binary":
            scales = (rows, 1)
        elif granularity == "component":
            scales = (rows, 1) if side == "A" else (1, columns)
        return decode(take("codes", rows, columns), take("scales", *scales))

    for layer in layers:
        yield layer.name, matrix("A", rank, layer.in_features), matrix("B", layer.out_features, rank)


def _line(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
