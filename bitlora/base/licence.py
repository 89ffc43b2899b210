"""Under which licence a base is, as far as that is known on this machine: nothing is asked of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from bitlora.base.locate import PACKAGE, BaseError, packaged_weights

CARD: Final = "README.md"
HEAD: Final = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
"""What a card says to the hub."""


def base_licence(model: str, revision: str | None) -> str | None:
    """What the base's card says of its licence: a folder's own, that of a hub's base in the cache; of a package what its
    GGUF file says. None: nothing is said, or nothing is here that would say it.

    Args:
        revision: the hub's commit.
    """
    if model.startswith(PACKAGE):
        try:
            return _of_gguf(packaged_weights(model.removeprefix(PACKAGE)))
        except BaseError:
            return None
    folder = Path(model).expanduser()
    card = folder / CARD if folder.is_dir() else _cached(model, revision)
    return _of_card(card) if card is not None and card.is_file() else None


def _cached(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, CARD, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _of_card(card: Path) -> str | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        head = HEAD.match(card.read_text(encoding="utf-8"))
        data: Any = YAML(typ="safe").load(head[1]) if head else None
    except (OSError, ValueError, YAMLError):
        return None
    if not isinstance(data, dict):
        return None
    # A licence that is none of the hub's list is "other", and its name stands beside it.
    named = data.get("license_name") if data.get("license") == "other" else None
    return _said(named or data.get("license"))


def _said(found: object) -> str | None:
    return found if isinstance(found, str) and found.strip() else None


def _of_gguf(weights: Path) -> str | None:
    import gguf

    try:
        field = gguf.GGUFReader(weights).get_field("general.license")
    except (OSError, ValueError):
        return None
    return _said(field.contents()) if field is not None else None
