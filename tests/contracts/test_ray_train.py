"""What the product takes from Ray Train that nobody promised it: the controller in the caller's process, and its parts.

No cluster is started: stand-ins take the place of what would need one. A failure shows the docstring of its test, which
says who relies on what is gone; a failed import shows who imports the same.
"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import TorchConfigContextManager, _TorchBackend
from ray.train.v2._internal import callbacks as train_callbacks  # sweeps.onray.trainer
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import context, train_fn_utils
from ray.train.v2._internal.execution.controller import TrainController  # sweeps.onray.trainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy  # sweeps.onray.trainer
from ray.train.v2._internal.execution.worker_group import (  # sweeps.onray.trainer
    WorkerGroup,
    WorkerGroupContext,
    placement_group_handle,
)
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,  # sweeps.onray.trainer
)
from ray.train.v2.api import data_parallel_trainer


class _Reference:
    """In the place of Train's reference to the training function, which needs a cluster."""

    def __init__(self, function: Any) -> None:
        self.function = function


class _Policy(FixedScalingPolicy):  # type: ignore[misc]
    """As `sweeps.onray.trainer` has it: nothing is asked of the autoscaler."""

    def __init__(self, scaling: ScalingConfig, calls: list[str]) -> None:
        super().__init__(scaling)
        self.calls = calls

    def after_controller_start(self, train_run_context: Any) -> None:
        self.calls.append("start")

    def before_controller_abort(self) -> None:
        self.calls.append("abort")

    async def before_controller_shutdown(self) -> None:
        self.calls.append("shutdown")

    def _maybe_send_resource_request(self) -> None:
        self.calls.append("request")


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Takes the place of the controller, as `sweeps.onray.trainer.PackTrainer` does."""

    error: Exception | None = None

    def _create_default_callbacks(self) -> list[Any]:
        return [
            train_callbacks.AcceleratorSetupCallback(self.backend_config, self.scaling_config),
            train_callbacks.BackendSetupCallback(self.backend_config),
            train_callbacks.WorkingDirectorySetupCallback(),
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        self.parts = parts
        return SimpleNamespace(error=self.error)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Trainer:
    """Made as `sweeps.pack.host.PackHost` makes it."""
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", _Reference)
    monkeypatch.setenv("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")  # it writes into the session's folder
    return _Trainer(
        lambda config: None,
        train_loop_config={"pack": "pack-1"},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1.0}),
        run_config=RunConfig(name="pack-1", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=0)),
    )


def test_fit_hands_over_what_makes_a_controller(trainer: _Trainer) -> None:
    """sweeps.onray.trainer.PackTrainer: `fit()` calls `_initialize_and_run_controller` with the controller's own
    arguments, by name, `scaling_policy` and the callbacks of `_create_default_callbacks` among them."""
    trainer.fit()
    arguments = inspect.signature(TrainController.__init__).parameters.keys() - {"self"}
    assert trainer.parts.keys() == arguments
    assert isinstance(trainer.parts["scaling_policy"], FixedScalingPolicy)
    assert [type(each).__name__ for each in trainer.parts["callbacks"]] == [
        "AcceleratorSetupCallback",
        "BackendSetupCallback",
        "WorkingDirectorySetupCallback",
    ]


def test_fit_raises_what_the_result_has(trainer: _Trainer) -> None:
    """sweeps.pack.host.PackHost: that `fit()` raises is how it hears that a worker has died."""
    trainer.error = RuntimeError("a worker died")
    with pytest.raises(RuntimeError, match="a worker died"):
        trainer.fit()


class _Refused(WorkerGroup):  # type: ignore[misc]
    """Workers that cannot be had."""

    asked: dict[str, Any]

    @classmethod
    def create(cls, **parts: Any) -> Any:
        cls.asked = parts
        raise RuntimeError("no workers here")


def _controller(trainer: _Trainer, calls: list[str]) -> TrainController:
    trainer.fit()

    class Controller(TrainController):  # type: ignore[misc]
        worker_group_cls = _Refused

    return Controller(**{**trainer.parts, "scaling_policy": _Policy(trainer.scaling_config, calls)})


def test_the_controller_runs_in_this_process(trainer: _Trainer) -> None:
    """sweeps.onray.trainer.PackTrainer: a `TrainController` is a plain class whose `run()` is awaited and whose
    `get_result()` is not; it makes its workers by `worker_group_cls.create`, and asks its scaling policy through the
    methods that `_PlacementGroupIsDemand` overrides, and no others that need Ray."""
    calls: list[str] = []
    controller = _controller(trainer, calls)
    asyncio.run(controller.run())
    assert calls == ["start", "request", "shutdown"]
    assert _Refused.asked.keys() == {"train_run_context", "worker_group_context", "callbacks"}
    assert _Refused.asked["train_run_context"].run_config.name == "pack-1"
    group = _Refused.asked["worker_group_context"]
    assert (group.num_workers, group.resources_per_worker) == (2, {"CPU": 1.0})
    assert "no workers here" in str(controller.get_result().error)


def test_what_a_policy_asks_the_autoscaler_by() -> None:
    """sweeps.onray.trainer._PlacementGroupIsDemand: overrides all methods of a policy by which the coordinator of
    autoscaling requests is reached, so that no actor is started for it."""
    overridden = {
        "after_controller_start",
        "before_controller_abort",
        "before_controller_shutdown",
        "_maybe_send_resource_request",
    }
    inner = {"_send_resource_request", "_cancel_resource_request", "_coordinator_client"}
    methods = dict(inspect.getmembers(FixedScalingPolicy, inspect.isfunction))
    speaking = {name for name, method in methods.items() if inner & {*method.__code__.co_names}}
    assert speaking - inner - {"__init__"} == overridden
    assert inspect.iscoroutinefunction(methods["before_controller_shutdown"])


def test_environment_variables_of_the_controller(trainer: _Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.trainer.ENVIRONMENT: read when the controller is made; without the first there is one more actor for
    each pack, without the second a dead worker is noticed four times as late."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    controller = _controller(trainer, [])
    watchers = [
        each for each in controller._worker_group_callbacks_to_propagate if isinstance(each, PreemptionCallback)
    ]
    assert not watchers
    assert controller._health_check_interval_s == 0.5
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    controller = _controller(trainer, [])
    assert any(isinstance(each, PreemptionCallback) for each in controller._worker_group_callbacks_to_propagate)


class _Handle:
    """A placement group for which there is no room."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def wait(self, timeout: float) -> bool:
        self.calls.append(timeout)
        return False

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_workers_wait_for_the_group_that_a_subclass_makes(trainer: _Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.trainer._NamedGroup: `_create_placement_group(scaling_config, context)` makes the group that is waited
    for, as long as RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S says, and reads these attributes of what it is given."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3600")
    monkeypatch.setattr(WorkerGroup, "_check_cluster_resources_and_raise_if_insufficient", lambda *_: None)
    handle = _Handle()
    seen: list[Any] = []

    class Named(WorkerGroup):  # type: ignore[misc]
        def _create_placement_group(self, scaling_config: Any, context: Any) -> Any:
            bundles = [context.resources_per_worker] * context.num_workers
            seen.append((bundles, context.placement_strategy, self._train_run_context.run_config.name))
            return handle

    group = WorkerGroupContext("attempt", None, 2, {"CPU": 1.0}, "PACK")
    with pytest.raises(WorkerGroupStartupTimeoutError):
        Named.create(trainer.train_run_context, group)
    assert seen == [([{"CPU": 1.0}, {"CPU": 1.0}], "PACK", "pack-1")]
    assert handle.calls == [3600.0, "shutdown"]


def test_the_handle_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.trainer._NamedGroup: `DefaultPlacementGroupHandle(group)` is all that workers need of a group."""
    removed: list[Any] = []
    monkeypatch.setattr(placement_group_handle, "remove_placement_group", removed.append)
    group = SimpleNamespace(wait=lambda seconds: seconds == 5, ready=lambda: "ready")
    handle = DefaultPlacementGroupHandle(group)
    assert handle.placement_group is group
    assert (handle.wait(5), handle.wait(6)) == (True, False)
    handle.shutdown()
    assert removed == [group]


def test_what_a_pack_asks_for() -> None:
    """sweeps.pack.host.PackHost: a share of a GPU and of a machine's CPUs for each worker; no backend named is NCCL."""
    scaling = ScalingConfig(num_workers=1, use_gpu=True, resources_per_worker={"GPU": 0.5, "CPU": 4.0})
    assert scaling._resources_per_worker_not_none == {"GPU": 0.5, "CPU": 4.0}
    assert TorchConfig(backend=None).backend is None
    assert FailureConfig(max_failures=0).max_failures == 0


def test_a_worker_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.pack.worker.worker_loop: `ray.train.get_context().get_world_rank()`; the first worker speaks for the pack."""
    monkeypatch.setattr(context, "_train_context", SimpleNamespace(get_world_rank=lambda: 1))
    monkeypatch.setattr(train_fn_utils, "_train_fn_utils", train_fn_utils.DistributedTrainFnUtils())
    assert ray.train.get_context().get_world_rank() == 1


def test_a_worker_knows_which_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.pack.worker.pack_device: `ray.train.torch.get_device()` has the index of the worker's GPU among those that it
    sees, which are those of all workers of its pack on its machine; and Train makes no other the current one."""
    from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager
    from ray.train.torch import get_device

    assert get_device.__module__ == "ray.train.v2.torch.train_loop_utils"
    assert _TorchBackend.share_cuda_visible_devices is True
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ["5"])
    assert CUDATorchDeviceManager().get_devices() == [torch.device("cuda:1")]
    assert "ray.train.torch.get_device()" in inspect.getsource(TorchConfigContextManager.__enter__)
