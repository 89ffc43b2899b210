"""What a sweep's folder says of it, and what is made of it: `bitlora status`, `bitlora report`, `bitlora soup`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from sweeps.cli.commands.refusal import refuse


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
    from sweeps.cli.commands.against import control
    from sweeps.driver.resume import DECIDING

    several = len(places) > 1 or against is not None
    if several and out is None and "://" in places[0]:
        refuse("--out: a comparison of sweeps is not written to object storage; give a folder")
    with contextlib.ExitStack() as stack:
        try:
            storages = [stack.enter_context(open_storage(place)) for place in places]
            missing = [
                f"{storage.out}: holds no sweep (no trials/)" for storage in storages if not storage.exists("trials")
            ]
            if missing:
                refuse(*missing)
            for storage in storages:
                storage.pull("", only=DECIDING)
            chosen = control(places, against) if against is not None else None
            path = write_report([storage.folder for storage in storages], out, chosen)
            if out is None and not several:
                storages[0].push("report")
        except (OSError, ValueError) as error:
            refuse(str(error))
    typer.echo(path if out is not None or several else f"{places[0].rstrip('/')}/report/report.md")


def status(
    place: Annotated[str, typer.Argument(metavar="DIR", help="A sweep's folder, or s3://….")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until it has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a program.")] = False,
) -> None:
    """Say where a sweep stands, running or ended.

    The JSON has `name`, `exit_code` (null: it runs, or its driver died), `quiet_seconds` since anything was written,
    `trials` that search (at most), `search_ended` (why there are no more), `began`, `ended` (counts by status), `best`
    (`trial`, `eval_loss`), of two objectives `front` (a list of `trial`, `eval_loss`, `adapter_bytes`), `running` (a list
    of `trial`, `step`, `steps`, `eval_loss`, `config`, `curve` as pairs of step and loss), `eta_seconds` (at most, with
    what is to confirm the best), and what was spent: `tokens`, `slot_seconds`, `worker_seconds`, `cost`. What is not known
    is null.
    """
    from bitlora import timeouts
    from bitlora.files.opening import open_storage
    from sweeps.cli.status import draw, drawn, standing, told
    from sweeps.spec.errors import SpecError

    if watch and as_json:
        refuse("--json: is what it is once; call it again, or leave out --watch")
    console = Console(soft_wrap=not watch)
    try:
        with open_storage(place) as storage:
            found = standing(storage)
            if as_json:
                typer.echo(json.dumps(told(found)))
            elif not watch:
                draw(console, found)
            else:
                with (
                    Live(drawn(found), console=console, auto_refresh=False) as live,
                    contextlib.suppress(KeyboardInterrupt),
                ):
                    while found.code is None:
                        time.sleep(timeouts.WATCH_S)
                        found = standing(storage)
                        live.update(drawn(found), refresh=True)
    except SpecError as error:
        refuse(*error.lines)
    except (OSError, ValueError) as error:
        refuse(str(error))


def soup(
    place: Annotated[str, typer.Argument(metavar="DIR", help="The folder of a sweep that has ended, or s3://….")],
    top: Annotated[int, typer.Option("--top", metavar="N", min=2, help="So many of the finalists at most.")] = 3,
) -> None:
    """Average the confirmed configurations that are tied with the best and have its shape; score that on the test rows.

    It is left in DIR/soup, and the report says whether it is better than each of them.
    """
    from sweeps.cli.soup import make_soup
    from sweeps.cli.trial_folder import quiet
    from sweeps.spec.errors import InputError, SpecError

    quiet()
    try:
        make_soup(place, top, typer.echo)
    except (InputError, SpecError) as error:
        refuse(*error.lines)
    except (OSError, ValueError) as error:
        refuse(str(error).splitlines()[0])
