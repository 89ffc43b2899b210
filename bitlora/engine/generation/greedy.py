"""The likeliest continuation of each of many prompts, with the adapter of each of many slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.workers import attempt, first_reasons

if TYPE_CHECKING:
    from bitlora.engine.engine import Engine

KEPT_TOKENS: Final = 8192
"""Of all rows that are written at once, prompts and what may follow: some 130 KB each in a base of 8B parameters."""


def never(_: Sequence[int]) -> bool:
    """Nothing but a token ends a row."""
    return False


@dataclass(frozen=True, slots=True)
class OutputEnd:
    """What ends a row."""

    most: int
    """Tokens of an output."""
    tokens: frozenset[int] = frozenset()
    """Any of these, which is then no part of the output."""
    over: Callable[[Sequence[int]], bool] = never
    """Told the output so far: is it over?"""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one slot's adapter has written."""

    tokens: list[list[int]]
    """Of each prompt what follows it, without the token that ended it."""
    failed: str = ""
    """Why there is none, in one line."""


def generate(
    engine: Engine, rows: Sequence[tuple[int, Sequence[int]]], ending: OutputEnd, kept: int = KEPT_TOKENS
) -> list[list[int]]:
    """What follows each prompt.

    Args:
        rows: slot and prompt of each.
        kept: tokens of the rows that are written at once, at most, but at least one row.

    Returns:
        Of each row the tokens, in their order.
    """
    decoder = Decoder(engine)
    found: list[list[int]] = [[] for _ in rows]
    places: dict[int, int] = {}
    room, waiting = kept, 0
    while waiting < len(rows) or places:
        while waiting < len(rows):
            slot, prompt = rows[waiting]
            if places and len(prompt) + ending.most > room:
                break
            room -= len(prompt) + ending.most
            places[decoder.add(slot, prompt)] = waiting
            waiting += 1
        for number, token in decoder.step().items():
            place = places[number]
            ended = token in ending.tokens
            if not ended:
                found[place].append(token)
            if ended or len(found[place]) >= ending.most or ending.over(found[place]):
                decoder.drop(number)
                room += len(rows[places.pop(number)][1]) + ending.most
    return found


def generate_all(
    engine: Engine, slots: Sequence[int], prompts: Sequence[Sequence[int]], ending: OutputEnd
) -> dict[int, Outputs]:
    """What follows each prompt with the adapter of each slot, as it would be deployed; of many workers each has a part of
    the prompts. Where a pass raises, on any of them, all is done again slot by slot and row by row, as in `Engine.step`.
    """
    workers = engine.workers
    first, last = workers.share(len(prompts))
    own = prompts[first:last]
    written, error = attempt(generate, engine, [(slot, prompt) for prompt in own for slot in slots], ending)
    found = {slot: (written or [])[place :: len(slots)] for place, slot in enumerate(slots)}
    reasons: dict[int, str] = {}
    if workers.sum(failed=bool(error)):
        engine.base.keep_values(False)  # what nothing needs goes first
        for slot in slots:
            alone, error = attempt(generate, engine, [(slot, prompt) for prompt in own], ending, 1)
            found[slot] = alone or []
            if error:
                reasons[slot] = error
    parts = workers.gather((found, reasons))
    reasons = first_reasons([each for _, each in parts])
    return {slot: Outputs([row for each, _ in parts for row in each[slot]], reasons.get(slot, "")) for slot in slots}
