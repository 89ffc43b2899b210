"""Ray Train, without the processes that a pack has no use for.

A stock `TorchTrainer.fit()` starts, besides its workers, five actors with an interpreter each: the controller, a manager
of datasets, a cleaner of placement groups, a watcher for preemptions, and the coordinator of autoscaling requests. On a
small machine their start-up is most of the time until a pack trains. A pack's host is an actor that does nothing but
wait, so the controller runs in it; the pool removes placement groups and watches nodes; a placement group is all the
demand that an autoscaler needs, and has the run's name. Written for the Ray release that pyproject.toml pins.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import (
    AcceleratorSetupCallback,
    BackendSetupCallback,
    WorkingDirectorySetupCallback,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import placement_group

from bitlora import timeouts

ENVIRONMENT: Final = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(timeouts.WORKER_CHECK_S),
    # The pool decides how long a pack waits; Train would give the placement group up after 60 s and ask for a new one.
    # Whatever `resources.patience` says, this is more.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(1000 * timeouts.PACK_START_CLUSTER_S),
}
"""Set where the user has not."""


class _PlacementGroupIsDemand(FixedScalingPolicy):  # type: ignore[misc]
    """Asks the autoscaler for nothing beside the placement group, so that nothing is left to cancel."""

    def after_controller_start(self, train_run_context: Any) -> None: ...
    def before_controller_abort(self) -> None: ...
    async def before_controller_shutdown(self) -> None: ...
    def _maybe_send_resource_request(self) -> None: ...


class _NamedGroup(WorkerGroup):  # type: ignore[misc]
    """Workers whose placement group has the run's name, so that it can be found when this process is gone."""

    def _create_placement_group(self, scaling_config: Any, context: Any) -> DefaultPlacementGroupHandle:
        return DefaultPlacementGroupHandle(
            placement_group(
                [context.resources_per_worker] * context.num_workers,
                strategy=context.placement_strategy,
                name=self._train_run_context.run_config.name,
            )
        )


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _NamedGroup


class PackTrainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` whose controller runs in the process that calls `fit()`, which must be an actor's."""

    def _create_default_callbacks(self) -> list[Any]:
        return [
            AcceleratorSetupCallback(self.backend_config, self.scaling_config),
            BackendSetupCallback(self.backend_config),
            WorkingDirectorySetupCallback(),
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        async def run() -> Any:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            controller = _Controller(**{**parts, "scaling_policy": _PlacementGroupIsDemand(self.scaling_config)})
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())
