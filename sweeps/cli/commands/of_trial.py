"""What is done with a trial that has ended: `bitlora export`, `bitlora push`, `bitlora generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from sweeps.cli.commands.refusal import refuse

if TYPE_CHECKING:
    from sweeps.cli.exports.forms import Form

WHOLE_MODEL: Final[dict[str, Form]] = {"f16": "gguf-f16", "q8_0": "gguf-q8_0", "f32": "gguf-f32"}
"""--outtype -> how that export is called inside."""
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
            metavar="packed|peft|gguf|merged",
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
    merged: Annotated[
        bool, typer.Option("--merged", help="With --to gguf: a whole model, the base with the adapter merged in.")
    ] = False,
    outtype: Annotated[
        Literal["f16", "q8_0", "f32"] | None,
        typer.Option(
            "--outtype", metavar="f16|q8_0|f32", help="With --merged: what its matrices are stored in. Default: f16."
        ),
    ] = None,
    over: Annotated[
        Literal["nf4", "bf16"] | None,
        typer.Option(
            "--served-over",
            metavar="nf4|bf16",
            help="The base it will be served over: its eval loss is measured there, beside the one it was trained over. "
            "Measured unasked: of --to gguf and peft after NF4 or 8 bits over bf16.",
        ),
    ] = None,
) -> None:
    """Hand an adapter on: packed, as stock PEFT or llama.cpp reads it, or merged into its base.

    Exit codes: 0 done; 1 it does not do what the trial did, or cannot be written; 2 bad input.
    """
    if merged and to != "gguf":
        refuse(f"--merged: goes with --to gguf, and --to {to} is given; a merged model for transformers is --to merged")
    if outtype is not None and not merged:
        refuse("--outtype: goes with --to gguf --merged; an adapter is in float32 always")
    with _handed_on():
        from sweeps.cli.exports.checked import export as write
        from sweeps.cli.trial_folder import open_trial, quiet

        with open_trial(place) as trial:
            quiet()
            write(trial, WHOLE_MODEL[outtype or "f16"] if merged else to, out, check, typer.echo, over)


def push(
    place: TrialDir,
    to: Annotated[
        str, typer.Option("--to", metavar="OWNER/NAME", help="Its repository; new, or empty.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="For you alone, where it is new.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be put there, and the card; asks nothing of the hub.")
    ] = False,
) -> None:
    """Put a trial's adapter on the Hugging Face hub, with its card and its sweep's report; checked first, as export does.

    Exit codes: 0 done; 1 it does not do what the trial did, or the hub broke off; 2 bad input.
    """
    with _handed_on():
        from sweeps.cli.exports.push import push as send
        from sweeps.cli.trial_folder import open_trial, quiet

        with open_trial(place) as trial:
            quiet()
            send(trial, to, private, dry_run, typer.echo)


@contextlib.contextmanager
def _handed_on() -> Iterator[None]:
    from sweeps.cli.exports.holding import ExportError
    from sweeps.spec.errors import InputError

    try:
        yield
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
