"""Where the tokens of a pack stand, and attention over them.

The rows of all slots stand behind each other in one sequence of T tokens without padding, and what the rows of a slot
begin with in common (a system prompt, say) stands there once: the frozen layers, which are most of the work, compute
nothing twice and nothing for nothing. Only attention must know the rows apart. It gathers them just for itself, whole and
padded to the longest row, on the right: under a causal mask no real token ever looks at a padding one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        """(rows * longest,): the token at each place of the padded form."""
        self.unpad = torch.empty(0, dtype=torch.long)
        """(T,): a place in the padded form of each token."""

    def arrange(
        self, spans: Sequence[Span], rows: Sequence[Sequence[int]], shared: Sequence[int], device: torch.device
    ) -> Tensor:
        """Lay out rows.

        Args:
            spans: who owns which tokens.
            rows: for each span the lengths of its rows.
            shared: for each span how many first tokens all its rows have in common; they stand in T once.

        Returns:
            (1, T) int64: each token's position in its row.
        """
        self.spans = tuple(spans)
        self.longest = max(max(lengths) for lengths in rows)
        pad: list[int] = []
        unpad: list[int] = []
        positions: list[int] = []
        for lengths, common in zip(rows, shared, strict=True):
            prefix = range(len(positions), len(positions) + common)
            for number, length in enumerate(lengths):
                row = len(pad)
                new = range(0 if number == 0 else common, length)
                own = range(len(positions), len(positions) + len(new))
                whole = [*own] if number == 0 else [*prefix, *own]
                # Padding repeats the row's own last token: a row that is not finite stays the only one.
                pad += whole + [whole[-1]] * (self.longest - length)
                unpad += range(row + new.start, row + length)
                positions += new
        self.tokens = len(positions)
        self.pad, self.unpad = torch.tensor(pad, device=device), torch.tensor(unpad, device=device)
        return torch.tensor(positions, device=device)[None]

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
        rows: Tensor = x[0].index_select(1, layout.pad).unflatten(1, (-1, layout.longest))
        return rows.transpose(0, 1)

    out = F.scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.unpad)[None], None
