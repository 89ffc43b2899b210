"""The workers that share a pack: what each takes of a batch, and how they sum and agree.

Every worker holds the same base and the same slots. Of each trial's batch it computes its own rows; what must be known
of all of them (gradients, losses) is summed in one all-reduce, after which all take the same optimizer step on the same
numbers. What the first worker has to tell the others, which trials come and go, rides in the same all-reduce: so they
agree on it between the same two steps, and nobody waits for a call to another process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


class Workers:
    """This worker among those of its pack. One alone sums nothing.

    Args:
        rank: its number; 0 is the first, who alone speaks with anybody else.
        size: how many there are; more than one need torch.distributed's default process group.
        device: of what they sum: CUDA for NCCL, the CPU for gloo.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.outbox = b""
        """A message for all workers; the first worker's goes out with the next sum."""
        self.received = b""
        """The first worker's message that came with the last sum."""
        self._device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Is this the one that speaks with the rest of the world?"""
        return self.rank == 0

    def share(self, rows: int, turn: int = 0) -> tuple[int, int]:
        """First and last row (exclusive) that this worker takes of `rows`.

        Args:
            turn: shifts who takes which part, so that of many small batches not all rows fall to the same worker.
        """
        place = (self.rank + turn) % self.size
        return rows * place // self.size, rows * (place + 1) // self.size

    def sum(self, parts: Sequence[Tensor] = (), dtype: torch.dtype = torch.float32) -> None:
        """Sum each of `parts` (any shapes, one dtype) in place over all workers; `received` is then the first's message.

        Every worker must call it equally often, with parts of the same shapes.

        Args:
            dtype: what is summed in; float32 counts a message's bytes exactly up to 16 MiB.
        """
        message, self.outbox = self.outbox if self.first else b"", b""
        self.received = message
        if self.size == 1:
            return
        header = torch.tensor([len(message)], dtype=dtype, device=self._device)
        flat = torch.cat([header, *(part.detach().reshape(-1).to(self._device, dtype) for part in parts)])
        dist.all_reduce(flat)
        start = 1
        for part in parts:
            part.copy_(flat[start : start + part.numel()].view(part.shape))
            start += part.numel()
        if length := int(flat[0]):
            body = torch.zeros(length, dtype=torch.uint8)
            if message:
                body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            body = body.to(self._device)
            dist.broadcast(body, src=0)
            self.received = body.cpu().numpy().tobytes()
