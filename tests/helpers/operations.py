"""How many operations a piece of work is: what PyTorch dispatches that is no mere view. On a GPU each is a launch. And how
often the host waits for the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ASKED = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique", "equal"}
"""Methods of a tensor. `numpy` is none: on a device it raises."""
DISPATCHED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique", "repeat_interleave.Tensor")


class CountOperations(TorchDispatchMode):
    """Counts, by name, those that run inside its `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class CountReadBacks:
    """Counts, by name, every call whose answer, or the shape of whose answer, must come back from the device, inside its
    `with`; also where all tensors are the CPU's."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._modes = (_Asked(self.counts), _Dispatched(self.counts))

    def __enter__(self) -> Counter[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.counts

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Asked(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ASKED:
            self._counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Dispatched(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if name.startswith(DISPATCHED) or (name.startswith("index") and _by_mask(args)):
            self._counts[name] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    indices = [index for each in args if isinstance(each, list | tuple) for index in each]
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
