"""From examples to rows of tokens, with what is learned marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bitlora.data.chat import Span, is_learned, render_all
from bitlora.data.examples import DataError, Example
from bitlora.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CHUNK: Final = 1000
"""Texts in one call of the tokenizer: enough to be fast, few enough that their offsets stay small."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What `tokenize` did to the examples it was given."""

    read: int
    truncated: int
    empty: tuple[str, ...]
    """Ids of the examples dropped because their completion is empty."""
    full: tuple[str, ...]
    """Ids of the examples dropped because their prompt fills max_length."""

    @property
    def dropped(self) -> int:
        return len(self.empty) + len(self.full)

    def notes(self, max_length: int) -> list[str]:
        """Plain sentences; none where all went well."""
        notes = []
        if self.truncated:
            were = "was" if self.truncated == 1 else "were"
            notes.append(
                f"{self.truncated} of {self.read} rows {were} longer than {max_length} tokens and {were} truncated"
            )
        for ids, what in ((self.empty, "an empty completion"), (self.full, f"a prompt that fills {max_length} tokens")):
            if ids:
                have, were = ("row has", "was") if len(ids) == 1 else ("rows have", "were")
                notes.append(f"{len(ids)} {have} {what} and {were} dropped (first: {ids[0]})")
        return notes


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Rows, Counts]:
    """Examples as rows of tokens, with the completions marked.

    Each conversation goes through the tokenizer's chat template; without one it is prompt, newline, completion, end of
    sequence. What is learned of an assistant's turn is what the template writes beyond the generation prompt: the
    content and the end of the turn, but not the white space that follows an end-of-turn token: no model has to say it.
    A token that begins before the completion and ends in it is not learned.

    Args:
        max_length: tokens; a longer row is cut at its end.

    Returns:
        The rows with something to learn, in the order of `examples`, and what became of the others.

    Raises:
        DataError: the template refuses a conversation or writes it so that the completion cannot be told apart, or the
            tokenizer cannot say where in the text a token stands.
    """
    if not tokenizer.is_fast:
        raise DataError(
            [f"{type(tokenizer).__name__}: not a fast tokenizer, so completions cannot be located in tokens"]
        )
    used = [each for each in examples if any(map(is_learned, each.messages))]
    empty = tuple(each.example_id for each in examples if not any(map(is_learned, each.messages)))
    endings = tuple(tokenizer.get_added_vocab())
    texts, spans = render_all(used, tokenizer, endings)
    truncated, full, ids, text_bytes = 0, [], [], []
    tokens: list[npt.NDArray[np.int32]] = []
    learn: list[npt.NDArray[np.bool_]] = []
    encoded = _encode(texts, tokenizer)
    for example, text, row_spans, (row, offsets) in zip(used, texts, spans, encoded, strict=True):
        mask = _learned(offsets, row_spans)[:max_length]
        if not mask.any():
            full.append(example.example_id)
            continue
        truncated += len(row) > max_length
        ids.append(example.example_id)
        text_bytes.append(_bytes(text, row_spans, int(offsets[: len(mask)][mask][-1, 1]), endings))
        tokens.append(row[:max_length])
        learn.append(mask)
    rows = Rows(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        learn=np.concatenate([np.empty(0, np.bool_), *learn]),
        offsets=np.cumsum([0, *(len(row) for row in tokens)], dtype=np.int64),
        example_ids=tuple(ids),
        text_bytes=np.array(text_bytes, np.int64),
    )
    return rows, Counts(read=len(examples), truncated=truncated, empty=empty, full=tuple(full))


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Of each text its token ids [tokens] and where they begin and end in it [tokens, 2]."""
    for start in range(0, len(texts), CHUNK):
        batch = tokenizer(
            texts[start : start + CHUNK],
            add_special_tokens=False,  # the template has written them
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            yield np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2)


def _learned(offsets: npt.NDArray[np.int64], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    begin, end = offsets[:, 0], offsets[:, 1]
    # byte-level tokenizers say of a token of spaces alone that it is empty, at its end: it begins where the last ended
    begin = np.where(end > begin, begin, np.concatenate([[0], end[:-1]]))
    learned = np.zeros(len(offsets), np.bool_)
    for first, last in spans:
        learned |= (begin >= first) & (end <= last)
    learned[:1] = False  # nothing stands before it that could predict it
    return learned


def _bytes(text: str, spans: Sequence[Span], end: int, endings: tuple[str, ...]) -> int:
    """UTF-8 bytes of what is learned in `text` up to its character `end`, without the tokens that end a turn."""
    count = 0
    for first, last in spans:
        piece = text[first : min(last, end)]
        count += len(piece.removesuffix(next(filter(piece.endswith, endings), "")).encode())
    return count
