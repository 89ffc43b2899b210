"""What goes between the host and the device: there in copies that the host does not wait for, back in one place; and what
is to be written in copies that the writer alone waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


def send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """What was made on the host, on `device`: in one copy, for which the host does not wait.

    Args:
        arrays: (n,) each, of one dtype.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    whole = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        whole = whole.pin_memory()
    return [*whole.to(device, non_blocking=True).split([len(array) for array in arrays])]


def read(tensor: Tensor) -> NDArray[np.float64]:
    """What the device has computed. The host waits for it: once in a step, once in an evaluation, and nowhere else."""
    return tensor.cpu().double().numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Coming(Generic[T]):
    """What is on its way into host memory."""

    made: Callable[[], T]
    """Makes it of the copies, once they are there."""
    copied: torch.cuda.Event | None = None
    """When they are; None: they are."""

    def arrived(self) -> T:
        """It. Whoever calls this waits for the copies, on whatever thread."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.made()


def fetch(tensors: Sequence[Tensor], make: Callable[[list[Tensor]], T]) -> Coming[T]:
    """Have tensors come into host memory. From a GPU they are copied on a stream of their own, into pinned memory: neither
    the host nor what it enqueues next waits for that.

    Args:
        tensors: of one device, which nobody writes into any more.
        make: makes of them, on the host, what is wanted.
    """
    device = tensors[0].device
    if device.type != "cuda":
        here = [*tensors]
        return Coming(lambda: make(here))
    stream = _copying(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        copies = [torch.empty_like(each, device="cpu", pin_memory=True) for each in tensors]
        for copy, each in zip(copies, tensors, strict=True):
            copy.copy_(each, non_blocking=True)
            each.record_stream(stream)  # its memory is another's only when the copy is done
        copied = torch.cuda.Event()
        copied.record(stream)
    return Coming(lambda: make(copies), copied)


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream of the copies from a GPU."""
    return torch.cuda.Stream(device)
