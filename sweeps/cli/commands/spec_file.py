"""What commands that are given a spec begin with: they read it, look at base and data, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.commands.refusal import refuse

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.driver.prepare import Prepared
    from sweeps.spec.spec import Spec

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.", show_default=False)]

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the spec, such as train.steps=64. Repeatable."),
]


def load(path: Path, overrides: Sequence[str]) -> Spec:
    from sweeps.spec.errors import SpecError
    from sweeps.spec.spec import load_spec

    try:
        return load_spec(path, overrides)
    except SpecError as error:
        refuse(*error.lines)


def as_it_goes_on(spec: Spec) -> Spec:
    """The spec with the confirmation that the sweep in its folder has, or gets by it (`confirm.added`); as it is where
    there is no such sweep."""
    from sweeps.driver.resume import SPEC, as_begun, cannot_resume

    folder = Path(spec.place)
    if not (folder / SPEC).is_file() or cannot_resume(spec, folder):
        return spec
    return spec.model_copy(update={"confirm": as_begun(spec, folder).confirm})


def look(
    path: Path,
    spec: Spec,
    errors: list[str],
    meanwhile: Callable[[], object] = lambda: None,
    begun: Path | None = None,
    here: bool = False,
) -> Prepared:
    """Look at base and data; with `errors` that are known already, all are said together.

    Args:
        begun: the folder of a sweep that goes on.
        here: in this process (`sweeps.driver.prepare.prepare`).
    """
    from sweeps.driver.kept import places
    from sweeps.driver.prepare import prepare
    from sweeps.spec.errors import InputError

    typer.echo("reading base and data …", err=True)
    try:
        elsewhere, lines = places(spec.data, path.parent, begun)
        for line in lines:
            typer.echo(f"data: {line}", err=True)
        prepared = prepare(spec, meanwhile, elsewhere, here)
    except InputError as error:
        refuse(*errors, *(f"{path}: {line}" if line.startswith("base.") else line for line in error.lines))
    if errors:
        refuse(*errors)
    return prepared


def notes(console: Console, spec: Spec, prepared: Prepared) -> None:
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
