"""Rows that grow by a token, each with its slot's adapter, all of them in one pass: parts of a decoding loop.

Rows come and go between two steps: `add` a prompt, `step` for the next token of every row, `drop` a row that is over.
What a row has seen is kept (`bitlora.forward.kv_cache`): a step computes the prompts of new rows, and one token of each
other one. A row's tokens are those of the same row alone: nothing is padded, and attention knows rows apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitlora.engine.generation.sampling import NextToken, Sampling, choose
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.host import send
from bitlora.forward.kv_cache import KvCache, SeenTokens

if TYPE_CHECKING:
    from bitlora.engine.engine import Engine


@dataclass(slots=True, eq=False)
class DecodedRow:
    """A row that is being written."""

    slot: int
    lane: int
    tokens: list[int]
    """Those that the next pass computes: the prompt, then the newest."""
    sampling: Sampling | None = None
    """None: it grows by the likeliest token."""
    seen: int = 0
    """Tokens before them."""

    @property
    def length(self) -> int:
        return self.seen + len(self.tokens)


@dataclass(slots=True, eq=False)
class Decoder:
    """Rows of an engine's slots. A row's slot must hold its adapter until the row is dropped, and take no step."""

    engine: Engine
    _rows: dict[int, DecodedRow] = field(default_factory=dict)
    _cache: KvCache = field(default_factory=KvCache)
    _free: list[int] = field(default_factory=list)
    """Lanes of rows that were dropped."""
    _lanes: int = 0
    _count: int = 0

    @property
    def rows(self) -> list[int]:
        """The rows that are here, oldest first."""
        return list(self._rows)

    @property
    def kept(self) -> int:
        """Tokens that are kept, and those that the next step computes."""
        return sum(row.length for row in self._rows.values())

    def add(self, slot: int, prompt: Sequence[int], sampling: Sampling | None = None) -> int:
        """A row that begins with `prompt`; the next `step` gives its first token.

        Returns:
            Its number, which no other row gets.

        Raises:
            ValueError: the prompt is empty; or the slot is.
        """
        if not len(prompt):
            raise ValueError("an empty prompt: there is no token that a next one could follow")
        if slot not in self.engine.slots:
            raise ValueError(f"slot {slot} is empty")
        if not self._free:
            self._free.append(self._lanes)
            self._lanes += 1
        lane = min(self._free)  # low lanes: rows that stand next to each other are read where they stand
        self._free.remove(lane)
        self._cache.clear([lane])
        number, self._count = self._count, self._count + 1
        self._rows[number] = DecodedRow(slot, lane, [int(token) for token in prompt], sampling)
        return number

    def drop(self, number: int) -> None:
        """A row is over. Raises KeyError: there is none of that number."""
        self._free.append(self._rows.pop(number).lane)

    @torch.no_grad()
    def step(self) -> dict[int, int]:
        """The next token of every row, by its number. Of likeliest ones that are as likely as each other it is one."""
        fresh = [number for number, row in self._rows.items() if not row.seen]
        begun = [number for number, row in self._rows.items() if row.seen]
        found: dict[int, int] = {}
        for numbers in [*self._passes(fresh), *([begun] if begun else [])]:
            found |= self._pass(numbers)
        for number, token in found.items():
            row = self._rows[number]
            row.seen, row.tokens = row.length, [token]
        return {number: found[number] for number in self._rows}

    def _passes(self, numbers: Sequence[int]) -> list[list[int]]:
        """Rows whose prompts are computed together: of so many tokens as an evaluation takes, but at least one row."""
        passes: list[list[int]] = []
        room = 0
        for number in numbers:
            if (tokens := self._rows[number].length) > room:
                passes.append([])
                room = self.engine.eval_tokens
            passes[-1].append(number)
            room -= tokens
        return passes

    def _pass(self, numbers: Sequence[int]) -> dict[int, int]:
        """One forward pass over these rows, all of them new or none; the next token of each."""
        engine, base = self.engine, self.engine.base
        numbers = sorted(numbers, key=lambda number: engine.slots[self._rows[number].slot].place)
        rows = [self._rows[number] for number in numbers]
        lengths = [[len(row.tokens) for row in own] for _, own in groupby(rows, key=lambda row: row.slot)]
        ends = np.cumsum([sum(own) for own in lengths])
        slots = [slot for slot, _ in groupby(row.slot for row in rows)]
        spans = [Span(slot, int(end) - sum(own), int(end)) for slot, end, own in zip(slots, ends, lengths, strict=True)]
        plan = ForwardPlan.make(spans, lengths, [0] * len(spans), base.device)
        counts = [len(row.tokens) for row in rows]
        tokens, lanes, seen, last = send(
            [
                np.concatenate([np.array(row.tokens, dtype=np.int64) for row in rows]),
                np.repeat([row.lane for row in rows], counts),
                np.repeat([row.seen for row in rows], counts),
                np.cumsum(counts) - 1,
            ],
            base.device,
        )
        if plan.order is not None:
            lanes, seen = lanes[plan.order], seen[plan.order]
        longest = max(row.length for row in rows)
        self._cache.reserve(self._lanes, longest + len(rows[0].tokens) // 2 + 16)  # not grown at each token
        looks_back = rows[0].seen > 0
        chosen = [row.lane for row in rows]
        together = plan.order is None and chosen == [*range(chosen[0], chosen[0] + len(chosen))]
        past = SeenTokens(
            self._cache, lanes, slice(chosen[0], chosen[-1] + 1) if together else lanes, longest, looks_back
        )
        plan = replace(plan, positions=plan.positions + seen, past=past)
        engine.bank.lay_out(plan)
        hidden = base.hidden(plan, tokens, last)
        found: list[int] = []
        for part in hidden.split(base.head.rows):
            own = rows[len(found) : len(found) + len(part)]
            found += choose(base.head.logits(part), [NextToken(row.sampling, row.length) for row in own])
        return dict(zip(numbers, found, strict=True))
