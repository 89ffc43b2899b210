"""`bitlora push`: a trial's adapter on the hub, with its card and its sweep's report. What would go there is made and
checked first; with `--dry-run` that is all.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bitlora.reading.hub import hub_answers
from sweeps.cli.exports.checked import CARD, export
from sweeps.cli.exports.forms import Form
from sweeps.cli.exports.holding import ExportError
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

REPORT: Final = "report"
MADE_BY_HUB: Final = frozenset((".gitattributes",))
"""What a new repository has."""


def push(trial: TrialFolder, repo: str, private: bool, dry_run: bool, say: Callable[[str], object]) -> None:
    """Put a trial's adapter on the hub, in a repository of its own: as stock PEFT reads it, or packed where PEFT could not
    run it.

    Args:
        repo: `owner/name`; new there, or empty.
        dry_run: say what would be put there, and ask nothing of the hub.
        say: told what was done, a line at a time.

    Raises:
        InputError: it cannot be put there: the name, the token, the hub that does not answer; nothing was sent.
        ExportError: it does not do what its trial did; or the hub broke off.
    """
    _check_name(repo)
    if not dry_run:
        _may_write(repo)
    form: Form = "packed" if trial.config.activations == "int8" else "peft"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / repo.partition("/")[2]
        export(trial, form, folder, True, say, hub=repo)
        _add_report(trial, folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        for file in files:
            say(f"{file.stat().st_size:>13,}  {file.relative_to(folder).as_posix()}")
        total = f"{len(files)} files, {sum(file.stat().st_size for file in files):,} bytes"
        if dry_run:
            say(f"\n{(folder / CARD).read_text(encoding='utf-8')}")
            say(f"dry run: {total} would go to {repo}, {'private' if private else 'for all to see'}; nothing was sent")
            return
        say(f"{total}: {_send(folder, repo, private, trial)}")


def _add_report(trial: TrialFolder, folder: Path) -> None:
    from reports.report import write_report

    write_report([trial.sweep], folder / REPORT)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise InputError(["--to: give owner/name, as the hub spells them: letters, digits, '-', '_' and '.'"])


def _may_write(repo: str) -> None:
    """Hold the name against the hub, before anything is made.

    Raises:
        InputError: it cannot be written there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if get_token() is None:
        raise InputError(["no token for the hub: log in with `hf auth login`, or set HF_TOKEN"])
    if not hub_answers():
        raise InputError(["the hub cannot be reached; nothing was sent (--dry-run says what would be)"])
    owner = repo.partition("/")[0]
    with _told(repo):
        user = HfApi().whoami(token=True)
        owners = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
        if owner not in owners:
            raise InputError([f"--to: {repo}: the token is of {user['name']}, who may write to {', '.join(owners)}"])
        try:
            there = {*HfApi().list_repo_files(repo, token=True)} - MADE_BY_HUB
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return
        if there:
            raise InputError([f"--to: {repo} is on the hub already, with {len(there)} files; give a new name"])


def _send(folder: Path, repo: str, private: bool, trial: TrialFolder) -> str:
    """Make the repository, and put the folder there in one commit; gives its address."""
    from huggingface_hub import HfApi

    message = f"Trial {trial.record.trial_id} of the sweep {trial.spec.name}"
    try:
        with _told(repo):
            made: Any = HfApi().create_repo(repo, private=private, exist_ok=True, token=True)
            HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message=message, token=True)
    except InputError as error:
        raise ExportError(f"{error.lines[0]}; the repository may be there, and empty: push again") from None
    return str(made)


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the hub answers, in one line.

    Raises:
        InputError
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    try:
        yield
    except GatedRepoError:
        raise InputError([f"{repo} is gated on the hub: ask for access on its page"]) from None
    except OfflineModeIsEnabled:
        raise InputError(["HF_HUB_OFFLINE forbids asking the hub"]) from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        why = {
            401: "the hub does not take the token: log in with `hf auth login`, or set HF_TOKEN",
            403: f"the token may not write to {repo}: make one that may, on the hub's page of settings",
        }.get(code, f"the hub answered {code}: {(error.server_message or str(error)).splitlines()[0]}")
        raise InputError([f"--to: {repo}: {why}"]) from None
    except (TransportError, ConnectionError, TimeoutError) as error:
        raise InputError([f"the hub broke off: {str(error).splitlines()[0]}"]) from None
