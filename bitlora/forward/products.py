"""Products of each slot's tokens with each slot's matrix, all slots in one operation.

The tokens of a pass are a grid of equally many tokens of each slot, which is a batch of matrices as it stands, and tails
(`bitlora.forward.forward_plan`), which are padded with zeros into a second batch. Both are batched products: a slot's
numbers never meet another's, be they finite or not, and how many operations there are does not depend on the slots.

Axes: T tokens, S slots that have room, K and M any widths.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.host import send


@dataclass(frozen=True, slots=True, eq=False)
class _Tails:
    """The tails of a pass, padded: (tails, longest, K)."""

    tokens: slice
    count: int
    longest: int
    place: Tensor  # (tokens of the tails,) int64: in the padded form
    chosen: slice | Tensor

    def padded(self, x: Tensor) -> Tensor:
        """(T, K) -> (tails, longest, K), with zeros behind each tail."""
        out = x.new_zeros(self.count * self.longest, x.shape[1])
        return out.index_copy_(0, self.place, x[self.tokens]).view(self.count, self.longest, -1)

    def flat(self, x: Tensor) -> Tensor:
        """(tails, longest, K) -> (tokens of the tails, K)."""
        return x.flatten(0, 1).index_select(0, self.place)


class SlotProducts:
    """The products of one pass.

    Args:
        plan: its spans have all T tokens.
        places: for each span its slot's matrix among the S.
        absent: spans whose matrices are zero. Before the first that is not, and behind the last, nothing is computed; slots
            with equal layers stand next to each other, so that between them there are few.
    """

    def __init__(
        self, plan: ForwardPlan, places: Sequence[int], device: torch.device, absent: Collection[int] = ()
    ) -> None:
        first, last = _without([span in absent for span in plan.grid])
        self._grid = (first, last - first, plan.grid_tokens)
        self._chosen = _choice([places[span] for span in plan.grid[first:last]], device)
        self._tails: _Tails | None = None
        start, stop = _without([tail.span in absent for tail in plan.tails])
        self._whole = last - first == len(plan.grid) and stop - start == len(plan.tails)
        if tails := plan.tails[start:stop]:
            longest = max(tail.stop - tail.start for tail in tails)
            place = [
                number * longest + token for number, tail in enumerate(tails) for token in range(tail.stop - tail.start)
            ]
            self._tails = _Tails(
                slice(tails[0].start, tails[-1].stop),
                len(tails),
                longest,
                send([np.array(place)], device)[0],
                _choice([places[tail.span] for tail in tails], device),
            )

    def times(self, x: Tensor, matrices: Tensor, out: Tensor | None = None) -> Tensor:
        """Each token's row by its slot's matrix: (T, K), (S, K, M) -> (T, M), of one dtype; `out` where it is given."""
        tails, grid = self._tails, self._on_grid(x)
        if out is None:
            if tails is None and self._whole:
                return torch.bmm(grid, matrices[self._chosen]).flatten(0, 1)
            out = x.new_empty(len(x), matrices.shape[2])
        if not self._whole:
            out.zero_()
        torch.bmm(grid, matrices[self._chosen], out=self._on_grid(out))
        if tails is not None:
            out[tails.tokens] = tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))
        return out

    def add_times(self, into: Tensor, x: Tensor, matrices: Tensor) -> None:
        """into += `times(x, matrices)`, where `into` may have another dtype."""
        if into.dtype != x.dtype:
            into += self.times(x, matrices)
            return
        self._on_grid(into).baddbmm_(self._on_grid(x), matrices[self._chosen])
        if (tails := self._tails) is not None:
            into[tails.tokens] += tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add to each slot's matrix the product of its tokens: (S, K, M) += (T, K)ᵀ (T, M), where `into` may have another
        dtype than the other two."""
        _add_outer(into, self._chosen, self._on_grid(left), self._on_grid(right))
        if (tails := self._tails) is not None:
            _add_outer(into, tails.chosen, tails.padded(left), tails.padded(right))

    def _on_grid(self, x: Tensor) -> Tensor:
        first, slots, tokens = self._grid
        return x[first * tokens : (first + slots) * tokens].view(slots, tokens, x.shape[1])


def _without(absent: Sequence[bool]) -> tuple[int, int]:
    """From the first that is there to behind the last."""
    there = [number for number, missing in enumerate(absent) if not missing]
    return (there[0], there[-1] + 1) if there else (0, 0)


def _choice(places: Sequence[int], device: torch.device) -> slice | Tensor:
    """These places, as a slice (which copies nothing) where they stand next to each other."""
    first = places[0] if places else 0
    if [*places] == [*range(first, first + len(places))]:
        return slice(first, first + len(places))
    return send([np.array(places)], device)[0]


def _add_outer(into: Tensor, chosen: slice | Tensor, left: Tensor, right: Tensor) -> None:
    if isinstance(chosen, Tensor):
        into.index_add_(0, chosen, torch.bmm(left.mT, right).to(into.dtype))
    elif into.dtype == left.dtype:
        into[chosen].baddbmm_(left.mT, right)
    else:
        into[chosen] += torch.bmm(left.mT, right)
