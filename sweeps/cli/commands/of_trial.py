"""What is done with a trial that has ended: `bitlora export`, `bitlora generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sweeps.cli.commands.refusal import refuse

TrialDir = Annotated[
    str,
    typer.Argument(metavar="TRIAL_DIR", help="DIR/trials/<trial_id>, or s3://….", show_default=False),
]


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
        refuse(*error.lines)
    except ExportError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


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
        refuse(*error.lines)
