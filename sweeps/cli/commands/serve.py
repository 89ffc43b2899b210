"""`bitlora serve`: several trials of one base to be asked over HTTP."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from sweeps.cli.commands.refusal import refuse


def serve(
    places: Annotated[
        list[str], typer.Argument(metavar="TRIAL_DIR…", help="DIR/trials/<trial_id>, or s3://….", show_default=False)
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Where it is reached; any but this machine needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0: one that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="BITLORA_TOKEN",
            help="What requests have to bring (Authorization: Bearer TOKEN). Others on this machine see a command's "
            "options, and not its BITLORA_TOKEN.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer as several trials over one base, each a model of an OpenAI-compatible endpoint; its page asks all the same.

    GET /v1/models, POST /v1/completions, POST /v1/chat/completions, and the page at /. Until SIGTERM or Ctrl-C.

    Exit codes: 0 ended; 1 the device was lost; 2 bad input.
    """
    from sweeps.cli.serving import check_token, listen, names
    from sweeps.cli.serving import serve as answer
    from sweeps.cli.trial_folder import open_trial, quiet
    from sweeps.spec.errors import InputError

    try:
        check_token(host, token)
        names(places)
        with listen(host, port) as at, contextlib.ExitStack() as stack:
            trials = [stack.enter_context(open_trial(place)) for place in places]
            quiet()
            lost = answer(trials, at, token, typer.echo)
    except InputError as error:
        refuse(*error.lines)
    if lost:
        typer.echo(lost, err=True)
        raise typer.Exit(1)
