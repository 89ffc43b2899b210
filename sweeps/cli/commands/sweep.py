"""`bitlora sweep`: run a sweep, or go on with one, here or as a job of a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sweeps.cli.begin import OPTION, Resume, ended, errors_to_begin, errors_to_go_on, goes_on
from sweeps.cli.commands.refusal import refuse
from sweeps.cli.commands.spec_file import Set, SpecFile, load, look, notes

if TYPE_CHECKING:
    from sweeps.spec.spec import Spec


def sweep(
    spec_file: SpecFile,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The sweep's folder. Default: runs/<name>.")] = None,
    set_: Set = None,
    resume: Annotated[
        Resume | None,
        typer.Option(
            OPTION,
            metavar="[auto]",
            help="Go on with a sweep that was interrupted. With auto: begin it, or go on if its folder holds it already.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="A Ray cluster. Default: RAY_ADDRESS, else one of this machine's own."),
    ] = None,
) -> None:
    """Run a sweep.

    Exit codes: 0 done; 1 no trial gave a usable result; 2 bad input; 3 done, but some trials failed; 130 interrupted.
    """
    if address is None and "://" in (named := os.environ.get("RAY_ADDRESS", "")):
        address = named  # `ray job` reads it so too; Ray itself would only say that it is no address
    job_server = address is not None and address.startswith(("http://", "https://"))
    if address is not None and "://" in address and not job_server:
        refuse(
            f"--address: submitting to {address} is not possible; give host:port, or http://HOST:PORT of the job server"
        )
    spec = load(spec_file, [*(set_ or ()), *([f"out={json.dumps(out)}"] if out is not None else ())])
    if address is not None and job_server:
        raise typer.Exit(_submit(spec_file, spec, address, resume))
    _refuse_in_job(spec_file, spec)
    console = Console(soft_wrap=True)
    errors: list[str] = []
    storage, going_on = None, False
    with contextlib.ExitStack() as stack:
        with _ctrl_c_counts():
            from bitlora.files.opening import open_storage
            from bitlora.files.storage import StorageError
            from sweeps.driver.resume import as_begun

            try:
                storage = stack.enter_context(open_storage(spec.place))
                going_on = goes_on(storage, resume)
                errors = errors_to_go_on(spec, storage) if going_on else errors_to_begin(storage)
                if going_on and not errors:
                    spec = as_begun(spec, storage.folder)
                    if (code := ended(spec, storage, typer.echo)) is not None:
                        raise typer.Exit(code)
            except StorageError as error:
                errors = [str(error)]
            begun = storage.folder if storage is not None and going_on else None
            begins = (lambda: None) if errors else lambda: import_module("sweeps.driver.run")
            prepared = look(spec_file, spec, errors, begins, begun)
            assert storage is not None  # else there was an error
        from sweeps.driver.run import run_sweep
        from sweeps.spec.errors import InputError

        notes(console, spec, prepared)
        try:
            code = run_sweep(spec, prepared, storage, console, address, going_on)
        except InputError as error:
            refuse(*error.lines)
    raise typer.Exit(code)


@contextlib.contextmanager
def _ctrl_c_counts() -> Iterator[None]:
    """A Ctrl-C ends this, whoever catches it: of the many libraries that are imported some swallow one."""
    interrupted = False

    def on(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _submit(path: Path, spec: Spec, address: str, resume: Resume | None) -> int:
    """Run the sweep as a job of a cluster."""
    from sweeps.cli.job import submit
    from sweeps.spec.errors import InputError

    try:
        return submit(spec, address, resume)
    except InputError as error:
        refuse(*(line if line.startswith("--") else f"{path}: {line}" for line in error.lines))


def _refuse_in_job(path: Path, spec: Spec) -> None:
    """As the command of a Ray job: refuse a folder that would go with the job."""
    from sweeps.cli.job import in_job, lost_with_the_job

    if in_job() and (errors := lost_with_the_job(spec)):
        refuse(*(f"{path}: {line}" for line in errors))
