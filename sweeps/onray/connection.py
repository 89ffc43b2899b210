"""A connection to Ray: to a cluster, or to one of this machine's own."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray._private.authentication import authentication_token_setup

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
TOKEN: Final = Path(".ray", "auth_token")
"""In the home folder: Ray's own place for the token that everybody has to show who talks to a Ray of this machine."""


def _have_token() -> None:
    """See that there is the token which Ray asks for of its own accord, since its ports are open to the network.

    Ray would write one, but into a file that all may read, and of two sweeps that begin at once the one would take the
    other's away. Where there is no home to keep it in, Ray's processes get one through their environment.
    """
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it tells how to do without
    path = Path.home() / TOKEN
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or path.exists():
        return
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as part:
            part.write(token)
            part.flush()
            os.fsync(part.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(part.name, path)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started meanwhile never hear the signals that end a sweep; the driver does, and ends them.

    `timeout`, Slurm, systemd and a terminal that closes send them to the whole process group: Ray's own processes would be
    gone before any record is written. Ray itself does the same for SIGINT.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def own_cpus(limits: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """How many CPUs this process may keep busy: those that it may run on, or fewer where its control group has a quota
    (`docker run --cpus`, a pod's limit, `systemd-run -p CPUQuota`).

    Args:
        limits: where the control groups are mounted.
        groups: says which of them is this process's.
    """
    most = float(len(os.sched_getaffinity(0)))
    own = next((line[3:] for line in _read(groups).splitlines() if line.startswith("0::")), "/").strip("/")
    for folder in (limits / own, *(limits / own).parents):  # a group has what those above it leave
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            most = min(most, int(quota) / int(period))
    quota, period = (_read(limits / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdigit() and period.isdigit():  # version 1 of them; -1 is none
        most = min(most, int(quota) / int(period))
    return max(1, int(most))


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Path | None]:
    """A connection to Ray; gives the session's folder where the cluster is this sweep's own.

    Raises:
        InputError: it cannot be reached.
    """
    local = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"namespace": f"bitlora-{uuid.uuid4().hex[:8]}", "log_to_driver": False}
    if local:
        _have_token()
        options |= {"address": "local", "num_cpus": own_cpus(), "include_dashboard": False}
    elif address is not None:
        options["address"] = address
    where = address or os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = where.rpartition(":")
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=timeouts.RAY_CONNECT_S).close()
        with _deaf() if local else contextlib.nullcontext():
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
