"""From examples to rows of tokens, with what is learned marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitlora.data.chat import ChatTemplate, Span
from bitlora.data.examples import DataError, Example
from bitlora.data.learned import Rendered, is_learned, render_all
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
    excluded: tuple[str, ...] = ()
    """Ids of the examples dropped because the data say that none of their turns is learned."""
    template: tuple[str, ...] = ()
    """What is to be said of the chat template."""

    @property
    def dropped(self) -> int:
        """Examples in which nothing is left to learn."""
        return len(self.empty) + len(self.full) + len(self.excluded)

    def notes(self, max_length: int) -> list[str]:
        """Plain sentences; none where all went well."""
        notes = [*self.template]
        if self.truncated:
            were = "was" if self.truncated == 1 else "were"
            notes.append(
                f"{self.truncated} of {self.read} rows {were} longer than {max_length} tokens and {were} truncated"
            )
        for ids, what in (
            (self.empty, "an empty completion"),
            (self.full, f"a prompt that fills {max_length} tokens"),
            (self.excluded, "no turn that is to be learned (weight 0, label false)"),
        ):
            if ids:
                have, were = ("row has", "was") if len(ids) == 1 else ("rows have", "were")
                notes.append(f"{len(ids)} {have} {what} and {were} dropped (first: {ids[0]})")
        return notes


def tokenize(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    skipped: list[str] | None = None,
) -> tuple[Rows, Counts]:
    """Examples as rows of tokens, with the completions marked.

    Each conversation goes through the tokenizer's chat template; without one it is prompt, newline, completion, end of
    sequence. What is learned of an assistant's turn is what the template writes beyond the generation prompt: the
    content and the end of the turn, but not the white space that follows an end-of-turn token: no model has to say it.
    A completion begins with a token of its own: what stands before it are the tokens that generation starts from.

    Args:
        max_length: tokens; a longer row is cut at its end.
        skipped: gets a line for each example that the template refuses, which is then left out; None: that is raised.

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
    used = [each for each in examples if _says(each)]
    excluded = tuple(each.example_id for each in examples if not _says(each) and _is_excluded(each))
    empty = tuple(each.example_id for each in examples if not _says(each) and not _is_excluded(each))
    endings = tuple(tokenizer.get_added_vocab())
    rendered, noticed = render_all(used, ChatTemplate(tokenizer), endings, skipped)
    truncated, full, ids, text_bytes, groups = 0, [], [], [], []
    tokens: list[npt.NDArray[np.int32]] = []
    learn: list[npt.NDArray[np.bool_]] = []
    for each, (row, ends, mask) in zip(rendered, _encode(rendered, tokenizer), strict=True):
        mask = mask[:max_length]
        if not mask.any():
            full.append(each.example_id)
            continue
        truncated += len(row) > max_length
        ids.append(each.example_id)
        groups.append(each.row)
        text_bytes.append(_bytes(each, int(ends[0]), int(ends[: len(mask)][mask][-1]), endings))
        tokens.append(row[:max_length])
        learn.append(mask)
    rows = Rows(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        learn=np.concatenate([np.empty(0, np.bool_), *learn]),
        offsets=np.cumsum([0, *(len(row) for row in tokens)], dtype=np.int64),
        example_ids=tuple(ids),
        text_bytes=np.array(text_bytes, np.int64),
        groups=tuple(groups),
    )
    counts = Counts(
        read=len(examples),
        truncated=truncated,
        empty=empty,
        full=tuple(full),
        excluded=excluded,
        template=tuple(noticed.notes()),
    )
    return rows, counts


def _says(example: Example) -> bool:
    return bool(example.text.strip()) if example.text is not None else any(map(is_learned, example.messages))


def _is_excluded(example: Example) -> bool:
    return any(is_learned(turn._replace(learned=True)) for turn in example.messages)


Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Of a row its token ids, where in the text each of them ends, and whether it is learned; [tokens] each."""


def _encode(rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    anchor = _anchor(tokenizer)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        pieces = [piece for row in chunk for piece in _pieces(row)]
        texts = [piece.after(anchor) + piece.text for piece in pieces]
        batch = tokenizer(
            texts,
            add_special_tokens=False,  # the template has written them
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        encoded = zip(pieces, batch["input_ids"], batch["offset_mapping"], strict=True)
        for row in chunk:
            of_row = [_of_piece(*next(encoded), anchor) for _ in _pieces(row)]
            ids, ends, learn = (np.concatenate(parts) for parts in zip(*of_row, strict=True))
            learn[:1] = False  # nothing stands before it that could predict it
            yield ids, ends, learn


class TextPiece(NamedTuple):
    """A part of a row that is tokenized by itself: a prompt, or a completion."""

    text: str
    start: int
    """Where in the row it begins, in characters."""
    learned: bool

    def after(self, anchor: str) -> str:
        """What is to stand before it, so that it is not taken for the beginning of a text."""
        if not self.start or not anchor:
            return ""
        return "x" if self.text.startswith(anchor) else anchor


def _pieces(row: Rendered) -> list[TextPiece]:
    """A row, cut where a completion begins and where it ends."""
    cuts = [0, *(at for span in row.spans for at in span), len(row.text)]
    return [
        TextPiece(row.text[first:last], first, bool(number % 2))
        for number, (first, last) in enumerate(pairwise(cuts))
        if last > first
    ]


def _of_piece(piece: TextPiece, ids: list[int], offsets: list[Span], anchor: str) -> Encoded:
    before = len(piece.after(anchor))
    kept = [
        (token, end - before + piece.start)
        for token, (_, end) in zip(ids, offsets, strict=True)
        if end > before or not before
    ]
    tokens, ends = zip(*kept, strict=True) if kept else ((), ())
    return np.array(tokens, np.int32), np.array(ends, np.int64), np.full(len(kept), piece.learned)


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that can stand before a piece, for tokenizers that begin every text with a space of their own."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    alone, after = ids("x"), ids("\nx")
    return "" if after[-len(alone) :] == alone else "\n"


def _bytes(row: Rendered, begin: int, end: int, endings: tuple[str, ...]) -> int:
    """UTF-8 bytes of what is learned of a row between two places in its text, without the tokens that end a turn."""
    count = 0
    for first, last in row.spans:
        piece = row.text[max(first, begin) : min(last, end)]
        count += len(piece.removesuffix(next(filter(piece.endswith, endings), "")).encode())
    return count
