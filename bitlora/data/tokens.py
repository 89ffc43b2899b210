"""From examples to rows of tokens, with what is learned marked."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitlora.data.chat import ChatTemplate, Span
from bitlora.data.examples import DataError, Example
from bitlora.data.learned import Noticed, Rendered, is_learned, render_all
from bitlora.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CHUNK: Final = 1000
"""Texts in one call of the tokenizer: enough to be fast, few enough that their offsets stay small."""


@dataclass(slots=True)
class Counts:
    """What `tokenize` did to the examples it was given."""

    read: int = 0
    truncated: int = 0
    empty: list[str] = field(default_factory=list)
    """Ids of the examples dropped because their completion is empty."""
    full: list[str] = field(default_factory=list)
    """Ids of the examples dropped because their prompt fills max_length."""
    excluded: list[str] = field(default_factory=list)
    """Ids of the examples dropped because the data say that none of their turns is learned."""
    template: list[str] = field(default_factory=list)
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
    examples: Iterable[Example],
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
    endings = tuple(tokenizer.get_added_vocab())
    counts, noticed, errors = Counts(), Noticed(), list[str]()
    rendered = render_all(_speaking(examples, counts), ChatTemplate(tokenizer), endings, noticed, errors)
    flat = _Flat()
    while chunk := list(islice(rendered, CHUNK)):
        if errors and skipped is None:  # nothing comes of it: the other errors are still to be found
            continue
        for row, (ids, ends, mask) in zip(chunk, _encode(chunk, tokenizer), strict=True):
            mask = mask[:max_length]
            if not mask.any():
                counts.full.append(row.example_id)
                continue
            counts.truncated += len(ids) > max_length
            flat.add(row, ids[:max_length], mask, _bytes(row, int(ends[0]), int(ends[: len(mask)][mask][-1]), endings))
    if errors and skipped is None:
        raise DataError(errors)
    if skipped is not None:
        skipped += errors
    counts.template = noticed.notes()
    return flat.rows(), counts


def _speaking(examples: Iterable[Example], counts: Counts) -> Iterator[Example]:
    """Those in which there is something to learn; the others are counted."""
    for each in examples:
        counts.read += 1
        if _says(each):
            yield each
        else:
            (counts.excluded if _is_excluded(each) else counts.empty).append(each.example_id)


class _Flat:
    """Rows as they grow: in two buffers, so that there is no second copy of all tokens at the end."""

    def __init__(self) -> None:
        self._tokens, self._learn = bytearray(), bytearray()
        self._lengths, self._text_bytes = array("q"), array("q")
        self._ids: list[str] = []
        self._groups: list[str] = []

    def add(self, row: Rendered, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], text_bytes: int) -> None:
        self._tokens += ids.tobytes()
        self._learn += mask.tobytes()
        self._lengths.append(len(ids))
        self._text_bytes.append(text_bytes)
        self._ids.append(row.example_id)
        self._groups.append(row.row)

    def rows(self) -> Rows:
        offsets = np.zeros(len(self._ids) + 1, np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        return Rows(
            tokens=np.frombuffer(self._tokens, np.int32),
            learn=np.frombuffer(self._learn, np.bool_),
            offsets=offsets,
            example_ids=tuple(self._ids),
            text_bytes=np.array(self._text_bytes, np.int64),
            groups=tuple(self._groups),
        )


def _says(example: Example) -> bool:
    return bool(example.text.strip()) if example.text is not None else any(map(is_learned, example.messages))


def _is_excluded(example: Example) -> bool:
    return any(is_learned(turn._replace(learned=True)) for turn in example.messages)


Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Of a row its token ids, where in the text each of them ends, and whether it is learned; [tokens] each."""


def _encode(rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    anchor = _anchor(tokenizer)
    pieces = [piece for row in rows for piece in _pieces(row)]
    batch = tokenizer(
        [piece.after(anchor) + piece.text for piece in pieces],
        add_special_tokens=False,  # the template has written them
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    encoded = zip(pieces, batch["input_ids"], batch["offset_mapping"], strict=True)
    for row in rows:
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
