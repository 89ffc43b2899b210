"""What each worker of a pack runs: load the base, say so, train what the pool sends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bitlora.config.explain import one_line
from bitlora.config.sections import BaseConfig
from bitlora.files.origin import Origin, cpu_name, versions
from sweeps.pack.settings import FAKE_GPUS, PackSettings
from sweeps.pack.travel import arrive
from sweeps.pool.pool import POOL

if TYPE_CHECKING:
    import torch

    from bitlora.forward.inject import Base


def pack_device(resources: dict[str, float]) -> torch.device:
    """Where a worker that has reserved `resources` computes. A GPU by its index: each worker of a pack sees those of all of
    its machine, and threads that load weights do not know which is this one's.

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
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def agreed_dtype(settings: PackSettings, device: torch.device, settle: Callable[[str], str]) -> torch.dtype:
    """What a worker computes in: of `dtype: auto` what all of the sweep does.

    Args:
        settle: told what this worker would take, gives what the first one took.

    Raises:
        RuntimeError: that is bfloat16, and this machine's hardware does not multiply it.
    """
    import torch

    from bitlora.base.load import resolve_dtype

    own = resolve_dtype(settings.dtype, device)
    if settings.dtype != "auto":
        return own
    settled: torch.dtype = getattr(torch, settle(settings.begun_in or str(own).removeprefix("torch.")))
    if settled == torch.bfloat16 != own:
        raise RuntimeError(
            f"train.dtype: auto is bfloat16 in this sweep, since its first pack took that, and {platform.node()} "
            f"({device_name(device)}) does not multiply it: give train.dtype: float32, or keep packs off such machines"
        )
    return settled


def fetched(settings: PackSettings) -> PackSettings:
    """The pool's settings, with the data themselves."""
    import ray

    arrive(settings.rows)
    return replace(settings, dataset=ray.get(settings.dataset))


def worker_loop(config: dict[str, Any]) -> None:
    """What a pack's worker runs: load the base, say so, train what the pool sends until it says stop."""
    import ray.train

    name, pool = config["pack"], ray.get_actor(POOL)
    rank = ray.train.get_context().get_world_rank()
    ray.get(pool.pack_started.remote(name, ray.get_runtime_context().get_node_id()))
    try:
        from bitlora.engine.engine import Engine
        from bitlora.engine.memory import LongestRow
        from bitlora.engine.workers import Workers
        from bitlora.files.storage import StorageError
        from bitlora.forward.inject import load_base
        from sweeps.pack.first_link import FirstLink
        from sweeps.pack.link import Link
        from sweeps.pack.loop import PackLoop
        from sweeps.pack.measuring.measures import Measures
        from sweeps.pack.measuring.measuring import Measuring
        from sweeps.pack.memory import memory_key, settle_memory

        settings = fetched(ray.get(pool.settings.remote()))
        longest = LongestRow.of(settings.dataset)
    except Exception as error:
        needed = "the machines of a sweep need the same packages in the same versions"
        why = f"{platform.node()} cannot run what the driver sent: {one_line(error)}; {needed}"
        ray.get(pool.pack_failed.remote(name, why))
        raise
    try:
        settings.storage.sees(settings.token)
        device = pack_device(settings.resources)
        dtype = agreed_dtype(settings, device, lambda own: str(ray.get(pool.settle_dtype.remote(name, own))))
        base = load_base(settings.base, dtype, device, settings.checkpointing, longest.tokens)
        measures = Measures.of(settings, base) if settings.metrics else None
    except Exception as error:  # the pool passes it on as the reason of the trials that waited for this pack
        why = one_line(error) if isinstance(error, StorageError) else f"the base could not be loaded: {one_line(error)}"
        ray.get(pool.pack_failed.remote(name, why))
        raise
    workers = Workers(rank, settings.workers, device)
    workers.sum()  # all have their base
    engine = Engine(base, settings.slots, workers)
    own = identity(base, settings.base)
    key = memory_key(
        f"{device_name(device)}; {own}", settings.widest, longest, settings.workers, settings.checkpointing
    )
    lines = settle_memory(
        engine,
        settings.widest,
        longest,
        settings.slots_given,
        sharing(settings, device),
        lambda: ray.get(pool.known_memory.remote(name, key)),
        lambda found: ray.get(pool.keep_memory.remote(key, found)),
        settings.base.cache,
    )
    link = FirstLink(name, pool, settings, own, origin(base)) if workers.first else Link()
    for line in lines:
        link.log_event(line)
    measuring = Measuring(settings.dataset, engine, settings.rungs, measures, settings.objective)
    pack = PackLoop(settings, engine, link, measuring)
    if workers.first:
        # Where all fits, nobody needs to hear of it.
        short = engine.pass_tokens is not None or engine.size < settings.slots
        ray.get(pool.pack_ready.remote(name, engine.size, lines if short else lines[1:]))
    try:
        pack.run()
    except Exception as error:
        ray.get(pool.pack_failed.remote(name, one_line(error), unwritable=isinstance(error, OSError)))
        raise
    finally:
        with contextlib.suppress(OSError):
            settings.storage.close()


def sharing(settings: PackSettings, device: torch.device) -> float:
    """How many workers may share this one's memory: by what each reserves of the GPU, or of this machine's CPUs."""
    if device.type == "cuda":
        return max(1.0, 1 / settings.resources["GPU"])
    import ray

    here = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == here), 0.0)
    return max(1.0, min(settings.most_workers, cpus // settings.resources["CPU"]))


def origin(base: Base) -> Origin:
    """What computes this pack's scores."""
    dtype = str(base.dtype).removeprefix("torch.")
    return Origin(dtype=dtype, device=device_name(base.device), host=platform.node(), versions=versions())


def identity(base: Base, config: BaseConfig) -> str:
    """What tells a base and its targets from others, for checkpoints: which weights a latent vector belongs to, of which
    revision, and what they are computed in, since a trial is to end in what it began in."""
    shapes = [(name, layer.in_features, layer.out_features) for name, layer in base.targets.items()]
    over = f"{config.model} {config.revision} {config.quantized_as} {base.dtype}"
    return f"{over} {hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]}"
