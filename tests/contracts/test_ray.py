"""What the product takes from Ray's core and its jobs that nobody promised it.

No cluster is started: what is looked at are Ray's own classes, with stand-ins for what they would talk to. A failure
shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import services
from ray._private.authentication import authentication_token_setup  # sweeps.onray.connection
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._private.state import GlobalState
from ray.core.generated import autoscaler_pb2, common_pb2, gcs_pb2
from ray.dashboard.modules.job import job_supervisor
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.placement_group import PlacementGroup, placement_group

NODE = "ab" * 28
GROUP = "cd" * 18


# ---- nodes, placement groups, the autoscaler


def test_the_head_has_a_resource_of_its_own() -> None:
    """sweeps.onray.cluster.HEAD: trials, the pool and the packs' hosts ask for 0.001 `node:__internal_head__`."""

    def resources(is_head: bool) -> dict[str, float]:
        spec = ResourceAndLabelSpec(num_cpus=1, num_gpus=0, memory=1e9, object_store_memory=1e9, resources={})
        spec.resolve(is_head=is_head, node_ip_address="10.0.0.1")
        found: dict[str, float] = spec.to_resource_dict()
        return found

    assert resources(is_head=True)["node:__internal_head__"] == 1
    assert "node:__internal_head__" not in resources(is_head=False)


@pytest.mark.parametrize("state", ["PENDING", "PREPARED", "CREATED", "RESCHEDULING", "REMOVED"])
def test_the_placement_group_table(state: str) -> None:
    """sweeps.onray.cluster: `pending_groups`, `leaving_groups` and `remove_group` find a pack's group by `name`, `state`
    and `bundles_to_node_id` in a table whose keys are hex ids, which `PlacementGroupID.from_hex` takes."""
    bundle = common_pb2.Bundle(node_id=bytes.fromhex(NODE), unit_resources={"CPU": 1.0})
    bundle.bundle_id.bundle_index = 0
    row = gcs_pb2.PlacementGroupTableData(
        placement_group_id=bytes.fromhex(GROUP),
        name="pack-1",
        bundles=[bundle],
        state=getattr(gcs_pb2.PlacementGroupTableData, state),
    )
    accessor = SimpleNamespace(get_placement_group_table=lambda: [row.SerializeToString()])
    table = GlobalState.placement_group_table(
        SimpleNamespace(
            _connect_and_get_accessor=lambda: accessor,
            _gen_placement_group_info=lambda data: GlobalState._gen_placement_group_info(None, data),
        )
    )
    assert list(table) == [GROUP]
    assert table[GROUP]["name"] == "pack-1"
    assert table[GROUP]["state"] == state
    assert set(table[GROUP]["bundles_to_node_id"].values()) == {NODE}
    assert PlacementGroup(ray.PlacementGroupID.from_hex(GROUP)).id.hex() == GROUP


def test_draining_nodes_are_known_by_hex_id() -> None:
    """sweeps.onray.cluster.leaving_groups: `ray._private.state.state.get_draining_nodes()`, a mapping by node id; a
    pack on such a machine saves and leaves. Ray has no public call for it."""
    assert isinstance(ray._private.state.state, GlobalState)
    assert callable(ray._raylet.GlobalStateAccessor.get_draining_nodes)
    accessor = SimpleNamespace(get_draining_nodes=lambda: {NODE: 0})
    found = GlobalState.get_draining_nodes(SimpleNamespace(_connect_and_get_accessor=lambda: accessor))
    assert found.keys() & {NODE}


def test_a_raylet_shows_its_node_in_its_command_line() -> None:
    """sweeps.onray.machine.local_nodes: which node of which cluster a machine is, stands in its raylet's command line
    alone: `--node_id`, `--gcs-address`, `--temp_dir`, and `--head` for a head."""
    source = inspect.getsource(services.start_raylet)
    command = source[source.index("    command = [\n        RAYLET_EXECUTABLE,") :]
    for option in ("--node_id={node_id}", "--gcs-address={gcs_address}", "--temp_dir={temp_dir}"):
        assert f'f"{option}"' in command
    assert 'if is_head_node:\n        command.append("--head")' in command
    assert Path(services.RAYLET_EXECUTABLE).name == "raylet"


def test_the_control_service_drains_a_node() -> None:
    """sweeps.onray.machine.drain: `GcsClient(address).drain_node` with the node's hex id, a reason that cannot be refused,
    a line, a deadline in ms since 1970, and a time-out; it gives (accepted, why not). As Ray does at SIGTERM."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    inspect.signature(ray._raylet.InnerGcsClient.drain_node).bind(None, NODE, reason, "spot", 1, timeout=5.0)
    source = inspect.getsource(ray._private.node.Node._drain_node_before_shutdown)
    assert (
        "is_accepted, rejection_message = self.get_gcs_client().drain_node(\n                self._node_id," in source
    )
    assert "DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION" in source


def test_a_placement_group_takes_a_name() -> None:
    """sweeps.onray.trainer: a pack's group has the pack's name, so that the pool can remove it when its host is gone."""
    inspect.signature(placement_group).bind([{"CPU": 1.0}], strategy="PACK", name="pack-1")


def test_the_autoscalers_command_names_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.cluster.growth: reads `--gcs-address=` and `--autoscaling-config=` out of the command line of the
    head's autoscaler; that the cluster has node types to start stands nowhere else."""
    commands: list[list[str]] = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, *_, **__: commands.append(command))
    for v2 in (False, True):
        services.start_monitor("10.0.0.1:6379", "/tmp", autoscaling_config="~/ray.yaml", autoscaler_v2=v2)
    services.start_monitor("10.0.0.1:6379", "/tmp")
    options = [dict(part.partition("=")[::2] for part in command) for command in commands]
    assert [found["--gcs-address"] for found in options] == ["10.0.0.1:6379"] * 3
    assert [found.get("--autoscaling-config") for found in options] == ["~/ray.yaml", "~/ray.yaml", None]


def test_kuberay_shows_in_the_environment() -> None:
    """sweeps.onray.cluster.KUBERAY: by this variable the head knows that KubeRay starts its machines."""
    from ray._common.usage import usage_constants

    assert usage_constants.KUBERAY_ENV == "RAY_USAGE_STATS_KUBERAY_IN_USE"


# ---- connecting, errors, logs


def test_ray_init_takes_what_the_driver_gives_it() -> None:
    """sweeps.onray.connection.connect: these arguments of `ray.init`."""
    keywords = {"namespace", "log_to_driver", "address", "num_cpus", "include_dashboard", "logging_level"}
    assert keywords <= inspect.signature(ray._private.worker.init).parameters.keys()


def test_environment_variables_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.onray.connection: RAY_USAGE_STATS_ENABLED=0; RAY_AUTH_MODE is the user's, and Ray does as it says."""
    from ray._common.usage import usage_lib

    for mode, token in (("disabled", False), ("token", True)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert authentication_token_setup.enable_token_auth_by_default() is token
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert usage_lib.usage_stats_enabled() is False
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert usage_lib.usage_stats_enabled() is True


def test_the_token_of_an_own_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sweeps.onray.connection._have_token: makes the token where Ray would and as Ray would, but so that others cannot read
    it; and silences the logger that says how to do without."""
    source = inspect.getsource(authentication_token_setup)
    assert "enable_token_auth_by_default()" in inspect.getsource(ray._private.worker.init)
    assert authentication_token_setup.logger.name == authentication_token_setup.__name__
    monkeypatch.setenv("HOME", str(tmp_path))
    assert authentication_token_setup._get_default_token_path() == tmp_path / ".ray" / "auth_token"
    assert 'with open(token_path, "w")' in source  # readable for all, and not written at once
    assert re.fullmatch("[0-9a-f]{64}", authentication_token_setup.generate_new_authentication_token())


def test_errors_of_actors() -> None:
    """sweeps.pool.packs: a host that died is a RayActorError; what a call raised is `cause` of a RayTaskError, and both
    are RayErrors, which everything that waits for the pool catches."""
    raised = RayTaskError("run", "Traceback …", RuntimeError("a worker of the pack died"))
    assert str(raised.cause) == "a worker of the pack died"
    assert isinstance(raised.as_instanceof_cause(), RuntimeError)
    assert str(raised.as_instanceof_cause().cause) == "a worker of the pack died"
    assert issubclass(RayActorError, RayError)
    assert issubclass(RayTaskError, RayError)
    assert issubclass(ray.exceptions.GetTimeoutError, RayError)


def test_ray_logs_below_its_own_name() -> None:
    """sweeps.onray.connection.log_to: sends `ray`, `ray.data`, `ray.train` and `ray.tune` to the sweep's file; a logger
    below `ray` with a handler of its own would still write to the terminal."""
    from ray.tune.execution import tune_controller

    assert tune_controller.logger.name.startswith("ray.tune")
    own = {
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("ray") and isinstance(logger, logging.Logger) and logger.handlers
    }
    assert own <= {"ray", "ray.data", "ray.train", "ray.tune"}


# ---- jobs


@pytest.mark.parametrize(("seconds", "said"), [("120", ["up", "in order"]), ("0", ["up"])])
def test_a_job_is_stopped_as_by_ctrl_c(
    seconds: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sweeps.cli.job.STOPPING: RAY_JOB_STOP_SIGNAL=SIGINT and RAY_JOB_STOP_WAIT_TIME_S, in the job's environment: its
    sweep gets a Ctrl-C and so long to end in order, instead of 3 s; and the job counts as STOPPED."""
    monkeypatch.setenv("RAY_JOB_STOP_SIGNAL", "SIGINT")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", seconds)
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.4)\n    sys.exit(print('in order'))\n"
        "signal.signal(signal.SIGINT, end)\nprint('up')\nsignal.pause()\n"
    )
    statuses, code = _run_job(f"exec {sys.executable} -u {program}", log, monkeypatch, stop=True)
    # Ray's own line comes when Ray has closed the file, which may be after the program's first.
    assert [line for line in log.read_text().splitlines() if not line.startswith("Running entrypoint")] == said
    assert statuses == [JobStatus.RUNNING, JobStatus.STOPPED]
    assert code is None


def test_a_job_says_how_its_command_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.cli.job: `driver_exit_code` is the sweep's own exit code, also where the job is FAILED."""
    statuses, code = _run_job("exit 3", tmp_path / "log", monkeypatch)
    assert statuses == [JobStatus.RUNNING, JobStatus.FAILED]
    assert code == 3


def test_the_command_of_a_job_knows_that_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """sweeps.cli.job.in_job: by RAY_JOB_CONFIG_JSON_ENV_VAR in its environment."""
    monkeypatch.setattr(services, "canonicalize_bootstrap_address_or_die", lambda *_: "10.0.0.1:6379")
    node = SimpleNamespace(_ray_params=SimpleNamespace(temp_dir=None))
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    monkeypatch.setattr(job_supervisor.JobSupervisor, "_get_driver_runtime_env", lambda *_: {})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    supervisor: Any = object.__new__(job_supervisor.JobSupervisor)
    supervisor._metadata = {}
    assert "RAY_JOB_CONFIG_JSON_ENV_VAR" in supervisor._get_driver_env_vars(False)


def _run_job(
    entrypoint: str, log: Path, monkeypatch: pytest.MonkeyPatch, stop: bool = False
) -> tuple[list[JobStatus], int | None]:
    """Run a command as Ray's job server does; gives the job's statuses and its exit code."""
    node = SimpleNamespace(node_ip_address="10.0.0.1", dashboard_agent_listen_port=1)
    monkeypatch.setattr(ray._private.worker.global_worker, "node", node, raising=False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: NODE))
    monkeypatch.setattr(ray.actor, "exit_actor", lambda: None)
    said: list[tuple[JobStatus, dict[str, Any]]] = []

    class Jobs:
        async def get_info(self, job: str) -> Any:
            return SimpleNamespace(status=JobStatus.PENDING, message="")

        async def put_status(self, job: str, status: JobStatus, **more: Any) -> None:
            said.append((status, more))

        async def get_log_file_path(self, job: str) -> str:
            return str(log)

        async def get_last_n_log_lines(self, job: str) -> str:
            return ""

    supervisor: Any = object.__new__(job_supervisor.JobSupervisor)
    supervisor.__dict__ |= {"_job_id": "job", "_entrypoint": entrypoint, "_metadata": {}, "_win32_job_object": None}
    supervisor.__dict__ |= {"_job_info_client": Jobs(), "_logger": logging.getLogger("contract")}
    supervisor._log_client = SimpleNamespace(
        get_log_file_path=lambda job: str(log), get_last_n_log_lines=Jobs().get_last_n_log_lines
    )
    supervisor._get_driver_env_vars = lambda specified: {"RAY_ADDRESS": "10.0.0.1:6379"}

    async def run() -> None:
        supervisor._stop_event = asyncio.Event()
        running = asyncio.ensure_future(supervisor.run())
        while stop and not (log.exists() and "up\n" in log.read_text()) and not running.done():
            await asyncio.sleep(0.02)
        if stop:
            supervisor._stop_event.set()
        await running

    asyncio.run(asyncio.wait_for(run(), 20))
    return [status for status, _ in said], said[-1][1].get("driver_exit_code")


def test_the_client_of_the_job_server() -> None:
    """sweeps.cli.job: submits, stops, asks, and follows the log as an asynchronous iterator."""
    client = JobSubmissionClient
    inspect.signature(client.submit_job).bind(None, entrypoint="true", runtime_env={"working_dir": ".", "env_vars": {}})
    inspect.signature(client.stop_job).bind(None, "job")
    inspect.signature(client.get_job_info).bind(None, "job")
    assert inspect.isasyncgenfunction(client.tail_job_logs)
    assert {"status", "message", "driver_exit_code"} <= JobDetails.model_fields.keys()
    ended = [status.value for status in JobStatus if status.is_terminal()]
    assert ended == ["STOPPED", "SUCCEEDED", "FAILED"]
    assert JobStatus.STOPPED == "STOPPED"


def test_following_a_log_ends_with_the_job_and_fails_with_the_connection() -> None:
    """sweeps.cli.job._follow: the iterator over the log ends when the job has, and raises where the server is gone."""

    async def follow(abort: bool) -> list[str]:
        from aiohttp import web

        async def tail(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str("a line\n")
            if abort:
                assert request.transport is not None
                request.transport.abort()
            else:
                await socket.close()
            return socket

        app = web.Application()
        app.router.add_get("/api/jobs/job/logs/tail", tail)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client: Any = object.__new__(JobSubmissionClient)
        port = runner.addresses[0][1]
        client.__dict__ |= {"_address": f"http://127.0.0.1:{port}", "_cookies": None, "_headers": {}}
        client.__dict__ |= {"_ssl_context": True, "_server_ray_version": ray.__version__}
        lines: AsyncIterator[str] = client.tail_job_logs("job")
        try:
            return [line async for line in lines]
        finally:
            await runner.cleanup()

    assert asyncio.run(follow(abort=False)) == ["a line\n"]
    with pytest.raises(RuntimeError, match="unexpectedly"):
        asyncio.run(follow(abort=True))
