"""A whole model as llama.cpp reads it: the base with an adapter merged in, its constants and its tokenizer, in one GGUF
file.

    llama-server -m t0001-gguf/model.gguf

Matrices are in 16 bits, or in blocks of 32 whose codes of 8 bits share a scale of 16 (Q8_0), vectors in float32: the
layout that llama.cpp's own converter gives a model. They are written one by one, as they are read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from bitlora.gguf.architecture import Architecture, architecture, pairs, tensor_names, turned_heads
from bitlora.gguf.hyperparameters import add_hyperparameters
from bitlora.gguf.vocabulary import add_vocabulary

MODEL: Final = "model.gguf"
Stored = Literal["f16", "q8_0", "f32"]
"""What matrices are stored in."""
BLOCK: Final = 32
"""Entries of a row that share a scale in Q8_0. Rows that are no multiple of it are in 16 bits."""


def save_model(path: Path, model: Any, tokenizer: Any, stored: Stored, name: str, licence: str | None = None) -> None:
    """Write a model for llama.cpp.

    Args:
        model: transformers', without adapters, not quantized.
        tokenizer: its tokenizer, with the chat template that it was trained with.
        name: what the model is called.
        licence: of the base.

    Raises:
        ValueError: llama.cpp has no such model, or would compute something else; nothing is written.
    """
    import gguf

    base = model.config
    found = architecture(base)
    writer = gguf.GGUFWriter(path, found.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if licence is not None:
        writer.add_license(licence)
    kinds = gguf.LlamaFileType
    writer.add_file_type({"f16": kinds.MOSTLY_F16, "q8_0": kinds.MOSTLY_Q8_0, "f32": kinds.ALL_F32}[stored])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    extra = add_hyperparameters(writer, base, found)
    add_vocabulary(writer, tokenizer, base.vocab_size, _ends(model))
    tensors = dict(_named(model, found))
    for key, factors in extra.items():
        writer.add_tensor_info(key, factors.shape, factors.dtype, factors.nbytes)
    for key, (_, value) in tensors.items():
        kind = _kind(value, stored)
        size = gguf.quants.quant_shape_to_byte_shape(value.shape, kind)
        writer.add_tensor_info(key, value.shape, np.dtype(np.float32), int(np.prod(size)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factors in extra.values():
        writer.write_tensor_data(factors)
    for source, value in tensors.values():
        array = _as_multiplied(source, value, base, found)
        writer.write_tensor_data(gguf.quants.quantize(array, _kind(value, stored)))
    writer.close()


def _ends(model: Any) -> tuple[int, ...]:
    ends = model.generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _named(model: Any, found: Architecture) -> Iterator[tuple[str, tuple[str, torch.Tensor]]]:
    """Each tensor by its name in GGUF: its name in transformers, and itself.

    Raises:
        ValueError: llama.cpp has no place for one.
    """
    names = tensor_names(found, model.config.num_hidden_layers)
    for source, value in model.state_dict().items():
        if source == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        key = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if key is None:
            raise ValueError(f"llama.cpp's {found.name} has no tensor for {source}")
        yield key, (source, value)


def _kind(value: torch.Tensor, stored: Stored) -> Any:
    import gguf

    if value.ndim < 2 or stored == "f32":
        return gguf.GGMLQuantizationType.F32
    whole = stored == "q8_0" and value.shape[-1] % BLOCK == 0
    return gguf.GGMLQuantizationType.Q8_0 if whole else gguf.GGMLQuantizationType.F16


def _as_multiplied(source: str, value: torch.Tensor, base: Any, found: Architecture) -> npt.NDArray[np.float32]:
    """As llama.cpp multiplies it, in float32."""
    value = value.detach().cpu().float()
    if found.turns_pairs and (heads := turned_heads(source.rpartition(".")[0], base)):
        value = value[pairs(len(value), heads)]
    if found.adds_one and source.endswith("norm.weight"):
        value = value + 1
    return np.ascontiguousarray(value.numpy())
