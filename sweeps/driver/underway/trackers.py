"""Experiment trackers: Ray Tune's own loggers, by a line in the spec. What each needs beside that is its own environment
(`WANDB_API_KEY` or `WANDB_MODE`, `MLFLOW_TRACKING_URI`); TensorBoard's event files are below the sweep's `logs/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Final

from sweeps.spec.spec import Tracker

NEEDS: Final[dict[Tracker, tuple[str, str]]] = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
"""Tracker -> the module that it needs, and the package that has it."""


def missing(trackers: Sequence[Tracker]) -> list[str]:
    """What is not installed, a line each."""
    return [
        f"trackers: {name} needs the package {package}, which is not installed; run: pip install {package}"
        for name in trackers
        for module, package in [NEEDS[name]]
        if importlib.util.find_spec(module) is None
    ]


def callbacks(trackers: Sequence[Tracker], project: str) -> list[Any]:
    """Tune's callbacks for them.

    Args:
        project: what W&B and MLflow file the sweep under.
    """
    made: list[Any] = []
    for name in dict.fromkeys(trackers):
        if name == "tensorboard":
            from ray.tune.logger import TBXLoggerCallback

            made.append(TBXLoggerCallback())
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            made.append(WandbLoggerCallback(project=project))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            made.append(MLflowLoggerCallback(experiment_name=project))
    return made
