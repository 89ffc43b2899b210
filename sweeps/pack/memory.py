"""How many slots a pack has, and how large its passes are: measured once for a kind of machine, decided by each pack."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from bitlora.engine.engine import Engine
from bitlora.engine.gauge import Budget, budget, trim
from bitlora.engine.memory import (
    LongestRow,
    MemoryFit,
    MemoryNeeds,
    NotMeasured,
    fit,
    has_room_for,
    measure,
    rows_at_once,
)

if TYPE_CHECKING:
    import torch

    from bitlora.config.trial import TrialConfig

GB: Final = 1e9


def settle_memory(
    engine: Engine,
    widest: TrialConfig,
    longest: LongestRow,
    given: bool,
    sharing: float,
    ask: Callable[[], dict[str, Any] | None] = lambda: None,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    cache: bool | Literal["auto"] = "auto",
) -> list[str]:
    """Give `engine` as many slots, and passes as large, as fit here. Every worker of a pack calls it at the same moment.

    Args:
        engine: empty; its size is how many slots it may have at most.
        widest: what takes the most memory of all trials that may come.
        given: a user has said how many slots; that stays.
        sharing: so many processes share the device, or the machine.
        ask: says what is known already; None: it is to be measured. Asked by the first worker alone, as is the next.
        keep: keeps what was measured, or why it could not be.
        cache: `base.cache` of the spec.

    Returns:
        Lines for the pack's log.
    """
    workers, device = engine.workers, engine.base.device
    known = workers.broadcast(ask() if workers.first else None)
    needs, how = MemoryNeeds.read(known), "as measured before"
    short = known if isinstance(known, dict) and "reason" in known else None
    if needs is None and short is None:
        began = time.monotonic()
        try:
            needs = measure(engine.base, workers, widest, longest, lambda: budget(device, sharing).bytes)
        except NotMeasured as error:
            short = {"lack": error.lack, "reason": str(error)}
        trim()
        how = f"measured in {time.monotonic() - began:.1f} s"
        if workers.first:
            keep(asdict(needs) if needs is not None else short or {})
    values = Values.of(cache, engine.base.values_bytes, engine.base.dtype)
    if needs is None:
        assert short is not None
        how = short["reason"]
        if not short["lack"]:
            engine.base.keep_values(values.at_any_price)
            return [f"memory: not measured, since a row of {longest.tokens} tokens of the widest trial raises: {how}"]
    rows = rows_at_once(widest)
    may = budget(device, sharing)
    if needs is None:  # nothing is known, but that it is short
        found = MemoryFit(engine.size if given else 1, longest.tokens, longest.tokens, False)
    else:
        found, _ = values.fit(needs, may.bytes, engine.size, rows, given)
    engine.size = min(workers.gather(found.slots))
    kept = values.at_any_price
    if needs is not None:
        found, kept = values.fit(needs, may.bytes, engine.size, rows, given=True)
    engine.pass_tokens, engine.eval_tokens = found.pass_tokens, found.eval_tokens
    engine.base.keep_values(kept)
    return describe_fit(needs, found, may, rows * longest.tokens, how, values.describe(kept))


@dataclass(frozen=True, slots=True)
class Values:
    """The values of a quantized base's codes, which may be kept in the compute dtype (`base.cache`)."""

    bytes: int
    dtype: str
    at_any_price: bool
    """A user wants them kept."""
    where_free: bool
    """They are kept where that takes nothing from anybody."""

    @classmethod
    def of(cls, cache: bool | Literal["auto"], bytes_: int, dtype: torch.dtype) -> Values:
        """Those of a base in which they would take so many bytes; 0: nothing is quantized."""
        name = str(dtype).removeprefix("torch.")
        return cls(bytes_, name, cache is True and bytes_ > 0, cache == "auto" and bytes_ > 0)

    def fit(self, needs: MemoryNeeds, budget: float, slots: int, rows: int, given: bool) -> tuple[MemoryFit, bool]:
        """As `bitlora.engine.memory.fit`, and whether they are kept."""
        if self.at_any_price:
            needs = replace(needs, base=needs.base + self.bytes)
        found = fit(needs, budget, slots, rows, given)
        free = self.where_free and has_room_for(self.bytes, needs, found, budget, rows)
        return found, self.at_any_price or free

    def describe(self, kept: bool) -> str:
        """In words; empty where there is nothing to say."""
        if kept:
            return f"the codes' values kept in {self.dtype}, {self.bytes / GB:.2f} GB"
        return f"no room for the codes' values in {self.dtype}, {self.bytes / GB:.2f} GB" if self.where_free else ""


def memory_key(what: str, widest: TrialConfig, longest: LongestRow, workers: int, checkpointing: bool) -> str:
    """What a measurement is of, readable as far as a person may look for it."""
    parts = [widest.model_dump(mode="json"), longest.tokens, longest.learned, checkpointing]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return f"{what}; {workers} workers; rank {widest.rank}, rows of {longest.tokens} tokens; {digest}"


def describe_fit(
    needs: MemoryNeeds | None, found: MemoryFit, may: Budget, step: int, how: str, values: str = ""
) -> list[str]:
    """In words what fits: a line, and another one where that is little.

    Args:
        step: tokens of a slot in a whole step.
        values: what becomes of the base's (`Values.describe`).
    """
    slots = f"{found.slots} slot" + "s" * (found.slots > 1)
    if needs is None:
        return [
            f"memory: not even one row of one slot fits into {may.bytes / GB:.2f} GB of {may.limit} ({how}); "
            f"{slots}, a row at a time"
        ]
    whole = f"whole steps of {found.slots * step} tokens"
    passes = whole if found.pass_tokens is None else f"passes of {found.pass_tokens} tokens, not {whole}"
    lines = [
        f"memory: {needs.base / GB:.2f} GB for the base, {needs.slot / GB:.3f} GB for a slot, "
        f"{1000 * needs.token / GB:.3f} GB for 1,000 tokens of a pass ({how}); in {may.bytes / GB:.2f} GB, limited by "
        f"{may.limit}, {slots} and {passes}" + (f"; {values}" if values else "")
    ]
    if not found.fits:
        least = needs.at(found.slots, found.slots * needs.row)
        lines.append(
            f"memory: {slots} with a row each need {least / GB:.2f} GB, and {may.bytes / GB:.2f} GB may be taken "
            f"({may.limit}); what raises is done again in smaller passes"
        )
    return lines
