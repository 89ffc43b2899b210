"""Dropout masks that are functions of (trial seed, step, layer) alone."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from bitlora.forward.forward_plan import Span


def dropout_seed(seed: int, step: int, layer: int) -> int:
    """63 bits for a generator, from (trial seed, step, layer)."""
    return int.from_bytes(blake2b(f"{seed}/{step}/{layer}".encode(), digest_size=8).digest(), "big") >> 1


def dropout_mask(span: Span, layer: int, width: int, dropout: float, device: torch.device) -> Tensor:
    """Which entries of a slot's input are kept: (N, width) bool.

    Drawn for the trial's whole batch in the trial's own order, so that it depends neither on the slot, nor on the
    neighbours, nor on how the batch is cut into micro-batches. An entry is dropped when 16 random bits, read as a
    fraction, are below `dropout`: drawing words is most of what a mask costs, and a word has bits for four entries.
    """
    assert span.seed is not None
    generator = torch.Generator(device).manual_seed(dropout_seed(*span.seed, layer))
    entries = span.batch_tokens * width
    words = torch.empty(-(-entries // 4), dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.int16)[:entries].view(span.batch_tokens, width)
    rows = drawn[span.batch_start : span.batch_start + span.stop - span.start]
    return rows >= min(round(dropout * 2**16), 2**16 - 1) - 2**15
