"""Rows of a data set on the Hugging Face hub.

Which commit was read is looked for in what came back: where the hub does not answer, `datasets` takes the newest copy in
its cache, whatever revision it was asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bitlora import timeouts
from bitlora.reading.raw import RawRow
from bitlora.reading.tables import dense

COMMIT: Final = "[0-9a-f]{40}"


class _HubError(Exception):
    """The hub does not give it; the message is a whole line."""


class HubSource(NamedTuple):
    """What of the hub is read."""

    name: str
    config: str | None = None
    """One of the configurations that a data set may have; None: its only one, or its default."""
    split: str | None = None
    """None: `train`, or the only one; for evaluation never `train`."""
    revision: str | None = None
    """A branch, a tag or a commit."""
    evaluation: bool = False


def read_hub(source: HubSource, label: str, errors: list[str], commits: dict[str, str]) -> Iterator[RawRow]:
    """The rows of a split of a data set.

    Args:
        label: stands for it in the rows' ids.
        errors: gets what keeps it from being read, a line each.
        commits: gets its commit under its name, where that is known.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

    name, revision = source.name, source.revision
    near = difflib.get_close_matches(name, ["pydoc", *(path.name for path in Path().glob("*.json*"))], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        errors.append(f"{name}: neither pydoc, nor a file that exists, nor a hub id{hint}")
        return
    try:
        splits = _load_hub(source)
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
    chosen = _split(source, list(splits), errors)
    if chosen is not None:
        for number, row in enumerate(splits[chosen]):
            yield RawRow(f"{label}:{number}", f"{label}: row {number}", dense(row))


def hub_commit(source: HubSource) -> str | None:
    """The commit that would be read; None: that is not known, or it cannot be read."""
    if source.revision is not None and re.fullmatch(COMMIT, source.revision):
        return source.revision
    try:
        return _commit(_load_hub(source))
    except _HubError:
        return None


def _split(source: HubSource, splits: list[str], errors: list[str]) -> str | None:
    """The split that is read. None: it is said why there is none."""
    there = ", ".join(map(repr, splits))
    if source.split is not None:
        if source.split in splits:
            return source.split
        near = difflib.get_close_matches(source.split, splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        errors.append(f"{source.name}: no split {source.split!r} among its splits {there}{hint}")
    elif source.evaluation:
        others = [split for split in splits if split != "train"]
        if len(splits) == 1 and others:
            return splits[0]
        example = others[0] if others else "train"
        errors.append(
            f"{source.name}: which split of it to evaluate on? give data.eval_split, or {source.name}[{example}]; "
            f"its splits are {there}"
        )
    elif "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    else:
        errors.append(f"{source.name}: no split 'train' among its splits {there}")
    return None


def _commit(splits: Mapping[str, Iterable[object]]) -> str | None:
    """The commit that a data set was read at, after which the folder of its cached files is named; None: not known."""
    files = [file for split in splits.values() for file in getattr(split, "cache_files", ())]
    folders = {Path(file["filename"]).parent.name for file in files}
    return next((name for name in folders if re.fullmatch(COMMIT, name)), None)


def _load_hub(source: HubSource) -> Mapping[str, Iterable[object]]:
    import datasets
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    name, revision = source.name, source.revision
    gated = f"{name}: gated on the hub: ask for access on its page, then log in with `hf auth login`"
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    away = f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"
    if not offline:
        away = f"{name}: the hub cannot be reached; HF_HUB_OFFLINE=1 takes a cached copy, if there is one"
        if not hub_answers():
            raise _HubError(away)
    try:
        splits: Mapping[str, Iterable[object]] = datasets.load_dataset(name, source.config, revision=revision)
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
        raise _HubError(f"{name}: cannot be loaded from the hub: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """What is wrong, in a line: also what lies behind it, which names the column where the message does not."""
    lines: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(lines) < 4:
        said = " ".join((str(behind).strip() or type(behind).__name__).split())[:300]
        if said not in lines:
            lines.append(said)
        behind = behind.__cause__ or behind.__context__
    return ": ".join(lines)


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
