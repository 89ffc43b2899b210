"""Ray clusters of a test's own on this machine: several raylets, or an autoscaler whose machines are raylets too.

Processes are found by the cluster's temp dir in their command line, and ended by their ids.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
from faults import wait_for

RAY = str(Path(sys.executable).with_name("ray"))
HEAD_ID = "f" * 51 + "00000"
"""What the fake provider calls the head; the nodes it starts count on from there."""
HEAD_TYPE = "ray.head.default"
"""Fixed in the fake provider, too."""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def running():
    """Every process, looked at once: id -> (parent's id, command line)."""
    found = psutil.process_iter(["ppid", "cmdline"])
    return {one.pid: (one.info["ppid"], " ".join(one.info["cmdline"] or [])) for one in found}


def below(roots, processes):
    """Those of `roots` that run, and all below them."""
    found, more = set(), set(roots) & processes.keys()
    while more:
        found |= more
        more = {pid for pid, (parent, _) in processes.items() if parent in more} - found
    return found


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Cluster:
    """A head, and what is added to it. `env` is for all that talks to it, the sweep too."""

    def __init__(self, env, cpus=2, autoscaling=None, node_env=None):
        self.temp = env["RAY_TMPDIR"]
        self.env = env | {"RAY_AUTH_MODE": "disabled", "BITLORA_FAKE_GPUS": "1"}
        self.address = f"127.0.0.1:{free_port()}"
        command = ["--head", f"--port={self.address.split(':')[1]}", f"--temp-dir={self.temp}", f"--num-cpus={cpus}"]
        command += ["--num-gpus=0", "--include-dashboard=false"]
        self._started = []
        self._watcher = None
        if autoscaling is not None:
            config = Path(self.temp) / "autoscaling.json"
            autoscaling["provider"]["gcs_address"] = self.address
            config.write_text(json.dumps(autoscaling))
            command.append(f"--autoscaling-config={config}")
        try:
            self._start(command, node_env or {})
        except BaseException:
            self.close()
            raise

    def _start(self, options, env):
        options += [
            "--node-ip-address=127.0.0.1",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
        ]
        options += ["--object-store-memory=100000000", "--block"]
        said = Path(self.temp) / f"start-{len(self._started)}.log"
        with said.open("w") as out:
            command = [RAY, "start", *options]
            process = subprocess.Popen(command, env=self.env | env, stdout=out, stderr=subprocess.STDOUT)
        self._started.append(process)
        # One after the other: raylets that start at the same moment take the same names for their sockets.
        wait_for(lambda: process.poll() is not None or "Ray runtime started" in said.read_text(), "a machine", 60)
        assert process.poll() is None, said.read_text()
        return process

    def add(self, cpus=1, gpus=1):
        """Another machine; the process above all of its own."""
        return self._start([f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"], {})

    def add_small(self, count, gpus=1):
        """Several machines with a CPU for each GPU, under one process: sooner than by as many command lines."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": self.env}
        process = subprocess.Popen([sys.executable, "-c", MACHINES, self.address, str(count), str(gpus)], **options)
        self._started.append(process)
        for _ in range(count):
            assert process.stdout.readline(), "a machine did not start"

    @property
    def head(self):
        """The id of the process above all of the head's."""
        return self._started[0].pid

    def pids(self):
        """All of the cluster's processes: id -> command line."""
        processes = running()
        roots = {process.pid for process in self._started}
        roots |= {pid for pid, (_, line) in processes.items() if self.temp in line and pid != os.getpid()}
        return {pid: processes[pid][1] for pid in below(roots, processes)}

    def titled(self, text):
        """Those of them whose command line has `text` in it."""
        return [pid for pid, line in self.pids().items() if text in line]

    def watch(self):
        """Follow the autoscaler's view of the cluster from now on; a list that grows, a dict for each look."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": self.env}
        self._watcher = subprocess.Popen([sys.executable, "-c", WATCH, self.address], **options)
        seen = []

        def follow():
            for line in self._watcher.stdout:
                seen.append(json.loads(line))

        threading.Thread(target=follow, daemon=True).start()
        wait_for(lambda: seen, "a first look at the cluster")
        return seen

    def close(self):
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        # Twice: what starts processes is gone then.
        for _ in range(2):
            kill(self.pids())
        for process in self._started:
            process.wait(timeout=30)


MACHINES = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams
for _ in range(int(sys.argv[2])):
    params = RayParams(
        gcs_address=sys.argv[1], redis_address=sys.argv[1], num_cpus=int(sys.argv[3]), num_gpus=int(sys.argv[3]),
        object_store_memory=80_000_000,
        node_ip_address="127.0.0.1", min_worker_port=0, max_worker_port=0, node_manager_port=0,
        dashboard_agent_listen_port=None, include_log_monitor=False,
    )
    Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    print("up", flush=True)
time.sleep(3600)
"""

WATCH = """
import json, sys, time
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_status
gcs = GcsClient(sys.argv[1])
while True:
    nodes = [n for n in gcs.get_all_node_info().values() if n.state == 0 and n.resources_total.get("GPU")]
    status = get_cluster_status(sys.argv[1])
    demands = status.resource_demands
    asked = [*demands.placement_group_demand, *demands.cluster_constraint_demand]
    waiting = sum(bundle.count for demand in asked for bundle in demand.bundles_by_count)
    starting = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    print(json.dumps({"time": time.time(), "nodes": len(nodes), "demand": waiting, "starting": starting}), flush=True)
    time.sleep(0.25)
"""


def autoscaling_cluster(env, machines, idle_s):
    """A cluster under autoscaler v2, without GPUs but for the at most `machines` of one each that it can start."""
    config = {
        "cluster_name": "fake",
        "max_workers": machines,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": machines},
        },
        "head_node_type": HEAD_TYPE,
        "auth": {},
        "upscaling_speed": 1.0,
        "file_mounts": {},
        "cluster_synced_files": [],
        **{name: [] for name in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{name: [] for name in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
    }
    node_env = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    return Cluster(env, autoscaling=config, node_env=node_env)
