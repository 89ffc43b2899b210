"""A connection to Ray: to a cluster, or to one of this machine's own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray

from bitlora import timeouts
from bitlora.config.explain import one_line
from sweeps.spec.errors import InputError

ENVIRONMENT: Final = {
    # Tune's own loggers, output and signal handler are in the way: the sweep's folder is written by us alone.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": f"{timeouts.TUNE_CHECKPOINT_S:.0f}",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Set before Ray starts, where the user has not set them."""


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Path | None]:
    """A connection to Ray; gives the session's folder where the cluster is this sweep's own.

    Raises:
        InputError: it cannot be reached.
    """
    local = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"namespace": f"bitlora-{uuid.uuid4().hex[:8]}", "log_to_driver": False}
    if local:
        # On loopback, and for as long as the sweep runs.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options |= {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    elif address is not None:
        options["address"] = address
    where = address or os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = where.rpartition(":")
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=timeouts.RAY_CONNECT_S).close()
        context = ray.init(logging_level=logging.WARNING, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            [f"--address: Ray at {where or 'this machine'} cannot be reached: {one_line(error)}"]
        ) from None
    session = Path(context.address_info["session_dir"])
    try:
        yield session if local else None
    finally:
        ray.shutdown()
