"""The workers that share a pack: what each takes of a batch, and how they sum and agree, also on what has raised.

Every worker holds the same base and the same slots. Of each trial's batch it computes its own rows; what must be known
of all of them (gradients, losses) is summed in one all-reduce, after which all take the same optimizer step on the same
numbers. What the first worker has to tell the others, which trials come and go, rides in the same all-reduce: so they
agree on it between the same two steps, and nobody waits for a call to another process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from bitlora.config.explain import one_line
from bitlora.engine.mailbox import Mailbox

T = TypeVar("T")


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
        self.mailbox = Mailbox()
        self._device = device or torch.device("cpu")
        self._buffers: dict[torch.dtype, Tensor] = {}
        """What sums are made in: a step's allocates nothing."""

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

    def sum(self, parts: Sequence[Tensor] = (), dtype: torch.dtype = torch.float32, failed: bool = False) -> int:
        """Sum each of `parts` (any shapes, one dtype) in place over all workers, and bring the first's messages along.

        Every worker must call it equally often, with parts of the same shapes.

        Args:
            dtype: what is summed in; float32 counts a message's bytes exactly up to 16 MiB.
            failed: this worker could not compute its parts.

        Returns:
            How many workers could not: the same number for all, so that all do the same about it.
        """
        message = self.mailbox.collect()
        if not self.first:
            message = b""
        if self.size == 1:
            self.mailbox.deliver(message)
            return int(failed)
        header = torch.tensor([len(message), int(failed)], dtype=dtype, device=self._device)
        flat = self._buffer(len(header) + sum(part.numel() for part in parts), dtype)
        torch.cat([header, *(part.detach().reshape(-1).to(self._device, dtype) for part in parts)], out=flat)
        dist.all_reduce(flat)
        start = len(header)
        for part in parts:
            part.copy_(flat[start : start + part.numel()].view(part.shape))
            start += part.numel()
        length, failures = (int(count) for count in flat[: len(header)].tolist())
        if length:
            body = torch.zeros(length, dtype=torch.uint8)
            if message:
                body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            body = body.to(self._device)
            dist.broadcast(body, src=0)
            self.mailbox.deliver(body.cpu().numpy().tobytes())
        return failures

    def _buffer(self, count: int, dtype: torch.dtype) -> Tensor:
        found = self._buffers.get(dtype)
        if found is None or len(found) < count:
            found = self._buffers[dtype] = torch.empty(count, dtype=dtype, device=self._device)
        return found[:count]

    def broadcast(self, value: Any) -> Any:
        """The first worker's `value` (whatever pickle takes), for all. Every worker must call it."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self._device)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """Every worker's `value` (whatever pickle takes), by rank, for all. Every worker must call it."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


def attempt(work: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """What `work` gives, or None and the error that it raised in one line, with the memory that it held freed.

    Raises:
        torch.AcceleratorError: the device itself is lost: nothing that is tried on it again tells anything.
    """
    try:
        return work(*arguments), ""
    except torch.AcceleratorError:
        raise
    except Exception as error:  # whatever a layer raises is its trial's, until more is known
        reason = f"{type(error).__name__}: {one_line(error)}"
    # Outside the handler: the error's frames, and what they held, are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason


def first_reasons(reasons: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """Of each slot the reason of the first worker that has one."""
    return {slot: why for each in reversed(reasons) for slot, why in each.items()}
