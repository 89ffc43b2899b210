"""This machine's own nodes of a Ray cluster, and asking the cluster to drain them before the machine goes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from bitlora import timeouts
from bitlora.config.explain import one_line


class DrainError(Exception):
    """The cluster's control service did not take the request, in one line."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A Ray node of this machine: a raylet process."""

    id: str
    """In hex."""
    gcs_address: str
    """Where the cluster's control service is: host:port."""
    process: psutil.Process

    def is_up(self) -> bool:
        """Does it run? One that is drained ends by itself when nothing is left on it."""
        with contextlib.suppress(psutil.Error):
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        return False


def local_nodes(node_id: str | None = None) -> list[LocalNode]:
    """The Ray nodes of this machine that can be drained: all but the head of a cluster, which nothing can do without.

    Args:
        node_id: in hex: that one alone. None: all; where RAY_TMPDIR is set, those whose files are there, as Ray has it.
    """
    temp = os.environ.get("RAY_TMPDIR")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command: list[str] = process.info["cmdline"] or []
        if not command or Path(command[0]).name != "raylet" or "--head" in command:
            continue
        options: dict[str, Any] = dict(part.partition("=")[::2] for part in command[1:])
        here = node_id is not None or temp is None or options.get("--temp_dir") == temp
        if here and options.get("--node_id") and node_id in (None, options["--node_id"]):
            found.append(LocalNode(options["--node_id"], options.get("--gcs-address", ""), process))
    return found


def drain(node: LocalNode, deadline: float, why: str) -> None:
    """Ask the cluster's control service to place nothing more on a node, and to let it go when nothing is left there.

    Args:
        deadline: when the machine goes: seconds since 1970.

    Raises:
        DrainError: it does not answer, or refuses.
    """
    host, _, port = node.gcs_address.rpartition(":")
    try:
        # Ray itself would try for 40 s, which a machine that goes may not have.
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeouts.RAY_CONNECT_S).close()
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        late = int(1000 * max(deadline, time.time()))
        accepted, said = GcsClient(node.gcs_address).drain_node(
            node.id, reason, why, late, timeout=timeouts.DRAIN_ANSWER_S
        )
    except Exception as error:  # Ray's own are of several kinds, for a control service that is away or late
        raise DrainError(f"the control service at {node.gcs_address}: {one_line(error)}") from None
    if not accepted:
        raise DrainError(f"the control service at {node.gcs_address} refused: {said}")
