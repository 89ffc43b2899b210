"""Examples from a data set on the Hugging Face hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitlora import timeouts
from bitlora.data.examples import DataError, Example
from bitlora.data.shapes import _listed, examples_of


def _read_hub(name: str, errors: list[str]) -> list[Example]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

    near = difflib.get_close_matches(name, ["pydoc", *(path.name for path in Path().glob("*.json*"))], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        errors.append(f"{name}: neither pydoc, nor a file that exists, nor a hub id{hint}")
        return []
    try:
        splits = _load_hub(name)
    except DataError as error:
        errors.extend(f"{line}{hint}" for line in error.errors)
        return []
    if "train" not in splits and len(splits) != 1:
        errors.append(f"{name}: no split 'train' among its splits {_listed(splits)}")
        return []
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    found: list[Example] = []
    for number, row in enumerate(rows):
        found += examples_of(row, f"{name}:{number}", f"{name}: row {number}", errors)
    return found


def _load_hub(name: str) -> Mapping[str, Iterable[object]]:
    import datasets
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    gated = f"{name}: gated on the hub: ask for access on its page, then log in with `hf auth login`"
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    away = f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"
    if not offline:
        away = f"{name}: the hub cannot be reached; HF_HUB_OFFLINE=1 takes a cached copy, if there is one"
        if not hub_answers():
            raise DataError([away])
    try:
        splits: Mapping[str, Iterable[object]] = datasets.load_dataset(name)
        return splits
    except ConnectionError:
        raise DataError([away]) from None
    except GatedRepoError:
        raise DataError([gated]) from None
    except datasets.exceptions.DatasetNotFoundError as error:
        missing = f"{name}: does not exist on the hub, or is private (then `hf auth login` first), and is no file here"
        raise DataError([gated if "gated" in str(error) else missing]) from None
    except (TransportError, datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError([f"{name}: cannot be loaded from the hub: {reason}"]) from None


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
