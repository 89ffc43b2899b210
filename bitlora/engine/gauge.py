"""How much memory this process takes at its peak, and how much it may take: on a GPU what PyTorch has allocated there, else
the process's resident memory.

The kernel keeps a process's peak and lets it be reset (`/proc/self/clear_refs`); where it does not, a thread looks again
and again. What may be taken is the smallest of what limits it, with a reserve.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import finalize

import psutil
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitlora import timeouts

RESERVE: Final = 0.1
"""Share of the memory that is free, and is left so: for fragments between allocations, and for whoever else is there."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Budget:
    """What this process may hold."""

    bytes: int
    """All that it holds included, and the reserve taken off."""
    limit: str
    """What it is that limits it, in words."""


def peak_during(work: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """What `work` gives, and the most bytes that this process held while it ran, all that it held before included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        found = work()
        torch.cuda.synchronize(device)
        return found, torch.cuda.max_memory_allocated(device)
    trim()
    with _peak_resident() as peak:
        found = work()
    return found, peak()


class CountAllocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside its `with`, on any device, one without memory too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        """The most that there were at once."""
        self._now = 0
        self._known: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, made=True)
        return out

    def _note(self, tensors: Any, made: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = StorageWeakRef(storage)
            if key not in self._known:
                size = storage.nbytes() if made else 0
                self._known.add(key)
                finalize(storage, self._freed, key, size)
                self._now += size
                self.peak = max(self.peak, self._now)

    def _freed(self, key: StorageWeakRef, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def trim() -> None:
    """Give the memory back that was freed but is still held for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def held(device: torch.device) -> int:
    """Bytes that this process holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident()


def budget(device: torch.device, sharing: float = 1.0) -> Budget:
    """What this process may hold.

    Args:
        sharing: so many processes share the device, or the machine, of a fractional GPU maybe 1 / 0.3.
    """
    own = held(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - own
        rooms = [(min(free, total / sharing - own), "the GPU's memory" + _shared(sharing))]
    else:
        rooms = [*_address_space(), *_cgroups(own, sharing), _machine(own, sharing)]
    room, limit = min(rooms)
    return Budget(own + int(max(0.0, room) * (1 - RESERVE)), limit)


def _shared(sharing: float) -> str:
    return f", shared by {sharing:g}" if sharing > 1 else ""


def _resident() -> int:
    return psutil.Process().memory_info().rss


@contextlib.contextmanager
def _peak_resident() -> Iterator[Callable[[], int]]:
    """Gives what says the most bytes that were resident meanwhile."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        kernel = _high_water() is not None
    except OSError:
        kernel = False
    if kernel:
        yield lambda: _high_water() or _resident()
        return
    highest = [_resident()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(timeouts.MEMORY_LOOK_S):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    watcher.start()
    try:
        yield lambda: max(highest[0], _resident())
    finally:
        over.set()
        watcher.join()


def _high_water() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _address_space() -> Iterator[tuple[float, str]]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft - psutil.Process().memory_info().vms, "this process's address space (ulimit -v)"


def _cgroups(
    own: int,
    sharing: float,
    mounts: Path = Path("/sys/fs/cgroup"),
    groups: Path = Path("/proc/self/cgroup"),
) -> Iterator[tuple[float, str]]:
    """The room that each limited control group above this process leaves, of version 1 and 2.

    What the kernel only caches there is room. In a container the group's own path is often not to be seen, and the root
    of the mount is the group.
    """
    with contextlib.suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = mounts / "memory" if controllers else mounts
            names = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            )
            cached = "total_inactive_file" if controllers else "inactive_file"
            inner = root / path.lstrip("/")
            for folder in (inner, *inner.parents):
                if not folder.is_relative_to(root):
                    break
                with contextlib.suppress(OSError, ValueError):  # not there, or without a limit ("max")
                    limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names)
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    room = limit - used + int(stat.get(cached, 0))
                    if limit < psutil.virtual_memory().total:
                        yield min(room, limit / sharing - own), "the control group's limit" + _shared(sharing)


def _machine(own: int, sharing: float) -> tuple[float, str]:
    memory = psutil.virtual_memory()
    return min(memory.available, memory.total / sharing - own), "this machine's memory" + _shared(sharing)
