"""What each worker of a pack runs: load the base, say so, train what the pool sends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from typing import TYPE_CHECKING, Any

from bitlora.config.explain import one_line
from bitlora.config.sections import BaseConfig
from sweeps.pack.settings import FAKE_GPUS, PackSettings
from sweeps.pool.pool import POOL

if TYPE_CHECKING:
    import torch

    from bitlora.forward.inject import Base


def pack_device(resources: dict[str, float]) -> torch.device:
    """Where a worker that has reserved `resources` computes.

    Raises:
        RuntimeError: it has reserved a GPU that PyTorch cannot use here.
    """
    import torch

    if not resources.get("GPU") or os.environ.get(FAKE_GPUS) == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = (
            "has no CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} finds no driver that fits"
        )
        raise RuntimeError(
            f"a GPU is reserved but PyTorch {torch.__version__} on {platform.node()} cannot use one: it {why}; install "
            "what is missing there, or give resources.gpus_per_worker: 0"
        )
    return torch.device("cuda")


def worker_loop(config: dict[str, Any]) -> None:
    """What a pack's worker runs: load the base, say so, train what the pool sends until it says stop."""
    import ray.train

    from bitlora.base.load import resolve_dtype
    from bitlora.engine.engine import Engine
    from bitlora.engine.workers import Workers
    from bitlora.files.storage import StorageError
    from bitlora.forward.inject import load_base
    from sweeps.pack.link import FirstLink, Link
    from sweeps.pack.loop import PackLoop

    name, pool = config["pack"], ray.get_actor(POOL)
    rank = ray.train.get_context().get_world_rank()
    ray.get(pool.pack_started.remote(name, ray.get_runtime_context().get_node_id()))
    settings: PackSettings = ray.get(pool.settings.remote())
    try:
        settings.storage.sees(settings.token)
        device = pack_device(settings.resources)
        base = load_base(settings.base, resolve_dtype(settings.dtype, device), device, settings.checkpointing)
    except Exception as error:  # the pool passes it on as the reason of the trials that waited for this pack
        why = one_line(error) if isinstance(error, StorageError) else f"the base could not be loaded: {one_line(error)}"
        ray.get(pool.pack_failed.remote(name, why))
        raise
    workers = Workers(rank, settings.workers, device)
    workers.sum()  # all have their base
    dtype = str(base.dtype).removeprefix("torch.")
    link = FirstLink(name, pool, settings, identity(base, settings.base), dtype) if workers.first else Link()
    pack = PackLoop(settings, Engine(base, settings.slots, workers), link)
    if workers.first:
        ray.get(pool.pack_ready.remote(name))
    try:
        pack.run()
    except Exception as error:
        ray.get(pool.pack_failed.remote(name, one_line(error)))
        raise
    finally:
        with contextlib.suppress(OSError):
            settings.storage.close()


def identity(base: Base, config: BaseConfig) -> str:
    """What tells a base and its targets from others, for checkpoints: which weights a latent vector belongs to, and what
    they are computed in, since a trial is to end in what it began in."""
    shapes = [(name, layer.in_features, layer.out_features) for name, layer in base.targets.items()]
    return f"{config.model} {config.quantization} {base.dtype} {hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]}"
