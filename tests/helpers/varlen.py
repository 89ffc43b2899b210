"""Attention over rows of unlike length, after its documentation, in the place of PyTorch's, which needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitlora.forward import attention


def varlen_attn(
    query: Tensor,  # (all queries, heads, width)
    key: Tensor,  # (all keys, kv_heads, width)
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What the documentation of `torch.nn.attention.varlen.varlen_attn` says: row by row, the last query of a row sees as
    far as its last key; `window_size` is how many more to the left and to the right each sees, -1: all."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    of_queries, of_keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (sum(of_queries), sum(of_keys)) == (len(query), len(key))
    assert (max(of_queries), max(of_keys)) == (max_q, max_k)
    shared = query.shape[1] // key.shape[1]
    out = []
    for q, k, v in zip(query.split(of_queries), key.split(of_keys), value.split(of_keys), strict=True):
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        scores = torch.einsum("qhw,khw->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        at = torch.arange(len(q))[:, None] + len(k) - len(q)
        to = torch.arange(len(k))[None, :]
        left, right = window_size
        seen = (to - at <= right if right >= 0 else True) & (at - to <= left if left >= 0 else torch.ones_like(to > 0))
        out.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(out)


def without_padding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let attention on a CPU go by rows as they stand wherever a GPU could; gives a list of the rows of each call."""
    calls: list[int] = []

    def counted(*arguments: Tensor, **options: object) -> Tensor:
        calls.append(len(arguments[3]) - 1)
        return varlen_attn(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "varlen_attn", counted)
    monkeypatch.setattr(attention, "fits_unpadded", lambda query, value: query.shape[-1] == value.shape[-1])
    return calls
