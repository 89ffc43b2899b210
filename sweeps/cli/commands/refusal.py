"""Bad input: a line for each thing that is wrong, and exit code 2."""

from __future__ import annotations

from typing import Final, NoReturn

import typer

BAD_INPUT: Final = 2


def refuse(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(BAD_INPUT)
