"""What goes between the host and the device: there in copies that the host does not wait for, back in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
