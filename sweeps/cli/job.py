"""`bitlora sweep SPEC --address http://HOST:PORT`: a sweep as a job of a Ray cluster, followed from here.

The spec and the local files it names travel as the job's working directory, which goes when the job ends: what the sweep
writes must lie elsewhere. The project itself has to be installed on the cluster.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from bitlora import timeouts
from sweeps.cli.begin import OPTION, Resume
from sweeps.driver.kept import keep, source_file
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec, dump_spec

if TYPE_CHECKING:
    from bitlora.files.source_file import SourceFile

SCHEMES: Final = ("http://", "https://")
"""How the address of a job server begins."""
ENTRYPOINT: Final = "python -m sweeps sweep spec.yaml"
DRIVER: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The job server sets this in the environment of a job's command."""
STOPPING: Final = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(timeouts.JOB_STOP_S)}
"""How a job is stopped: as by Ctrl-C, with time to end in order; Ray's own limit of 3 s would cut it off."""
INTERRUPTED: Final = 130


def in_job() -> bool:
    """Is this process the command of a Ray job?"""
    return DRIVER in os.environ


def lost_with_the_job(spec: Spec) -> list[str]:
    """An error line where the sweep's folder would lie in the job's own; none where it is absolute or a URL."""
    if spec.out is not None and ("://" in spec.out or Path(spec.out).is_absolute()):
        return []
    right = "give an absolute path on storage that every node sees, or s3://…"
    return [f"out: {spec.place} would lie in the job's own folder, which goes when the job ends; {right}"]


def submit(spec: Spec, address: str, resume: Resume | None = None) -> int:
    """Run a sweep as a job of the cluster whose job server is at `address`, and show what it says until it has ended.

    Ctrl-C and SIGTERM stop the job; it ends in order, which is waited for. A second one no longer waits.

    Returns:
        The sweep's exit code; 130 where the job was stopped; 1 where the job is lost.

    Raises:
        InputError: the spec names what cannot travel, or the server cannot be reached or refuses; nothing was started.
    """
    with tempfile.TemporaryDirectory(prefix="bitlora-job-") as folder:
        errors = [*lost_with_the_job(spec), *bundle(spec, Path(folder), resume)]
        if errors:
            raise InputError(errors)
        try:
            client = _connect(address)
            job = client.submit_job(
                entrypoint=entrypoint(resume),
                runtime_env={"working_dir": folder, "env_vars": STOPPING},
            )
        except Exception as error:  # of several libraries, which all mean that the server did not take it
            raise InputError([f"--address: submitting to {address} failed: {_reason(error)}"]) from None
    print(f"{job}: submitted to {address}", flush=True)
    return asyncio.run(_follow(client, job, address))


def entrypoint(resume: Resume | None) -> str:
    """The job's command."""
    return " ".join([ENTRYPOINT, *([OPTION] if resume else []), *(["auto"] if resume == "auto" else [])])


def bundle(spec: Spec, folder: Path, resume: Resume | None = None) -> list[str]:
    """Write the spec as `folder`/spec.yaml and beside it the local data files it names, which keep their names in it.

    What is no file here is left as it is: a hub id, or an absolute path that exists on the cluster. A base is too large
    to travel: an absolute path is taken to be one on the cluster.

    Args:
        resume: a sweep that goes on may have the files in its folder.

    Returns:
        An error line for each thing that is named by a path which means nothing on the cluster.
    """
    from bitlora.data.sources import local

    errors: list[str] = []
    base = Path(spec.base.model)
    if base.expanduser().is_dir() and not base.is_absolute():
        right = "give a hub id, or an absolute path on storage that every node sees"
        errors.append(f"base.model: {spec.base.model} is a folder of this machine; {right}")
    files: dict[str, SourceFile] = {}
    for key in ("source", "eval_source"):
        value: str | list[str] | None = getattr(spec.data, key)
        for name in [value] if isinstance(value, str) else value or []:
            path = Path(name).expanduser()
            if name == "pydoc":
                continue
            if path.is_file():
                try:
                    files[name] = source_file(name)
                except OSError as error:
                    errors.append(f"data.{key}: {name}: cannot be read: {error.strerror}")
            elif local(name) and not path.is_absolute() and resume is None:
                what = "a folder of this machine" if path.is_dir() else "no such file"
                errors.append(f"data.{key}: {name}: {what}; what is on the cluster is given by its absolute path")
    if not errors:
        (folder / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
        keep(files.values(), folder, most=None)
    return errors


def _connect(address: str) -> Any:
    url = urlsplit(address)
    # Ray itself would wait for minutes.
    port = url.port or (443 if url.scheme == "https" else 80)
    socket.create_connection((url.hostname or "", port), timeout=timeouts.RAY_CONNECT_S).close()
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


def _reason(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "uthentication" in text:
        text += "; set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    return text


async def _follow(client: Any, job: str, address: str) -> int:
    """Show the job's lines until it has ended; gives the exit code."""
    loop = asyncio.get_running_loop()
    following = asyncio.ensure_future(_show(client, job))
    asked = False

    def interrupt() -> None:
        nonlocal asked
        if asked:
            following.cancel()
        else:
            loop.run_in_executor(None, client.stop_job, job)
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await following
    except asyncio.CancelledError:
        return INTERRUPTED
    except Exception as error:  # of several libraries, which all mean that the server does not answer
        again = f"ray job logs --follow --address {address} {job}"
        print(f"{address}: the connection was lost ({_reason(error)}); the job may go on: {again}", file=sys.stderr)
        return 1


async def _show(client: Any, job: str) -> int:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()
    while not (info := client.get_job_info(job)).status.is_terminal():
        await asyncio.sleep(timeouts.JOB_POLL_S)
    if info.status == "STOPPED":
        return INTERRUPTED
    code: int | None = info.driver_exit_code
    if code is None:
        message = (info.message or "it said nothing").strip().splitlines()
        print(f"{job}: the job failed: {message[0]}", file=sys.stderr)
        return 1
    return code if code >= 0 else 128 - code
