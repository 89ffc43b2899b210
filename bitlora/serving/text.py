"""Tokens as text, as far as it is certain, and the strings that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

UNFINISHED: Final = "�"
"""What a character reads as of which some bytes are still to come."""


class GrowingText:
    """The text of an answer, token by token.

    Args:
        decode: the tokenizer's, without special tokens.
        stops: any of these ends it, and is no part of it. What may begin one is held back until that is known.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """A stop string was there: it is over."""
        self._decode, self._stops = decode, stops
        self._tokens: list[int] = []
        self._before = self._read = 0
        # tokens from `_before` to `_read` are decoded once more with those behind them: what a token reads as may hang on
        # the one before it
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain with this token and was not before."""
        self._tokens.append(token)
        whole = self._decode(self._tokens[self._before :])
        if whole.endswith(UNFINISHED):
            return ""
        return self._release(self._grown(whole))

    def end(self) -> str:
        """No token follows: what was held back."""
        text = self._release(self._grown(self._decode(self._tokens[self._before :])))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _grown(self, whole: str) -> str:
        grown = whole[len(self._decode(self._tokens[self._before : self._read])) :]
        self._before, self._read = self._read, len(self._tokens)
        return grown

    def _release(self, grown: str) -> str:
        text = self._held + grown
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
