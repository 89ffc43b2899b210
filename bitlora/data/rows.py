"""Tokenized examples as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 10_000
"""Rows that are copied at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Tokenized examples, one after the other in flat arrays: cheap to pickle and to share."""

    tokens: npt.NDArray[np.int32]
    """[total] token ids; no padding."""
    learn: npt.NDArray[np.bool_]
    """[total] True where the token is part of a completion: its prediction from the tokens before it counts in the
    loss. Never True at a row's first token."""
    offsets: npt.NDArray[np.int64]
    """[rows + 1] row i is `tokens[offsets[i] : offsets[i + 1]]`."""
    example_ids: tuple[str, ...]
    text_bytes: npt.NDArray[np.int64]
    """[rows] UTF-8 bytes of the completions that the tokens in `learn` stand for, without the tokens that end a turn: what
    bases with other tokenizers are compared by."""
    groups: tuple[str, ...] = ()
    """[rows] Rows of equal text here belong together: at first those of one row of the source, after the split also equal
    rows and those with the same prompt. Empty: each row is alone."""

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row."""
        return np.diff(self.offsets)

    @property
    def learn_tokens(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row that count in the loss."""
        before = np.concatenate([[0], np.cumsum(self.learn, dtype=np.int64)])
        return np.diff(before[self.offsets])

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Rows:
        """The rows at `indices`, in that order, copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens, learn = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.bool_)
        for start in range(
            0, len(chosen), BLOCK
        ):  # of all rows at once the places alone would take more than the tokens
            block = slice(start, start + BLOCK)
            first, last = offsets[start], offsets[min(start + BLOCK, len(chosen))]
            shift = self.offsets[:-1][chosen[block]] - offsets[:-1][block]
            places = np.arange(first, last) + np.repeat(shift, lengths[block])
            tokens[first:last], learn[first:last] = self.tokens[places], self.learn[places]
        ids = tuple(self.example_ids[index] for index in chosen)
        groups = tuple(self.groups[index] for index in chosen) if self.groups else ()
        return Rows(tokens, learn, offsets, ids, self.text_bytes[chosen], groups)
