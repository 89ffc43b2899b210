"""The command line. Nothing heavy is imported here: `--help` and the answer to a wrong spec come at once."""

from __future__ import annotations

import typer

from sweeps.cli.begin import SweepCommand
from sweeps.cli.commands.beforehand import data, doctor, plan
from sweeps.cli.commands.of_folder import report, soup, status
from sweeps.cli.commands.of_trial import export, generate, push
from sweeps.cli.commands.serve import serve
from sweeps.cli.commands.steering import add, stop, trial
from sweeps.cli.commands.sweep import sweep

app = typer.Typer(
    name="bitlora",
    help="Sweeps of LoRA fine-tunes: many trials at once over one frozen base, at any precision down to one bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command(cls=SweepCommand)(sweep)
for command in (plan, data, report, doctor, status, add, stop, export, push, soup, generate, serve):
    app.command()(command)
app.add_typer(trial)


def main() -> None:
    """The console script."""
    app()
