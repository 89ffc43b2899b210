"""Rows of a data set on the Hugging Face hub.

Which commit was read is looked for in what came back: where the hub does not answer, `datasets` takes the newest copy in
its cache, whatever revision it was asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from bitlora import timeouts
from bitlora.reading.raw import RawRow

COMMIT: Final = "[0-9a-f]{40}"


class _HubError(Exception):
    """The hub does not give it; the message is a whole line."""


def read_hub(name: str, errors: list[str], revision: str | None, commits: dict[str, str]) -> Iterator[RawRow]:
    """The rows of a data set's `train` split, or of its only one.

    Args:
        errors: gets what keeps it from being read, a line each.
        commits: gets its commit under its name, where that is known.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

    near = difflib.get_close_matches(name, ["pydoc", *(path.name for path in Path().glob("*.json*"))], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        errors.append(f"{name}: neither pydoc, nor a file that exists, nor a hub id{hint}")
        return
    try:
        splits = _load_hub(name, revision)
    except _HubError as error:
        errors.append(f"{error}{hint}")
        return
    commit = _commit(splits)
    if commit is not None and re.fullmatch(COMMIT, revision or "") and commit != revision:
        errors.append(
            f"{name}: data.revision {revision} cannot be had, and the newest copy in the cache is of {commit}"
        )
        return
    if commit is not None:
        commits[name] = commit
    if "train" not in splits and len(splits) != 1:
        errors.append(f"{name}: no split 'train' among its splits {', '.join(map(repr, splits))}")
        return
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    for number, row in enumerate(rows):
        yield RawRow(f"{name}:{number}", f"{name}: row {number}", row)


def _commit(splits: Mapping[str, Iterable[object]]) -> str | None:
    """The commit that a data set was read at, after which the folder of its cached files is named; None: not known."""
    files = [file for split in splits.values() for file in getattr(split, "cache_files", ())]
    folders = {Path(file["filename"]).parent.name for file in files}
    return next((name for name in folders if re.fullmatch(COMMIT, name)), None)


def _load_hub(name: str, revision: str | None) -> Mapping[str, Iterable[object]]:
    import datasets
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    gated = f"{name}: gated on the hub: ask for access on its page, then log in with `hf auth login`"
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    away = f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"
    if not offline:
        away = f"{name}: the hub cannot be reached; HF_HUB_OFFLINE=1 takes a cached copy, if there is one"
        if not hub_answers():
            raise _HubError(away)
    try:
        splits: Mapping[str, Iterable[object]] = datasets.load_dataset(name, revision=revision)
        return splits
    except ConnectionError:
        raise _HubError(away) from None
    except GatedRepoError:
        raise _HubError(gated) from None
    except datasets.exceptions.DatasetNotFoundError as error:
        if revision is not None and f"'{revision}'" in str(error):
            raise _HubError(f"{name}: data.revision: the hub has no branch, tag or commit {revision} of it") from None
        missing = f"{name}: does not exist on the hub, or is private (then `hf auth login` first), and is no file here"
        raise _HubError(gated if "gated" in str(error) else missing) from None
    except (TransportError, datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _HubError(f"{name}: cannot be loaded from the hub: {reason}") from None


def hub_answers() -> bool:
    """Whether the hub answers at all. Asked first, since its client retries for half a minute and more."""
    import ssl
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=timeouts.HUB_ANSWER_S).close()
    except HTTPError:
        return True
    except URLError as error:
        # the client brings certificates of its own, so a certificate that fails here says nothing
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except OSError:
        return False
    return True
