"""The command line. Nothing heavy is imported here: `--help` and the answer to a wrong spec come at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sweeps.prepare import Prepared
    from sweeps.spec import Spec

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


@app.command()
def sweep(
    spec_file: SpecFile,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The sweep's folder. Default: runs/<name>.")] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish a sweep that was interrupted (not there yet).")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="A Ray cluster. Default: RAY_ADDRESS, else one of this machine's own."),
    ] = None,
) -> None:
    """Run a sweep.

    Exit codes: 0 done; 1 no trial gave a usable result; 2 bad input; 3 done, but some trials failed; 130 interrupted.
    """
    if resume:
        _refuse("--resume: not available yet; start the sweep again in another folder with --out")
    if address is not None and "://" in address:
        _refuse(f"--address: submitting to {address} is not available yet; give host:port, or use ray job submit")
    spec = _load(spec_file, [*(set_ or ()), *([f"out={json.dumps(str(out))}"] if out is not None else ())])
    folder = spec.folder
    errors = _folder_errors(folder)
    prepared = _prepare(spec_file, spec, errors, meanwhile=lambda: import_module("sweeps.run"))
    from sweeps.prepare import InputError
    from sweeps.run import run_sweep

    console = Console(soft_wrap=True)
    _notes(console, prepared)
    try:
        code = run_sweep(spec, prepared, folder, console, address)
    except InputError as error:
        _refuse(*error.lines)
    raise typer.Exit(code)


@app.command()
def plan(spec_file: SpecFile, set_: Set = None) -> None:
    """Say what a sweep would do: trials, adapter parameters and bytes. Starts nothing."""
    spec = _load(spec_file, set_ or ())
    prepared = _prepare(spec_file, spec, [])
    from sweeps.plan import draw, make_plan

    console = Console(soft_wrap=True)
    _notes(console, prepared)
    draw(console, make_plan(spec, prepared))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="A sweep's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write it. Default: DIR/report.")] = None,
) -> None:
    """Make the report again from the records."""
    from reports.report import write_report

    missing = [f"{folder}: no such folder" for folder in folders if not folder.is_dir()]
    missing += [
        f"{folder}: holds no sweep (no trials/)"
        for folder in folders
        if folder.is_dir() and not (folder / "trials").is_dir()
    ]
    if missing:
        _refuse(*missing)
    try:
        path = write_report(folders, out)
    except (OSError, ValueError) as error:
        _refuse(str(error))
    typer.echo(path)


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what is missing."""
    from sweeps.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8}{finding.what:<{width + 2}}{finding.text}")
    raise typer.Exit(any(finding.verdict == "missing" for finding in findings))


@app.command(hidden=True)
def status(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """Say where a sweep stands (not there yet)."""
    _refuse(f"status: not available yet; look at {folder}/trials/*/metrics.jsonl")


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def export(folder: Annotated[Path, typer.Argument(metavar="TRIAL_DIR")]) -> None:
    """Hand an adapter on (not there yet)."""
    _refuse(f"export: not available yet; the latent weights are in {folder}/adapter")


def _refuse(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(BAD_INPUT)


def _load(path: Path, overrides: Sequence[str]) -> Spec:
    from sweeps.spec import SpecError, load_spec

    try:
        return load_spec(path, overrides)
    except SpecError as error:
        _refuse(*error.lines)


def _prepare(path: Path, spec: Spec, errors: list[str], meanwhile: Callable[[], object] = lambda: None) -> Prepared:
    """Look at base and data; with `errors` that are known already, all are said together."""
    from sweeps.prepare import InputError, prepare

    typer.echo("reading base and data …", err=True)
    try:
        prepared = prepare(spec, meanwhile)
    except InputError as error:
        _refuse(*errors, *(f"{path}: {line}" if line.startswith("base.") else line for line in error.lines))
    if errors:
        _refuse(*errors)
    return prepared


def _folder_errors(folder: Path) -> list[str]:
    """What keeps a sweep from being written to `folder`; looks, and writes nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        what = "already holds a sweep" if (folder / "sweep.yaml").exists() else "is not empty"
        return [f"{folder}: {what}; give another folder with --out"]
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return [f"{folder}: {above} is a file, not a folder"]
    if not os.access(above, os.W_OK | os.X_OK) or os.statvfs(above).f_flag & os.ST_RDONLY:
        return [f"{folder}: {above} cannot be written to"]
    return []


def _notes(console: Console, prepared: Prepared) -> None:
    data = prepared.dataset.summary
    console.print(
        f"data: {data.train_rows} rows to train on, {data.eval_rows} to evaluate, from {data.source}",
        markup=False,
        highlight=False,
    )
    for note in data.notes:
        console.print(f"data: {note}", markup=False, highlight=False)


def main() -> None:
    """The console script."""
    app()
