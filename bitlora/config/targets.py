"""Which layers an adapter is on, and how wide it is in each, as text that says the same in a spec, a study and a record.

    all-linear                           every linear layer of the base's blocks, and its routed experts
    attention, mlp                       those inside the attention; the others
    experts                              the routed experts alone (PEFT's `target_parameters`)
    q_proj, v_proj                       those whose name is, or ends in, one of these (PEFT's `target_modules`, a list)
    .*layers\\.(0|5)\\..*proj              those whose whole name the regular expression matches (`target_modules`, a text)
    attention in layers 4-11             of these the blocks 4 to 11, both included, from 0 (`layers_to_transform`)

    q_proj: 8, .*mlp.*: 32               a pattern: rank or alpha of the layers whose name, or its end, a key matches as a
                                         regular expression; the first that does counts (`rank_pattern`, `alpha_pattern`)

Knows names alone: imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field

from bitlora.config.explain import show

ALL: Final = "all-linear"
EXPERTS_ONLY: Final = "experts"
KINDS: Final = (ALL, "attention", "mlp", EXPERTS_ONLY)
OF_BASE: Final = "base.targets"
"""Of a trial: the layers that the sweep's `base.targets` says."""
NO_PATTERN: Final = "none"
_NAMES: Final = re.compile(r"[\w.-]+(, [\w.-]+)*")
_LAYERS: Final = re.compile(r"(?P<which>.+) in layers (?P<first>\d+)-(?P<last>\d+)")
_ATTENTION: Final = re.compile(r"attn|attention", re.IGNORECASE)
_BLOCK: Final = re.compile(r".*?\.[^.]*\.(\d+)\.")
"""The number of the block that a layer is in: the first in its name, as PEFT counts."""


class TargetChoice(NamedTuple):
    """A text about targets, taken apart."""

    names: tuple[str, ...]
    """Kinds, and names or their ends; empty where there is a `regex`."""
    regex: str
    layers: tuple[int, int] | None
    """The first block and the last."""

    @classmethod
    def parse(cls, text: str) -> TargetChoice:
        """Of a text that `targets_text` gave."""
        layers = None
        if found := _LAYERS.fullmatch(text):
            text, layers = found["which"], (int(found["first"]), int(found["last"]))
        if _NAMES.fullmatch(text):
            return cls(tuple(text.split(", ")), "", layers)
        return cls((), text, layers)

    def matches(self, name: str) -> bool:
        """Is the layer of this name one of them?"""
        if self.layers is not None:
            block = _BLOCK.match(name)
            if block is None or not self.layers[0] <= int(block[1]) <= self.layers[1]:
                return False
        if self.regex:
            return re.fullmatch(self.regex, name) is not None
        return any(_is(target, name) for target in self.names)


def _is(target: str, name: str) -> bool:
    if target == ALL:
        return True
    if target == EXPERTS_ONLY:
        return EXPERTS_ONLY in name.split(".")[:-1]
    if target in KINDS:
        inside = any(_ATTENTION.search(part) for part in name.split(".")[:-1])
        return inside == (target == "attention")
    return f".{name}".endswith(f".{target}")


def targeted(text: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that a text about targets is about, in their order."""
    choice = TargetChoice.parse(text)
    return [name for name in names if choice.matches(name)]


def unmatched(text: str, names: Sequence[str]) -> str:
    """What of a text about targets matches none of `names`, in words with the nearest name; nothing where all does."""
    choice = TargetChoice.parse(text)
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    for target in choice.names or (choice.regex,):
        if not any(
            choice._replace(names=(target,) if choice.names else (), layers=None).matches(name) for name in names
        ):
            near = get_close_matches(target, [*ends, *(kind for kind in KINDS if kind != target)], 1)
            return f"{target!r} matches no linear layer of the base; " + (
                f"did you mean {near[0]}?" if near else f"there are {', '.join(ends)}"
            )
    if not targeted(text, names):
        return f"{text!r} matches no linear layer of the base: its blocks are 0 to {max(map(_block, names), default=0)}"
    return ""


def _block(name: str) -> int:
    found = _BLOCK.match(name)
    return int(found[1]) if found else 0


def targets_text(value: Any) -> Any:
    """A list of names, or a text, as the one text that it is kept as.

    Raises:
        ValueError: it is neither, or says nothing.
    """
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        wrong = next((name for name in value if not _NAMES.fullmatch(name) or ", " in name), None)
        if wrong is not None:
            raise ValueError(f"found {show(wrong)} in a list of names; a regular expression stands alone, as text")
        return ", ".join(dict.fromkeys(value))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"found {show(value)}; give a list of layers' names, all-linear, attention, mlp, experts or a regular "
            "expression, with ' in layers FIRST-LAST' behind it or not"
        )
    choice = TargetChoice.parse(value)
    if choice.layers is not None and choice.layers[0] > choice.layers[1]:
        raise ValueError(f"found layers {choice.layers[0]}-{choice.layers[1]}; give the first before the last")
    if choice.regex:
        _compiled(choice.regex)
    return value


def _compiled(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"found {show(text)}: not a regular expression: {error}") from None


def _pattern_text(value: Any, whole: bool) -> str:
    """A mapping of names to numbers, or the text that it is kept as."""
    if value == NO_PATTERN or value == {}:
        return NO_PATTERN
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, str):
        pairs = [(key, _number(number)) for key, _, number in (part.rpartition(": ") for part in value.split(", "))]
    number = "a whole number of at least 1" if whole else "a number above 0"
    if not pairs:
        raise ValueError(f"found {show(value)}; give a mapping of layers' names to numbers, such as {{q_proj: 8}}")
    for key, to in pairs:
        if not isinstance(key, str) or not key or ", " in key or ": " in key:
            raise ValueError(f"found {show(key)} as the name of layers; give text without ', ' and ': '")
        if isinstance(to, bool) or not isinstance(to, int if whole else int | float) or not 0 < to < float("inf"):
            raise ValueError(f"found {show(to)} for {key}; give {number}")
        _compiled(key)
    return ", ".join(f"{key}: {to}" for key, to in pairs)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


_PATTERN: Final = "a mapping of names to {}, or `none`"
Targets = Annotated[
    str,
    BeforeValidator(targets_text),
    Field(description="`all-linear`, `attention`, `mlp`, `experts`, a list of names, or a regular expression"),
]
RankPattern = Annotated[
    str,
    BeforeValidator(lambda value: _pattern_text(value, True)),
    Field(description=_PATTERN.format("whole numbers of at least 1")),
]
AlphaPattern = Annotated[
    str,
    BeforeValidator(lambda value: _pattern_text(value, False)),
    Field(description=_PATTERN.format("numbers above 0")),
]


def pattern(text: str) -> dict[str, int | float]:
    """The mapping that a pattern's text stands for, in its order: PEFT's own."""
    if text == NO_PATTERN:
        return {}
    parts = (part.rpartition(": ") for part in text.split(", "))
    return {key: float(number) if "." in number or "e" in number else int(number) for key, _, number in parts}


def of_pattern(mapping: dict[str, int | float], name: str, default: float) -> float:
    """The number of the layer `name`: that of the first key which matches it, or its end, else the default."""
    return next((number for key, number in mapping.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def idle_key(text: str, names: Sequence[str]) -> str | None:
    """A key of a pattern that no layer has: it would do nothing."""
    return next((key for key in pattern(text) if not any(re.match(rf"(.*\.)?({key})$", name) for name in names)), None)
