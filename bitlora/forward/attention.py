"""Attention of each row over itself, over rows that stand behind each other (`bitlora.forward.forward_plan`).

Known to transformers by a name of its own; it is called with the attention module first and the options that the model's
configuration asks for. A sliding window, a soft cap of the scores and sinks are done as transformers' own eager attention
does them; what is not known here is refused (`bitlora.base.admission`).

On a GPU in half precision rows of unlike lengths are attended to as they stand (`fits_unpadded`); elsewhere they are
gathered and padded. On a CPU half precision is attended to in float32, which takes less time there
(`tests/benchmarks/forms/attention.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from bitlora.base.admission import unknown_option
from bitlora.forward.forward_plan import ForwardPlan, bound_plan
from bitlora.forward.kv_cache import SeenTokens

ATTENTION: Final = "bitlora_rows"
"""The name under which `row_attention` is known to transformers."""


@dataclass(slots=True)
class CallCount:
    """How often attention was called."""

    count: int = 0


_COUNTED: Final[ContextVar[CallCount | None]] = ContextVar("counted", default=None)


@contextlib.contextmanager
def counted() -> Iterator[CallCount]:
    """Count the calls of `row_attention` inside."""
    calls = CallCount()
    before = _COUNTED.set(calls)
    try:
        yield calls
    finally:
        _COUNTED.reset(before)


def install(model: nn.Module) -> None:
    """Make `model` (a transformers causal LM) attend by the rows of the plan that it runs by."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, row_attention)
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def row_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, T, width)
    key: Tensor,  # (1, kv_heads, T, width)
    value: Tensor,  # (1, kv_heads, T, value_width)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row over itself.

    Args:
        scaling: of the scores; None: 1 / sqrt(width).
        options: `sliding_window` (each token sees itself and as many before it as make that number), `softcap` (scores are
            `softcap * tanh(score / softcap)`), `s_aux` (heads,): one more score, with a value of zero; others are refused.

    Returns:
        (1, T, heads, value_width), and no attention weights.

    Raises:
        NotImplementedError: the model asks for something that is not known here.
    """
    if unknown := unknown_option(attention_mask, options):
        raise NotImplementedError(f"this base's attention asks for {unknown}, which packs do not know")
    plan = bound_plan()
    if (calls := _COUNTED.get()) is not None:
        calls.count += 1

    window, softcap, sinks = (options.get(name) for name in ("sliding_window", "softcap", "s_aux"))
    if plan.past is not None:
        plan.past.cache.write(module, plan.past.lanes, plan.positions[0], key, value)
        if plan.past.looks_back:
            return _looking_back(module, plan, plan.past, query, scaling, window, softcap, sinks), None
    if plan.pad is not None and softcap is None and sinks is None and fits_unpadded(query, value):
        return _unpadded(plan, query, key, value, scaling, window), None

    inside = attended_in(query)  # the gradient of x[0], below, would be a copy
    q, k, v = (plan.padded(x.to(inside).squeeze(0)) for x in (query, key, value))
    seen = None if window is None or window >= plan.longest else _band(plan.longest, int(window), query.device)
    if softcap is None and sinks is None:
        out = _fused(q, k, v, seen, scaling)
    else:
        seen = _band(plan.longest, plan.longest, query.device) if seen is None else seen
        out = _written_out(q, k, v, seen, scaling, softcap, sinks)
    return plan.unpadded(out.to(query.dtype))[None], None


def _looking_back(
    module: nn.Module,
    plan: ForwardPlan,
    past: SeenTokens,
    query: Tensor,  # (1, heads, T, width)
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,  # (heads,)
) -> Tensor:
    """Attention of one token of each row over what is kept of its row, itself among that: (1, T, heads, value_width)."""
    inside = attended_in(query)
    k, v = (each.to(inside) for each in past.cache.read(module, past.chosen, past.longest))
    q = query.to(inside).squeeze(0).transpose(0, 1)[:, :, None]  # (T, heads, 1, width)
    before = plan.positions[0][:, None] - torch.arange(past.longest, device=query.device)
    seen = before >= 0 if window is None else (before >= 0) & (before < int(window))
    seen = seen[:, None, None]  # (T, 1, 1, keys)
    if softcap is None and sinks is None:
        out = _fused(q, k, v, seen, scaling)
    else:
        out = _written_out(q, k, v, seen, scaling, softcap, sinks)
    return out[:, :, 0].to(query.dtype)[None]


def _fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scaling: float | None) -> Tensor:
    """PyTorch's own attention; `seen` None: causal."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=scaling, enable_gqa=grouped)


def attended_in(query: Tensor) -> torch.dtype:
    """What attention is computed in: float32 at least on a CPU, else as it is given."""
    return torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype


def fits_unpadded(query: Tensor, value: Tensor) -> bool:
    """Can PyTorch attend to these, (1, heads, T, width) each, without padding? Its kernel for that (FlashAttention-2, arXiv
    2307.08691) runs on GPUs since Ampere, in half precision, on heads of up to 256 numbers, in eights."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and width == value.shape[-1]
        and width % 8 == 0
        and width <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _unpadded(
    plan: ForwardPlan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of `row_attention`, with neither soft cap nor sinks, over rows as they stand."""
    rows = plan.rows

    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (T, heads, width)
    out = varlen_attn(
        q if plan.inverse is None else q.index_select(0, plan.inverse),
        k if rows.chosen is None else rows.chosen.of(k, 0),
        v if rows.chosen is None else rows.chosen.of(v, 0),
        rows.queries,
        rows.keys,
        rows.most_queries,
        plan.longest,
        scale=scaling,
        window_size=(-1 if window is None else int(window) - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)  # with nothing beside it, which was not asked for
    return (out if plan.order is None else out.index_select(0, plan.order))[None]


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length) bool: which tokens each sees of its row, the last `window` up to itself."""
    at = torch.arange(length, device=device)
    before = at[:, None] - at[None, :]
    return (before >= 0) & (before < window)


def _written_out(
    query: Tensor,  # (rows, heads, L, width)
    key: Tensor,  # (rows, kv_heads, keys, width)
    value: Tensor,  # (rows, kv_heads, keys, value_width)
    seen: Tensor,  # (L, keys) bool, or such for each row
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,  # (heads,)
) -> Tensor:
    """Attention with scores of its own kind: PyTorch's fused one knows neither soft caps nor sinks."""
    rows, heads, length, width = query.shape
    _, kv_heads, keys, _ = key.shape
    grouped = query.reshape(rows, kv_heads, heads // kv_heads * length, width)
    scores = (grouped @ key.transpose(-1, -2)).view(rows, heads, length, keys)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    high = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(high).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(high).view(1, heads, 1, 1).expand(rows, heads, length, 1)], dim=-1)
    weights = scores.softmax(-1)[..., :keys].to(value.dtype)
    return (weights.reshape(rows, kv_heads, -1, keys) @ value).view(rows, heads, length, value.shape[-1])
