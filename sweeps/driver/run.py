"""From a spec to a finished sweep: Ray, the pool, Tune, the records, the report, the exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import ray
from rich.console import Console

from bitlora import timeouts
from bitlora.config.explain import one_line
from bitlora.files.baseline import BASE
from bitlora.files.record import CHOSEN, DATA, KEPT, RUNS, STEERED, Status
from bitlora.files.storage import Storage
from bitlora.files.writing import write_text
from reports.pages.summary import SUMMARY
from reports.report import write_report
from sweeps.driver.kept import MOST_BYTES, keep
from sweeps.driver.meanwhile import Heartbeat
from sweeps.driver.prepare import Prepared
from sweeps.driver.provenance import Run, git_state, machines, note, now
from sweeps.driver.resources import pack_limits, worker_resources
from sweeps.driver.resume import EXIT_CODE, JOURNAL, SPEC, changed
from sweeps.driver.session import Interrupt, alone, hold_gpus, keep_logs, log_to
from sweeps.driver.underway.noted import grow
from sweeps.driver.underway.progress import outcome
from sweeps.driver.underway.search import SweepSearch
from sweeps.driver.underway.trackers import missing
from sweeps.onray.cluster import Growth, growth
from sweeps.onray.connection import ENVIRONMENT, connect
from sweeps.pack.host import PackHost
from sweeps.pool.pool import INTERRUPTED_REASON
from sweeps.search.journal import mend
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec, dump_spec

DONE, NO_RESULT, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130
"""The exit codes of a sweep that began; bad input is the command line's (`sweeps.cli.commands.refusal`)."""


def run_sweep(
    spec: Spec,
    prepared: Prepared,
    storage: Storage,
    console: Console,
    address: str | None = None,
    resume: bool = False,
    host: Any = PackHost,
) -> int:
    """Run a sweep, or go on with one.

    Args:
        storage: of the sweep's folder, which is made when Ray is there; of one that goes on, all but adapters and
            checkpoints has been pulled.
        address: of a Ray cluster; None: the one that RAY_ADDRESS names, else one of this machine's own.
        resume: the folder holds the sweep already.
        host: the class of the actors that run the packs.

    Returns:
        The exit code, which also stands in the folder's exit_code.

    Raises:
        InputError: the cluster cannot be reached, or has no room for a pack, or the folder cannot be written; nothing
            was.
    """
    spec = prepared.pinned(spec)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder, began, git = storage.folder, now(), git_state()
    lines = missing(spec.trackers)
    if resume:
        lines += changed(prepared, folder, storage.out)
    if lines:
        raise InputError(lines)

    heartbeat = Heartbeat(console, "starting Ray")
    say = heartbeat.say
    with Interrupt() as interrupt, heartbeat, contextlib.ExitStack() as stack:
        hold = alone(storage, say, lambda: interrupt.asked)
        if resume:
            with _writable(storage):
                lost = stack.enter_context(hold)
                mend(folder / JOURNAL, say, lambda: interrupt.asked)
                grow(spec, storage)
        say("starting Ray …")
        with connect(address) as session:
            interrupt.arm()
            own = session is not None
            nodes, more = ray.nodes(), Growth() if own else growth()
            resources = worker_resources(spec, nodes, more)
            if own and resources.get("GPU"):
                gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
                stack.enter_context(hold_gpus(gpus, storage.out, say))
            with _writable(storage):
                if not resume:
                    lost = stack.enter_context(hold)
                    _keep_data(prepared, storage, say)
                    write_text(folder / SPEC, dump_spec(spec))
                    storage.push(SPEC)
                storage.delete(EXIT_CODE)
                token = storage.place_token()
            log_to(folder / "logs" / "driver.log")
            search = SweepSearch(
                spec,
                prepared,
                storage,
                token,
                resources,
                pack_limits(spec, nodes, more, resources),
                spec.resources.patience or (timeouts.PACK_START_LOCAL_S if own else timeouts.PACK_START_CLUSTER_S),
                host,
                elsewhere=not own,
            )
            recorder = search.run(console, heartbeat, interrupt, lost)
            run = Run(
                began=began.isoformat(timespec="seconds"),
                seconds=round((now() - began).total_seconds(), 1),
                worker_seconds=round(search.pack_seconds * spec.resources.workers_per_pack, 1),
                worker=resources,
                machines=machines(ray.nodes()),
                git=git,
                search_ended=search.ended_early,
                prior=search.prior,
            )
        if session is not None:
            keep_logs(session / "logs", folder / "logs" / "ray")
        if why := lost():
            console.print(why, style="red", markup=False, highlight=False)
            return INTERRUPTED
        if recorder.ending is not None and recorder.ending[1] != INTERRUPTED_REASON:
            console.print(recorder.ending[1], style="red", markup=False, highlight=False)
        interrupted = recorder.ending is not None and recorder.ending[0] == "interrupted"
        code = exit_code(recorder.counts, interrupted)
        heartbeat.doing = lambda: "making the report"
        _finish(storage, run, code, console)
    ended = ", ".join(f"{count} {status}" for status, count in sorted(recorder.counts.items()))
    say(f"{storage.out}: {ended or 'no trial began'}")
    if interrupted:
        say("go on with it: the same command with --resume")
    return code


def _keep_data(prepared: Prepared, storage: Storage, say: Callable[[str], object]) -> None:
    """Keep the data files with the spec. Raises OSError, InputError."""
    kept = keep(prepared.dataset.summary.files, storage.folder)
    if kept:
        storage.push(f"{DATA}/{KEPT}", DATA)
    for file in kept:
        if file.kept is None:
            size, most = f"{file.bytes / 1e6:,.0f} MB", f"{MOST_BYTES / 2**20:.0f} MB"
            say(
                f"data: {file.name} ({size}, SHA-256 {file.sha256[:16]}…) is not copied to {storage.out}/{DATA}, which "
                f"takes {most}: to go on, to export and to repeat it has to be there as it is"
            )


@contextlib.contextmanager
def _writable(storage: Storage) -> Iterator[None]:
    """What cannot be written before the sweep begins, is the user's to put right."""
    try:
        yield
    except OSError as error:
        raise InputError([f"{storage.out}: cannot be written: {error.strerror or error}"]) from None


def exit_code(counts: Counter[Status], interrupted: bool) -> int:
    """What a sweep whose trials ended so returns."""
    if interrupted:
        return INTERRUPTED
    if not counts["completed"] + counts["pruned"]:
        return NO_RESULT
    return SOME_FAILED if counts["failed"] + counts["interrupted"] else DONE


def _finish(storage: Storage, run: Run, code: int, console: Console) -> None:
    """Make the report and leave the exit code; that one cannot be written costs no trial."""
    with contextlib.suppress(OSError):
        note(storage.folder, run)
    with contextlib.suppress(
        OSError
    ):  # a pack has written it, which may have been elsewhere; the trials' files are here
        storage.pull(BASE)
    try:
        path = write_report([storage.folder])
        outcome(console, json.loads((path.parent / SUMMARY).read_text()))
        console.print(f"report: {path}", markup=False, highlight=False)
    except Exception as error:  # whatever is wrong with it: the trials' records stand
        logging.getLogger("ray").exception("no report")
        why = f"{one_line(error)}; try again: bitlora report {storage.out}"
        console.print(f"no report: {why}", markup=False, highlight=False)
    try:
        write_text(storage.folder / EXIT_CODE, f"{code}\n")
        kept = ("report", "logs/driver.log", "logs/ray", RUNS, STEERED, CHOSEN, EXIT_CODE)
        storage.push(*(name for name in kept if (storage.folder / name).exists()))
        storage.flush()
    except OSError as error:
        console.print(f"{storage.out}: not all could be written: {error}", markup=False, highlight=False)
