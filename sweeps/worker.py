"""A pack from outside: one Ray Train run that holds the base and trains many trials' adapters over it.

`PackHost` is the actor that starts it; `pack_loop` is what each of its workers runs (`sweeps.pack`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ray

from bitlora.config import BaseConfig, Dtype
from sweeps.cluster import HEAD
from sweeps.packs import one_line
from sweeps.pool import POOL

if TYPE_CHECKING:
    import torch

    from bitlora.base import Base
    from bitlora.data import Dataset
    from bitlora.storage import Storage

FAKE_GPUS: Final = "BITLORA_FAKE_GPUS"
"""In the environment, as "1": a test's GPUs are numbers that Ray counts; packs reserve them and compute on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a pack needs; the pool hands it to the workers."""

    base: BaseConfig
    dtype: Dtype
    checkpointing: bool
    dataset: Dataset
    slots: int
    storage: Storage
    """Of the sweep's folder."""
    token: str
    """By which a worker knows that the folder it sees is that one."""
    checkpoint_every: int | None
    """Steps; None: at each evaluation."""
    workers: int
    """Of a pack."""
    resources: dict[str, float]
    """Of one worker."""


@ray.remote(num_cpus=0, max_restarts=0, resources=HEAD)
class PackHost:
    """Calls `fit()`, which returns when the pack has ended, in a process of its own so that it can be killed."""

    def run(self, name: str) -> None:
        """Run the pack.

        Raises:
            RuntimeError: it did not come up, or was lost; the message is one line.
        """
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        from sweeps.trainer import PackTrainer

        settings: Settings = ray.get(ray.get_actor(POOL).settings.remote())
        trainer = PackTrainer(
            pack_loop,
            train_loop_config={"pack": name},
            # One worker has nobody to talk to; and where its GPU cannot be used, NCCL would fail before we can say why.
            torch_config=TorchConfig(backend="gloo" if settings.workers == 1 or FAKE_GPUS in os.environ else None),
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=settings.resources.get("GPU", 0) > 0,
                resources_per_worker=settings.resources,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(settings.storage.folder / "logs" / "train"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # Train raises several kinds; all a trial needs to know is that its pack is gone
            raise RuntimeError("a worker of the pack died") from error


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


def pack_loop(config: dict[str, Any]) -> None:
    """What a pack's worker runs: load the base, say so, train what the pool sends until it says stop."""
    import ray.train

    from bitlora.base import load_base, resolve_dtype
    from bitlora.engine import Engine
    from bitlora.storage import StorageError
    from bitlora.workers import Workers
    from sweeps.link import FirstLink, Link
    from sweeps.pack import Pack

    name, pool = config["pack"], ray.get_actor(POOL)
    rank = ray.train.get_context().get_world_rank()
    ray.get(pool.pack_begun.remote(name))
    settings: Settings = ray.get(pool.settings.remote())
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
    pack = Pack(settings, Engine(base, settings.slots, workers), link)
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
