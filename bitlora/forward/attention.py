"""Attention of each row over itself, over rows that stand behind each other (`bitlora.forward.forward_plan`).

Known to transformers by a name of its own; it is called with the attention module first and the options that the model's
configuration asks for, of which those that change the result and are not known here are refused.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.forward.forward_plan import bound_plan

ATTENTION: Final = "bitlora_rows"
"""The name under which `row_attention` is known to transformers."""


def install(model: nn.Module) -> None:
    """Make `model` (a transformers causal LM) attend by the rows of the plan that it runs by."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, row_attention)
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def row_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, T, width)
    key: Tensor,  # (1, kv_heads, T, width)
    value: Tensor,  # (1, kv_heads, T, width)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row over itself.

    Returns:
        (1, T, heads, width), and no attention weights.

    Raises:
        NotImplementedError: the model asks for something else than plain causal attention at these lengths.
    """
    plan = bound_plan()
    window = options.get("sliding_window")
    if window is not None and plan.longest > window:
        raise NotImplementedError(f"rows of {plan.longest} tokens over a sliding window of {window}: lower max_length")
    if unknown := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise NotImplementedError(f"this base's attention uses {unknown[0]}, which packs cannot do yet")

    def padded(x: Tensor) -> Tensor:  # (1, heads, T, width) -> (rows, heads, longest, width)
        rows: Tensor = x[0].index_select(1, plan.pad).unflatten(1, (-1, plan.longest))
        return rows.transpose(0, 1)

    out = F.scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, plan.unpad)[None], None
