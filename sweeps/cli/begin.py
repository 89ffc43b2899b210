"""Whether a sweep begins or goes on, what of its folder keeps it from that, and what is left to do where it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from typer.core import TyperCommand

from bitlora.files.lease import LEASE
from bitlora.files.record import DATA, KEPT
from bitlora.files.storage import TOKEN, Storage

if TYPE_CHECKING:
    from sweeps.spec.spec import Spec

Resume = Literal["always", "auto"]
"""`--resume` alone, and `--resume auto`: begin, or go on where there is a sweep already."""
OPTION: Final = "--resume"
SPEC: Final = "sweep.yaml"
BEFORE_IT: Final = frozenset(("logs", TOKEN, LEASE))
"""What a driver that is killed before it has written the spec may leave in the folder."""


class SweepCommand(TyperCommand):
    """`bitlora sweep`, whose `--resume` may stand alone or before `auto`: an option with a value that may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spelled(args))


def spelled(args: Sequence[str]) -> list[str]:
    """Arguments in which each `--resume` has its value."""
    found: list[str] = []
    for place, word in enumerate(args):
        if word == "--":
            return [*found, *args[place:]]
        if word == "auto" and found[-1:] == [f"{OPTION}=always"]:
            found[-1] = f"{OPTION}=auto"
        else:
            found.append(f"{OPTION}=always" if word == OPTION else word)
    return found


def goes_on(storage: Storage, resume: Resume | None) -> bool:
    """Does the sweep go on? With `auto`, where its folder holds one. Raises StorageError."""
    storage.check()  # first: it is soon done also where nobody answers
    return storage.exists(SPEC) if resume == "auto" else resume is not None


def errors_to_begin(storage: Storage) -> list[str]:
    """What keeps a new sweep from being written there; looks, and leaves nothing behind. Raises StorageError."""
    there = set(storage.names())
    if there - {DATA} <= BEFORE_IT and (DATA not in there or storage.exists(f"{DATA}/{KEPT}")):
        return []
    what = "already holds a sweep" if SPEC in there else "is not empty"
    hint = f"go on with it with {OPTION}, or " if SPEC in there else ""
    return [f"{storage.out}: {what}; {hint}give another folder with --out"]


def errors_to_go_on(spec: Spec, storage: Storage) -> list[str]:
    """Fetch what a sweep that goes on is decided by, and say what keeps it from that. Raises StorageError."""
    from sweeps.driver.resume import DECIDING, EXIT_CODE, cannot_resume

    if not storage.names():
        return [f"{storage.out}: there is no sweep to go on with; run it without {OPTION}, or with {OPTION} auto"]
    storage.pull("", only=(*DECIDING, EXIT_CODE))
    storage.pull(DATA)
    return cannot_resume(spec, storage.folder)


def ended(spec: Spec, storage: Storage, say: Callable[[str], object]) -> int | None:
    """Where the sweep has ended with all its trials: say so, make the report if there is none, give its exit code.

    None: there is something to go on with. Raises StorageError.
    """
    from sweeps.driver.resume import finished

    if (code := finished(spec, storage.folder)) is None:
        return None
    say(f"{storage.out}: this sweep has ended with all its trials (exit code {code}); nothing is left to do")
    if not storage.exists("report/report.md"):
        from reports.report import write_report

        try:
            say(f"report: {write_report([storage.folder])}")
            storage.push("report")
        except Exception as error:  # whatever is wrong with it: the trials' records stand
            say(f"no report: {error}; try again: bitlora report {storage.out}")
    return code
