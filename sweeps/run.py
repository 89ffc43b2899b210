"""From a spec to a finished sweep: Ray, the pool, Tune, the records, the report, the exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import ray
from ray import tune
from ray.tune import Stopper
from rich.console import Console

from bitlora.record import Status, write_text
from reports.report import write_report
from sweeps.driver import DriverOnly
from sweeps.pool import AHEAD, CLOSE_S, HEAD, INTERRUPTED_REASON, POOL, Pool, one_line
from sweeps.prepare import InputError, Prepared
from sweeps.progress import Display
from sweeps.recorder import Recorder
from sweeps.search import OptunaSearcher, make_scheduler
from sweeps.spec import Spec, dump_spec
from sweeps.trial import Trial
from sweeps.worker import PackHost, Settings

DONE, NO_RESULT, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
"""The exit codes of a sweep that began; bad input is the command line's (`sweeps.cli.BAD_INPUT`)."""

SLOTS: Final = {"cpu": 4, "gpu": 8}
"""What `slots: auto` means until it is measured."""
GPU_WORKER_CPUS: Final = 4
LOG_BYTES: Final = 1_000_000
"""Of each of Ray's log files that is kept."""
CONNECT_S: Final = 5.0
ACTOR_DEATHS: Final = 2
"""How often a trial's actor may die; the trial goes on meanwhile."""

ENVIRONMENT: Final = {
    # Tune's own loggers, output and signal handler are in the way: the sweep's folder is written by us alone.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A cluster of this machine's own, on loopback, for as long as the sweep runs.
    "RAY_AUTH_MODE": "disabled",
}
"""Set before Ray starts, where the user has not set them."""


class Interrupt:
    """Ctrl-C and SIGTERM: the first asks the sweep to end, the second stops asking."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def run_sweep(spec: Spec, prepared: Prepared, folder: Path, console: Console, address: str | None = None) -> int:
    """Run a sweep in `folder`, which is made when Ray is there.

    Args:
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, else one of this machine's own.

    Returns:
        The exit code, which also stands in `folder`/exit_code.

    Raises:
        InputError: the cluster cannot be reached, or has no room for a pack, or the folder cannot be written; nothing
            was.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with Interrupt() as interrupt:
        console.print("starting Ray …", highlight=False)
        with _ray(address) as session:
            resources = worker_resources(spec, ray.nodes())
            try:
                (folder / "logs").mkdir(parents=True, exist_ok=True)
                write_text(folder / "sweep.yaml", dump_spec(spec))
            except OSError as error:
                raise InputError([f"{folder}: cannot be written: {error.strerror}"]) from None
            _log_to(folder / "logs" / "driver.log")
            recorder = _search(spec, prepared, folder.absolute(), resources, console, interrupt)
        if session is not None:
            _keep_logs(session / "logs", folder / "logs" / "ray")
        ending = recorder.ending
        if ending is not None and ending[0] == "failed":
            console.print(ending[1], style="red", markup=False, highlight=False)
        _report(folder, console)
        code = exit_code(recorder.counts, interrupted=ending is not None and ending[0] == "interrupted")
        write_text(folder / "exit_code", f"{code}\n")
    ended = ", ".join(f"{count} {status}" for status, count in sorted(recorder.counts.items()))
    console.print(f"{folder}: {ended or 'no trial began'}", markup=False, highlight=False)
    return code


def exit_code(counts: Counter[Status], interrupted: bool) -> int:
    """What a sweep whose trials ended so returns."""
    if interrupted:
        return INTERRUPTED
    if not counts["completed"] + counts["pruned"]:
        return NO_RESULT
    return SOME_FAILED if counts["failed"] + counts["interrupted"] else DONE


def _report(folder: Path, console: Console) -> None:
    """Make the report; that it cannot be made costs no trial."""
    try:
        path = write_report([folder])
    except (OSError, ValueError) as error:
        console.print(f"no report: {error}; try again: bitlora report {folder}", markup=False, highlight=False)
        return
    console.print(f"report: {path}", markup=False, highlight=False)


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Path | None]:
    """A connection to Ray; gives the session's folder where the cluster is this sweep's own.

    Raises:
        InputError: it cannot be reached.
    """
    local = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"namespace": f"bitlora-{uuid.uuid4().hex[:8]}", "log_to_driver": False}
    if local:
        options |= {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    elif address is not None:
        options["address"] = address
    where = address or os.environ.get("RAY_ADDRESS", "")
    try:
        host, _, port = where.rpartition(":")
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
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


def _search(
    spec: Spec,
    prepared: Prepared,
    folder: Path,
    resources: dict[str, float],
    console: Console,
    interrupt: Interrupt,
) -> Recorder:
    """Search, and end everything, however the search ends. Gives the recorder, which knows how the trials ended."""
    slots = spec.resources.slots
    if slots == "auto":
        slots = SLOTS["gpu" if resources.get("GPU") else "cpu"]
    settings = Settings(
        base=spec.base,
        dtype=spec.train.dtype,
        checkpointing=spec.train.gradient_checkpointing,
        dataset=prepared.dataset,
        slots=slots,
        folder=str(folder),
        resources=resources,
    )
    packs = spec.resources.packs if isinstance(spec.resources.packs, int) else spec.resources.packs.max
    pool = ray.remote(Pool).options(name=POOL, num_cpus=0, resources=HEAD, max_concurrency=1000)
    pool = pool.remote(settings, PackHost, slots, packs)
    pool.start.remote()
    searcher = OptunaSearcher(
        spec, folder / "study.journal", configure=lambda chosen: prepared.trial(spec, chosen).model_dump()
    )
    recorder = Recorder(folder, pool, prepared, searcher, stopped_by=spec.scheduler.name)
    with Display(console, pool, list(spec.search.space), searcher.total) as display:
        tuner = tune.Tuner(
            tune.with_resources(Trial, {"CPU": 0, **HEAD}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=make_scheduler(spec, prepared.trial(spec, {}).steps),
                num_samples=searcher.total,
                max_concurrent_trials=(slots + AHEAD) * packs,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder / "logs"),
                stop=Stop(pool, interrupt, recorder),
                callbacks=[recorder, display],
                failure_config=tune.FailureConfig(max_failures=ACTOR_DEATHS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            recorder.ending = ("interrupted", INTERRUPTED_REASON)
        except Exception as error:  # a full disk, a bug of Tune's: what has been recorded stands, and is told
            logging.getLogger("ray").exception("the search ended")
            recorder.ending = recorder.ending or ("failed", f"the search ended: {one_line(error)}")
        finally:
            recorder.end_rest()
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(pool.close.remote(), timeout=3 * CLOSE_S)
            try:
                recorder.close()
            except (OSError, ValueError) as error:
                console.print(f"a record could not be written: {error}", markup=False, highlight=False)
            searcher.close()
    return recorder


class Stop(DriverOnly, Stopper):  # type: ignore[misc]
    """Ends the search when a person says so, or when the pool has given up starting packs."""

    def __init__(self, pool: Any, interrupt: Interrupt, recorder: Recorder) -> None:
        self._pool = pool
        self._interrupt = interrupt
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("fatal"):
            self._recorder.ending = ("failed", result["reason"])
        return False

    def stop_all(self) -> bool:
        """Asked by Tune several times a second, on the main thread."""
        if self._interrupt.asked and self._recorder.ending is None:
            self._recorder.ending = ("interrupted", INTERRUPTED_REASON)
            self._pool.interrupt.remote()
        return self._recorder.ending is not None


def worker_resources(spec: Spec, nodes: list[dict[str, Any]]) -> dict[str, float]:
    """What one worker of a pack asks for: a GPU where the cluster has some, else a machine's CPUs.

    Raises:
        InputError: no machine has as many GPUs as the spec asks for.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = spec.resources.gpus_per_worker
    most = max(node.get("GPU", 0.0) for node in alive)
    if gpus == "auto":
        gpus = 1 if most >= 1 else 0
    if gpus > most:
        raise InputError(
            [
                f"resources.gpus_per_worker: a worker asks for {gpus:g} GPU, and no machine has more than {most:g}; give 0"
            ]
        )
    if gpus:
        roomy = [node["CPU"] / node["GPU"] for node in alive if node.get("GPU")]
        return {"GPU": float(gpus), "CPU": float(max(1, min([GPU_WORKER_CPUS, *map(int, roomy)])))}
    return {"CPU": float(max(1, int(max(node.get("CPU", 1) for node in alive))))}


def _log_to(path: Path) -> None:
    """Send what Ray and Optuna log in this process to a file instead of the terminal, once Ray has set up its own."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "optuna", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name in ("ray", "optuna", "py.warnings") else []
        logger.propagate = name.startswith("ray.")


def _keep_logs(session: Path, into: Path) -> None:
    """Copy what Ray's processes said into the sweep's folder."""
    for file in session.rglob("*"):
        if file.is_file() and not file.is_symlink() and 0 < file.stat().st_size <= LOG_BYTES:
            target = into / file.relative_to(session)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                shutil.copyfile(file, target)
