"""The rotary embedding of a model in GGUF's keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bitlora.gguf.architecture import Architecture, head_width


def add_rotary(writer: Any, base: Any, found: Architecture) -> dict[str, npt.NDArray[np.float32]]:
    """Write how positions turn queries and keys.

    Args:
        writer: a `gguf.GGUFWriter`.
        base: transformers' configuration of the model.

    Returns:
        Factors by which its frequencies are divided, by their names in GGUF; empty where they are all alike.

    Raises:
        ValueError: llama.cpp has no such embedding.
    """
    rope: dict[str, Any] = dict(base.rope_parameters)
    if "full_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        if rope["sliding_attention"].get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters: {rope['sliding_attention']}: llama.cpp scales no window's positions")
        rope = rope["full_attention"]
    turned = int(head_width(base) * (rope.get("partial_rotary_factor") or 1.0))
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "longrope" and found.name == "phi3":
        return _long(writer, base, rope)
    if found.name == "phi3":
        writer.add_rope_scaling_orig_ctx_len(base.max_position_embeddings)
    if kind == "llama3" and found.name == "llama":
        return {"rope_freqs.weight": _llama3(rope, turned)}
    if kind == "linear":
        _scaled(writer, "linear", rope["factor"])
    elif kind == "yarn" and not {"attention_factor", "mscale", "mscale_all_dim", "truncate"} & rope.keys():
        _scaled(writer, "yarn", rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    elif kind != "default":
        raise ValueError(f"rope_parameters: {rope}: llama.cpp's {found.name} has no such rotary embedding")
    return {}


def _scaled(writer: Any, kind: str, factor: float) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(factor)


def _llama3(rope: dict[str, Any], turned: int) -> npt.NDArray[np.float32]:
    """Short waves are left as they are, long ones are made `factor` times as long, and between them that goes over, linear
    in the waves that fit into the context of before (Llama 3.1, arXiv 2407.21783, and transformers'
    `_compute_llama3_parameters`)."""
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, turned, 2) / turned)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((rope["original_max_position_embeddings"] / lengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - share) / rope["factor"] + share), dtype=np.float32)


def _long(writer: Any, base: Any, rope: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """LongRoPE (arXiv 2402.13753): other factors where a text is longer than the context of before."""
    before, most = rope["original_max_position_embeddings"], base.max_position_embeddings
    attention = rope.get("attention_factor")
    if attention is None:
        times = rope.get("factor") or most / before
        attention = math.sqrt(1 + math.log(times) / math.log(before)) if times > 1 else 1.0
    writer.add_rope_scaling_orig_ctx_len(before)
    writer.add_rope_scaling_attn_factors(attention)
    return {
        f"rope_factors_{which}.weight": np.array(rope[f"{which}_factor"], dtype=np.float32)
        for which in ("long", "short")
    }
