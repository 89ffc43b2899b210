"""A next token that is drawn, and not the likeliest one: by temperature, out of a nucleus (arXiv 1904.09751), by a seed.

What is drawn hangs on the seed, on how many tokens the row has, and on the logits: never on the rows beside it, nor on how
often the row was begun again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of a row are drawn."""

    temperature: float
    """Above 0. Logits are divided by it: below 1 likely tokens become likelier."""
    top_p: float = 1.0
    """The nucleus: the fewest likeliest tokens whose probabilities come to this share, and always the likeliest. The others
    are never drawn."""
    seed: int

    def draw(self, logits: Tensor, place: int) -> int:
        """The token at a place of a row.

        Args:
            logits: (vocabulary,), in any dtype; reckoned in float64.
            place: tokens before it in its row.
        """
        above = logits.double() - logits.max()  # so that no temperature is too low
        chances, tokens = (above / self.temperature).softmax(-1).sort(descending=True, stable=True)
        reached = chances.cumsum(-1)
        inside = max(1, int((reached - chances < self.top_p).sum()))
        wanted = random.Random(f"{self.seed} {place}").random() * reached[inside - 1]
        return int(tokens[min(int((reached <= wanted).sum()), inside - 1)])


class NextToken(NamedTuple):
    """Which token a row wants next."""

    sampling: Sampling | None
    """None: the likeliest."""
    place: int
    """Tokens that it has."""


def choose(logits: Tensor, wanted: Sequence[NextToken]) -> list[int]:
    """The next token of each row.

    Args:
        logits: (K, vocabulary).
        wanted: K.
    """
    likeliest: list[int] = logits.argmax(-1).tolist()
    return [
        token if sampling is None else sampling.draw(row, place)
        for row, token, (sampling, place) in zip(logits, likeliest, wanted, strict=True)
    ]
