"""Steering a sweep from any machine that sees its folder: `bitlora trial`, `bitlora add`, `bitlora stop`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.commands.refusal import refuse
from sweeps.cli.commands.sweep import sweep

if TYPE_CHECKING:
    from sweeps.driver.requests import SteeringRequest

Place = Annotated[str, typer.Argument(metavar="DIR", help="The sweep's folder, or s3://….", show_default=False)]
Trial = Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's id, such as t0003.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the driver's answer, and print it.")]

trial = typer.Typer(
    name="trial", help="Steer a trial of a sweep that runs.", no_args_is_help=True, rich_markup_mode=None
)


@trial.command("stop")
def stop_trial(place: Place, trial_id: Trial, wait: Wait = True) -> None:
    """End a trial at its last evaluation; one that has none yet ends at its first."""
    from sweeps.driver.requests import SteeringRequest

    _steer(place, SteeringRequest(act="stop", trial=trial_id), wait)


@trial.command("extend")
def extend(
    place: Place,
    trial_id: Trial,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Its new budget, in all.")],
    wait: Wait = True,
) -> None:
    """Give a trial that runs more steps.

    Up to the budget that it had all stays as it was; from there on it has the learning rates that a trial of N steps has.
    """
    from sweeps.driver.requests import SteeringRequest

    _steer(place, SteeringRequest(act="extend", trial=trial_id, steps=steps), wait)


@trial.command("clone")
def clone(
    place: Place,
    trial_id: Trial,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What it has of its own: learning_rate=3e-4. Repeatable."),
    ] = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="Begin with the weights of the trial's last evaluation.")
    ] = False,
    wait: Wait = True,
) -> None:
    """Begin a trial with the configuration of another one, running or ended, and changes to it."""
    from sweeps.driver.requests import SteeringRequest

    changes = _changes(set_ or ())
    _steer(place, SteeringRequest(act="clone", trial=trial_id, changes=changes, warm_start=warm_start), wait)


def add(
    place: Place,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="How many more.")],
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Of a sweep that has ended: the Ray cluster that it goes on on."),
    ] = None,
    wait: Wait = True,
) -> None:
    """Let a sweep search more trials: one that runs is told, one that has ended goes on here, as by `--resume`."""
    from bitlora.files.opening import open_storage
    from sweeps.driver.requests import SteeringRequest
    from sweeps.driver.resume import EXIT_CODE, SPEC
    from sweeps.spec.errors import SpecError
    from sweeps.spec.spec import load_spec

    with tempfile.TemporaryDirectory(prefix="bitlora-add-") as folder:
        spec_file = Path(folder) / SPEC
        try:
            with open_storage(place) as storage:
                if ended := storage.exists(EXIT_CODE):
                    storage.pull(SPEC)
                    spec_file.write_bytes((storage.folder / SPEC).read_bytes())
            if ended:
                there = load_spec(spec_file).search.trials
                sweep(spec_file, place, [f"search.trials={there + trials}"], "always", address)
        except SpecError as error:
            refuse(*error.lines)
        except OSError as error:
            refuse(str(error))
    _steer(place, SteeringRequest(act="add", trials=trials), wait)


def stop(place: Place, wait: Wait = True) -> None:
    """End a sweep that runs, as Ctrl-C does where it was started; `bitlora sweep … --resume` goes on with it."""
    from sweeps.driver.requests import SteeringRequest

    _steer(place, SteeringRequest(act="end"), wait)


def _changes(texts: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the value in YAML."""
    from ruamel.yaml.error import YAMLError

    from sweeps.spec.draft import yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = yaml().load(value)
        except (YAMLError, ValueError):
            refuse(f"--set {text}: not YAML")
        if not equals or not key.strip() or "." in key:
            refuse(f"--set {text}: give KEY=VALUE with a key of a trial, such as learning_rate=3e-4")
    return found


def _steer(place: str, request: SteeringRequest, wait: bool) -> None:
    """Ask the driver of the sweep in `place`."""
    from bitlora import timeouts
    from bitlora.files.opening import open_storage
    from sweeps.driver.requests import answer_to, ask, withdraw
    from sweeps.driver.resume import EXIT_CODE, SPEC

    try:
        with open_storage(place) as storage:
            if not storage.exists(SPEC):
                refuse(f"{place}: holds no sweep (no {SPEC})")
            if storage.exists(EXIT_CODE):
                more = f"bitlora add {place} --trials N goes on with it"
                refuse(f"{place}: this sweep does not run any more, so nothing of it can be steered; {more}")
            ask(storage, request)
            if not wait:
                typer.echo(f"asked: {request.what}; the answer will be {place}/requests/done/{request.file}")
                return
            answer = answer_to(storage, request, timeouts.STEER_ANSWER_S)
            if answer is None:
                withdraw(storage, request)
                refuse(
                    f"{place}: no driver answered within {timeouts.STEER_ANSWER_S:.0f} s, so nothing was done; where it "
                    "has died, the sweep goes on by --resume"
                )
    except (OSError, ValueError) as error:
        refuse(str(error).splitlines()[0])
    if not answer.done:
        refuse(answer.answer)
    typer.echo(answer.answer)
