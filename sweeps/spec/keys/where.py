"""The key `search.where` of a spec: what an adapter may have at most to be trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from bitlora.config.explain import show
from bitlora.config.sections import Config

_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_BYTES: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_COUNTS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def _whole(value: Any, units: dict[str, int], example: str) -> Any:
    if isinstance(value, float) and value.is_integer():  # 1e6
        return int(value)
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value)
    unit = units.get(found[2].lower()) if found is not None else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise ValueError(f"found {show(value)}; give a number, or a size such as {example}")
    return round(float(found[1]) * unit)


def _bytes(value: Any) -> Any:
    return _whole(value, _BYTES, "1MB, 500KB or 2MiB")


def _count(value: Any) -> Any:
    return _whole(value, _COUNTS, "500K or 2M")


class BytesConfig(Config):
    """Bytes of an adapter as packed, as `plan` and records have them."""

    max: Annotated[
        int,
        BeforeValidator(_bytes),
        Field(ge=1, description="a whole number of at least 1, or a size such as `1MB`, `500KB` or `2MiB`"),
    ]
    """At most. 1MB is 1,000,000 bytes."""


class ParamsConfig(Config):
    """Trained parameters of an adapter, as `plan` and records have them."""

    max: Annotated[
        int,
        BeforeValidator(_count),
        Field(ge=1, description="a whole number of at least 1, or such as `500K` or `2M`"),
    ]
    """At most."""


class WhereConfig(Config):
    """What a trial's adapter may be. It is known before training: what is beyond it is not trained, and is no trial."""

    adapter_bytes: BytesConfig | None = None
    """null: any."""
    adapter_params: ParamsConfig | None = None
    """null: any."""
