"""Keys and values of rows that a model has seen, so that their next token looks back at them and they are not computed
again.

Each row has a lane, in which its tokens stand by their positions. A lane is never shared, and what is behind a row's own
tokens in it is nobody's: attention masks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


class KvCache:
    """Of every attention layer that was called, its keys and values by lane."""

    def __init__(self) -> None:
        self._layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._lanes = 0
        self._length = 0

    def reserve(self, lanes: int, length: int) -> None:
        """Room for so many lanes of so many tokens, at least; what stands in them stays."""
        self._lanes, self._length = max(self._lanes, lanes), max(self._length, length)

    def clear(self, lanes: Sequence[int]) -> None:
        """Nothing of the rows before stays in these lanes: of a row that was not finite even what is masked counts."""
        for kept in self._layers.values():
            for each in kept:
                each[[lane for lane in lanes if lane < len(each)]] = 0

    def write(
        self,
        layer: nn.Module,
        lanes: Tensor,  # (T,) int64
        positions: Tensor,  # (T,) int64
        key: Tensor,  # (1, kv_heads, T, width)
        value: Tensor,  # (1, kv_heads, T, value_width)
    ) -> None:
        """Keep these tokens."""
        kept = self._layers.get(layer)
        new = (key, value)
        if kept is None or kept[0].shape[0] < self._lanes or kept[0].shape[2] < self._length:
            k, v = (each.new_zeros(self._lanes, each.shape[1], self._length, each.shape[3]) for each in new)
            for before, after in zip(kept or (), (k, v), strict=False):
                after[: before.shape[0], :, : before.shape[2]] = before
            kept = self._layers[layer] = k, v
        for into, each in zip(kept, new, strict=True):
            into[lanes, :, positions] = each[0].transpose(0, 1)

    def read(self, layer: nn.Module, lanes: Tensor | slice, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens of lanes: (lanes, kv_heads, length, width) each."""
        key, value = self._layers[layer]
        return key[lanes, :, :length], value[lanes, :, :length]


@dataclass(frozen=True, slots=True, eq=False)
class SeenTokens:
    """What a pass keeps of its rows, and what they had before."""

    cache: KvCache
    lanes: Tensor  # (T,) int64: of each token of the pass
    chosen: Tensor | slice
    """The same, as a slice where they stand next to each other."""
    longest: int
    """Tokens of the longest row, with those of the pass."""
    looks_back: bool
    """Every row has one token in the pass, and others before it; or none has any before it."""
