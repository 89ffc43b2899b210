"""The actor that starts a pack: one Ray Train run that holds the base and trains many trials' adapters over it."""

from __future__ import annotations

import os
import re

import ray

from sweeps.onray.cluster import HEAD
from sweeps.pack.settings import FAKE_GPUS, PackSettings
from sweeps.pack.worker import worker_loop
from sweeps.pool.pool import POOL


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

        from sweeps.onray.trainer import PackTrainer

        settings: PackSettings = ray.get(ray.get_actor(POOL).settings.remote())
        trainer = PackTrainer(
            worker_loop,
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
            raise RuntimeError(f"a worker of the pack died{lacking(error)}") from error


def lacking(error: Exception) -> str:
    """What Train's error says of a package that a worker lacks: that worker could not even say so itself."""
    found = re.search(r"\b(ModuleNotFoundError|ImportError): .*", str(error))
    return f": {found[0]}; each machine needs the packages that the driver has" if found else ""
