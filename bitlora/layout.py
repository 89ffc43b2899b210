"""Where the tokens of a pack stand, and attention over them.

The rows of all slots stand behind each other in one sequence of T tokens without padding: the frozen layers, which are
most of the work, compute nothing twice and nothing for nothing. Only attention must know the rows apart. It pads them
just for itself, to the longest row, on the right: under a causal mask no real token ever looks at a padding one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ATTENTION: Final = "bitlora_packed"
"""The name under which `packed_attention` is known to transformers."""


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one slot in a forward pass, and where they stand in the slot's whole batch."""

    slot: int
    start: int
    stop: int
    batch_start: int = 0
    """First token, counted within the trial's own batch (a micro-batch may begin in its middle)."""
    batch_tokens: int = 0
    """Tokens of the trial's whole batch: the dropout masks are drawn for all of them."""
    seed: tuple[int, int] | None = None
    """(trial seed, step) of the dropout masks; None in evaluation."""


class Layout:
    """Who owns which tokens: all that changes from one forward pass to the next. One object, shared by a base's modules."""

    def __init__(self) -> None:
        self.tokens = 0
        self.spans: tuple[Span, ...] = ()
        self.longest = 0
        self.pad = torch.empty(0, dtype=torch.long)
        self.unpad = torch.empty(0, dtype=torch.long)

    def arrange(self, spans: Sequence[Span], lengths: Sequence[int], device: torch.device) -> Tensor:
        """Lay out rows of `lengths` tokens, owned as `spans` say.

        Returns:
            (1, T) int64: each token's position in its row.
        """
        self.spans, self.tokens, self.longest = tuple(spans), sum(lengths), max(lengths)
        length = torch.tensor(lengths)[:, None]
        start = torch.tensor([0, *accumulate(lengths)][:-1])[:, None]
        column = torch.arange(self.longest)[None, :]
        # Padding repeats the row's own last token: a row that is not finite stays the only one.
        self.pad = (start + torch.minimum(column, length - 1)).flatten().to(device)
        real = (column < length).flatten()
        self.unpad = real.nonzero().flatten().to(device)
        return column.expand(len(lengths), -1).flatten()[real][None].to(device)

    def install(self, model: nn.Module) -> None:
        """Make `model` (a transformers causal LM) attend by rows of this layout."""
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, packed_attention)
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        for module in model.modules():
            # Plain attribute: the attention function is handed its module, also when a checkpoint is recomputed on
            # another thread.
            object.__setattr__(module, "bitlora_layout", self)


def packed_attention(
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
    layout: Layout = module.bitlora_layout  # type: ignore[assignment]
    window = options.get("sliding_window")
    if window is not None and layout.longest > window:
        raise NotImplementedError(
            f"rows of {layout.longest} tokens over a sliding window of {window}: lower max_length"
        )
    if unknown := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise NotImplementedError(f"this base's attention uses {unknown[0]}, which packs cannot do yet")

    def padded(x: Tensor) -> Tensor:  # (1, heads, T, width) -> (rows, heads, longest, width)
        return x[0].index_select(1, layout.pad).unflatten(1, (-1, layout.longest)).transpose(0, 1)

    out = F.scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.unpad)[None], None
