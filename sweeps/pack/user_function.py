"""A user's own metric: `module:function` over generated text, found where the sweep is begun, and called in packs.

    def score(prompts: list[str], references: list[str], outputs: list[str]) -> list[float]

One number for each row, finite. The function travels with its module (by value), so that a pack on another machine needs
no copy of it; what the module imports has to be installed there.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitlora.config.explain import one_line

UserFunction = Callable[[list[str], list[str], list[str]], Any]
SIGNATURE = "(prompts, references, outputs), and give a number for each row"


class ScoringError(ValueError):
    """A user's function cannot be had, or what it gave cannot be used: one line that names it."""


def find_function(named: str) -> UserFunction:
    """The function `module:name`; modules of the working directory are found too.

    Raises:
        ScoringError: there is none.
    """
    module, _, name = named.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever a user's module raises
        raise ScoringError(f"{named}: cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    if not callable(found):
        raise ScoringError(f"{named}: {module} has no function {name}; it is to take {SIGNATURE}")
    return found  # type: ignore[no-any-return]


def packed(named: str) -> bytes:
    """A function as bytes, with its module.

    Raises:
        ScoringError: there is none, or it cannot travel.
    """
    from ray import cloudpickle

    function = find_function(named)
    module = sys.modules[named.partition(":")[0]]
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(function))
    except Exception as error:  # whatever its module holds
        raise ScoringError(f"{named}: cannot be sent to packs: {type(error).__name__}: {one_line(error)}") from None
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def unpacked(function: bytes) -> UserFunction:
    """What `packed` gave, as a function."""
    from ray import cloudpickle

    return cloudpickle.loads(function)  # type: ignore[no-any-return]


def scored(
    named: str, function: UserFunction, prompts: Sequence[str], references: Sequence[str], outputs: Sequence[str]
) -> list[float]:
    """What a user's function gives.

    Raises:
        ScoringError: it raises, or does not give a finite number for each row.
    """
    try:
        given = function([*prompts], [*references], [*outputs])
        found = [float(value) for value in given]
    except Exception as error:  # whatever a user's function raises
        raise ScoringError(f"{named}: raised {type(error).__name__}: {one_line(error)}") from None
    if len(found) != len(outputs):
        raise ScoringError(f"{named}: gave {len(found)} numbers for {len(outputs)} rows; give one for each")
    wrong = next((number for number, value in enumerate(found) if not math.isfinite(value)), None)
    if wrong is not None:
        raise ScoringError(f"{named}: gave {found[wrong]} for row {wrong + 1}; give finite numbers")
    return found
