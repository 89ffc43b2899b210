"""The command line. Nothing heavy is imported here: `--help` and the answer to a wrong spec come at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from sweeps.cli.begin import OPTION, Resume, SweepCommand, ended, errors_to_begin, errors_to_go_on, goes_on

if TYPE_CHECKING:
    from sweeps.driver.prepare import Prepared
    from sweeps.spec.spec import Spec


BAD_INPUT = 2

app = typer.Typer(
    name="bitlora",
    help="Sweeps of LoRA fine-tunes: many trials at once over one frozen base, at any precision down to one bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.", show_default=False)]

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the spec, such as train.steps=64. Repeatable."),
]


@app.command(cls=SweepCommand)
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
        _refuse(
            f"--address: submitting to {address} is not possible; give host:port, or http://HOST:PORT of the job server"
        )
    spec = _load(spec_file, [*(set_ or ()), *([f"out={json.dumps(out)}"] if out is not None else ())])
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
                if going_on and not errors and (code := ended(spec, storage, typer.echo)) is not None:
                    raise typer.Exit(code)
                if going_on and not errors:
                    spec = as_begun(spec, storage.folder)
            except StorageError as error:
                errors = [str(error)]
            begun = storage.folder if storage is not None and going_on else None
            prepared = _prepare(spec_file, spec, errors, lambda: import_module("sweeps.driver.run"), begun)
            assert storage is not None  # else there was an error
        from sweeps.driver.run import run_sweep
        from sweeps.spec.errors import InputError

        _notes(console, spec, prepared)
        try:
            code = run_sweep(spec, prepared, storage, console, address, going_on)
        except InputError as error:
            _refuse(*error.lines)
    raise typer.Exit(code)


@app.command()
def plan(
    spec_file: SpecFile,
    set_: Set = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the base here and try it: memory and slots as measured, speed, hours."),
    ] = False,
) -> None:
    """Say what a sweep would do: trials, adapter parameters and bytes, memory and slots on this machine. Starts nothing."""
    spec = _load(spec_file, set_ or ())
    prepared = _prepare(spec_file, spec, [])
    from bitlora.base.locate import BaseError
    from sweeps.cli.plan import draw, make_plan
    from sweeps.cli.plan_memory import estimated, measured
    from sweeps.cli.trial_folder import quiet

    console = Console(soft_wrap=True)
    _notes(console, spec, prepared)
    draw(console, make_plan(spec, prepared))
    quiet()
    try:
        lines = (measured if measure else estimated)(prepared.pinned(spec), prepared)
    except BaseError as error:
        _refuse(f"{spec_file}: {error}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


@app.command()
def data(
    spec_file: SpecFile,
    set_: Set = None,
    rows: Annotated[int, typer.Option(metavar="N", min=0, help="Rows of each split that are shown.")] = 3,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write them as an HTML page, too.", show_default=False)
    ] = None,
) -> None:
    """Show what would be learned, token by token: counts, lengths, what is dropped and why. Starts nothing."""
    from sweeps.cli.trial_folder import quiet
    from sweeps.driver.prepare import glance
    from sweeps.spec.errors import InputError

    spec = _load(spec_file, set_ or ())
    if errors := glance(spec):
        _refuse(*(f"{spec_file}: {line}" if line.startswith("base.") else line for line in errors))
    quiet()
    from sweeps.cli import show_data

    try:
        dataset, tokenizer = show_data.read(spec)
        show_data.draw(Console(soft_wrap=True), dataset, tokenizer, rows)
        if html is not None:
            show_data.write_page(html, show_data.page(dataset, tokenizer, rows))
    except InputError as error:
        _refuse(*(f"{spec_file}: {line}" if line.startswith("base.") else line for line in error.lines))


@app.command()
def report(
    places: Annotated[
        list[str], typer.Argument(metavar="DIR…", help="A sweep's folder, or s3://….", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write it. Default: DIR/report; of several, DIR/../comparison."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DIR[/trials/ID]",
            help="Hold every configuration against the best of this one, or against that trial.",
        ),
    ] = None,
) -> None:
    """Make the report again from the records; of several sweeps, compare them."""
    from bitlora.files.opening import open_storage
    from reports.report import write_report
    from sweeps.cli.against import control
    from sweeps.driver.resume import DECIDING

    several = len(places) > 1 or against is not None
    if several and out is None and "://" in places[0]:
        _refuse("--out: a comparison of sweeps is not written to object storage; give a folder")
    with contextlib.ExitStack() as stack:
        try:
            storages = [stack.enter_context(open_storage(place)) for place in places]
            missing = [
                f"{storage.out}: holds no sweep (no trials/)" for storage in storages if not storage.exists("trials")
            ]
            if missing:
                _refuse(*missing)
            for storage in storages:
                storage.pull("", only=DECIDING)
            chosen = control(places, against) if against is not None else None
            path = write_report([storage.folder for storage in storages], out, chosen)
            if out is None and not several:
                storages[0].push("report")
        except (OSError, ValueError) as error:
            _refuse(str(error))
    typer.echo(path if out is not None or several else f"{places[0].rstrip('/')}/report/report.md")


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what is missing."""
    from sweeps.cli.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8}{finding.what:<{width + 2}}{finding.text}")
    raise typer.Exit(any(finding.verdict == "missing" for finding in findings))


@app.command()
def status(place: Annotated[str, typer.Argument(metavar="DIR", help="A sweep's folder, or s3://….")]) -> None:
    """Say where a sweep stands, running or ended."""
    from bitlora.files.opening import open_storage
    from sweeps.cli.status import draw, standing
    from sweeps.spec.errors import SpecError

    try:
        with open_storage(place) as storage:
            draw(Console(soft_wrap=True), standing(storage))
    except SpecError as error:
        _refuse(*error.lines)
    except (OSError, ValueError) as error:
        _refuse(str(error))


TrialDir = Annotated[
    str,
    typer.Argument(metavar="TRIAL_DIR", help="DIR/trials/<trial_id>, or s3://….", show_default=False),
]


@app.command()
def export(
    place: TrialDir,
    to: Annotated[
        Literal["packed", "peft", "gguf", "merged"],
        typer.Option(
            "--to",
            help="packed: the smallest, for bitlora.export. peft: an ordinary LoRA adapter. gguf: one for llama.cpp. "
            "merged: a model of its own.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it; new, or empty.", show_default=False)],
    check: Annotated[
        bool,
        typer.Option(help="Load it again and compare its eval loss with the record's; nothing is kept if it differs."),
    ] = True,
) -> None:
    """Hand an adapter on: packed, as stock PEFT or llama.cpp reads it, or merged into its base.

    Exit codes: 0 done; 1 it does not do what the trial did, or cannot be written; 2 bad input.
    """
    from sweeps.cli.checked_export import ExportError
    from sweeps.cli.checked_export import export as write
    from sweeps.cli.trial_folder import open_trial, quiet
    from sweeps.spec.errors import InputError

    try:
        with open_trial(place) as trial:
            quiet()
            write(trial, to, out, check, typer.echo)
    except InputError as error:
        _refuse(*error.lines)
    except ExportError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


@app.command()
def generate(
    place: TrialDir,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A user's turn.", show_default=False)],
    most: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens of the answer.")] = 128,
) -> None:
    """Ask a trial's adapter something; prints the answer alone."""
    from sweeps.cli.generate import generate as answer
    from sweeps.cli.trial_folder import open_trial, quiet
    from sweeps.spec.errors import InputError

    try:
        with open_trial(place) as trial:
            quiet()
            answer(trial, prompt, most)
    except InputError as error:
        _refuse(*error.lines)


def _refuse(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(BAD_INPUT)


def _load(path: Path, overrides: Sequence[str]) -> Spec:
    from sweeps.spec.errors import SpecError
    from sweeps.spec.spec import load_spec

    try:
        return load_spec(path, overrides)
    except SpecError as error:
        _refuse(*error.lines)


def _prepare(
    path: Path,
    spec: Spec,
    errors: list[str],
    meanwhile: Callable[[], object] = lambda: None,
    begun: Path | None = None,
) -> Prepared:
    """Look at base and data; with `errors` that are known already, all are said together.

    Args:
        begun: the folder of a sweep that goes on.
    """
    from sweeps.driver.kept import places
    from sweeps.driver.prepare import prepare
    from sweeps.spec.errors import InputError

    typer.echo("reading base and data …", err=True)
    try:
        elsewhere, lines = places(spec.data, path.parent, begun)
        for line in lines:
            typer.echo(f"data: {line}", err=True)
        prepared = prepare(spec, meanwhile, elsewhere)
    except InputError as error:
        _refuse(*errors, *(f"{path}: {line}" if line.startswith("base.") else line for line in error.lines))
    if errors:
        _refuse(*errors)
    return prepared


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
        _refuse(*(line if line.startswith("--") else f"{path}: {line}" for line in error.lines))


def _refuse_in_job(path: Path, spec: Spec) -> None:
    """As the command of a Ray job: refuse a folder that would go with the job."""
    from sweeps.cli.job import in_job, lost_with_the_job

    if in_job() and (errors := lost_with_the_job(spec)):
        _refuse(*(f"{path}: {line}" for line in errors))


def _notes(console: Console, spec: Spec, prepared: Prepared) -> None:
    data = prepared.dataset.summary
    console.print(
        f"data: {data.train_rows} rows to train on, {data.eval_rows} to evaluate"
        + (f", {data.test_rows} to confirm on" if data.test_rows else "")
        + f", from {data.source}",
        markup=False,
        highlight=False,
    )
    for note in data.notes:
        console.print(f"data: {note}", markup=False, highlight=False)
    if spec.search.from_:
        console.print(
            f"search.from: {len(prepared.earlier)} trials of earlier sweeps lie in this space", highlight=False
        )


def main() -> None:
    """The console script."""
    app()
