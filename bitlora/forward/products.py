"""Products of each slot's tokens with each slot's matrix, all slots in one operation.

The tokens of a pass are a grid of equally many tokens of each slot, which is a batch of matrices as it stands, and tails
(`bitlora.forward.forward_plan`), which are padded with zeros into a second batch. Both are batched products: a slot's
numbers never meet another's, be they finite or not, and how many operations there are does not depend on the slots.

Axes: T tokens, S slots that have room, K and M any widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.host import send


@dataclass(frozen=True, slots=True, eq=False)
class _Tails:
    """The tails of a pass, padded: (tails, longest, K)."""

    start: int
    count: int
    longest: int
    place: Tensor  # (tokens behind the grid,) int64: in the padded form
    chosen: slice | Tensor

    def padded(self, x: Tensor) -> Tensor:
        """(T, K) -> (tails, longest, K), with zeros behind each tail."""
        out = x.new_zeros(self.count * self.longest, x.shape[1])
        return out.index_copy_(0, self.place, x[self.start :]).view(self.count, self.longest, -1)

    def flat(self, x: Tensor) -> Tensor:
        """(tails, longest, K) -> (tokens behind the grid, K)."""
        return x.flatten(0, 1).index_select(0, self.place)


class SlotProducts:
    """The products of one pass.

    Args:
        plan: its spans have all T tokens.
        places: for each span its slot's matrix among the S.
    """

    def __init__(self, plan: ForwardPlan, places: Sequence[int], device: torch.device) -> None:
        self._grid = (len(plan.grid), plan.grid_tokens)
        self._chosen = _choice([places[span] for span in plan.grid], device)
        self._tails: _Tails | None = None
        if plan.tails:
            longest = max(tail.stop - tail.start for tail in plan.tails)
            place = [
                number * longest + token
                for number, tail in enumerate(plan.tails)
                for token in range(tail.stop - tail.start)
            ]
            self._tails = _Tails(
                plan.tails[0].start,
                len(plan.tails),
                longest,
                send([np.array(place)], device)[0],
                _choice([places[tail.span] for tail in plan.tails], device),
            )

    def times(self, x: Tensor, matrices: Tensor, out: Tensor | None = None) -> Tensor:
        """Each token's row by its slot's matrix: (T, K), (S, K, M) -> (T, M), of one dtype; `out` where it is given."""
        tails, grid = self._tails, self._on_grid(x)
        if out is None:
            if tails is None:
                return torch.bmm(grid, matrices[self._chosen]).flatten(0, 1)
            out = x.new_empty(len(x), matrices.shape[2])
        torch.bmm(grid, matrices[self._chosen], out=self._on_grid(out))
        if tails is not None:
            out[tails.start :] = tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))
        return out

    def add_times(self, into: Tensor, x: Tensor, matrices: Tensor) -> None:
        """into += `times(x, matrices)`, where `into` may have another dtype."""
        if into.dtype != x.dtype:
            into += self.times(x, matrices)
            return
        _add_product(self._on_grid(into), self._on_grid(x), matrices[self._chosen])
        if (tails := self._tails) is not None:
            into[tails.start :] += tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add to each slot's matrix the product of its tokens: (S, K, M) += (T, K)ᵀ (T, M), where `into` may have another
        dtype than the other two."""
        _add_outer(into, self._chosen, self._on_grid(left), self._on_grid(right))
        if (tails := self._tails) is not None:
            _add_outer(into, tails.chosen, tails.padded(left), tails.padded(right))

    def _on_grid(self, x: Tensor) -> Tensor:
        slots, tokens = self._grid
        return x[: slots * tokens].view(slots, tokens, x.shape[1])


def _choice(places: Sequence[int], device: torch.device) -> slice | Tensor:
    """These places, as a slice (which copies nothing) where they stand next to each other."""
    if [*places] == [*range(places[0], places[0] + len(places))]:
        return slice(places[0], places[0] + len(places))
    return send([np.array(places)], device)[0]


def _add_outer(into: Tensor, chosen: slice | Tensor, left: Tensor, right: Tensor) -> None:
    if isinstance(chosen, Tensor):
        into.index_add_(0, chosen, torch.bmm(left.mT, right).to(into.dtype))
    elif into.dtype == left.dtype:
        _add_product(into[chosen], left.mT, right)
    else:
        into[chosen] += torch.bmm(left.mT, right)


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += left @ right, (S, K, M) += (S, K, J) (S, J, M), of one dtype.

    Into matrices that do not stand close behind each other PyTorch adds on a CPU one by one, each with all threads, which
    are longer in agreeing on such a small product than in computing it; a product of its own is computed in one batch.
    """
    if len(into) > 1 and into.device.type == "cpu" and not into.is_contiguous():
        into += torch.bmm(left, right)
    else:
        into.baddbmm_(left, right)
