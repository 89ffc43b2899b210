"""What can be known before a sweep begins: `bitlora plan`, `bitlora data`, `bitlora doctor`. They start nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sweeps.cli.commands.refusal import refuse
from sweeps.cli.commands.spec_file import Set, SpecFile, as_it_goes_on, load, look, notes


def plan(
    spec_file: SpecFile,
    set_: Set = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the base here and try it: memory and slots as measured, speed, hours."),
    ] = False,
) -> None:
    """Say what a sweep would do: trials, adapter parameters and bytes, memory and slots on this machine. Starts nothing."""
    spec = as_it_goes_on(load(spec_file, set_ or ()))
    prepared = look(spec_file, spec, [], here=True)
    from bitlora.base.locate import BaseError
    from sweeps.cli.plan import draw, make_plan
    from sweeps.cli.plan_memory import estimated, measured
    from sweeps.cli.trial_folder import quiet

    console = Console(soft_wrap=True)
    notes(console, spec, prepared)
    draw(console, make_plan(spec, prepared))
    quiet()
    try:
        lines = (measured if measure else estimated)(prepared.pinned(spec), prepared)
    except BaseError as error:
        refuse(f"{spec_file}: {error}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


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

    spec = as_it_goes_on(load(spec_file, set_ or ()))
    if errors := glance(spec):
        refuse(*(f"{spec_file}: {line}" if line.startswith("base.") else line for line in errors))
    quiet()
    from sweeps.cli import show_data

    try:
        dataset, tokenizer = show_data.read(spec)
        show_data.draw(Console(soft_wrap=True), dataset, tokenizer, rows)
        if html is not None:
            show_data.write_page(html, show_data.page(dataset, tokenizer, rows))
    except InputError as error:
        refuse(*(f"{spec_file}: {line}" if line.startswith("base.") else line for line in error.lines))


def doctor() -> None:
    """Say what this machine can run, and what is missing."""
    from sweeps.cli.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8}{finding.what:<{width + 2}}{finding.text}")
    raise typer.Exit(any(finding.verdict == "missing" for finding in findings))
