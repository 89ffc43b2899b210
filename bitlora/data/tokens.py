"""From examples to rows of tokens, with what is learned marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitlora.data.chat import ChatTemplate, Fitting
from bitlora.data.examples import DataError, Example
from bitlora.data.learned import Noticed, Rendered, is_learned, learned_turns, render_all
from bitlora.data.rows import MadeRow, Rows, RowsWriter, arrays_of
from bitlora.tokenized.arrays import Arrays
from bitlora.tokenized.processes import each_made
from bitlora.tokenized.words import TOKEN, words_of

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


CHUNK: Final = 250
"""Examples whose rows are made at once: enough to be fast, few enough that their offsets stay small, and that two chunks of
them lie in a pipe to another process."""
MANY: Final = 4000
"""Examples that are made in about the time in which another process has started."""


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


def tokenize_into(
    writer: RowsWriter,
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    skipped: list[str] | None,
    others: int = 0,
) -> Counts:
    """Examples as rows of tokens, with the completions marked: the writer gets those with something to learn, in order.

    Each conversation goes through the tokenizer's chat template; without one it is prompt, newline, completion, end of
    sequence. What is learned of an assistant's turn is what the template writes beyond the generation prompt: the
    content and the end of the turn, but not the white space that follows an end-of-turn token: no model has to say it.
    A completion begins with a token of its own: what stands before it are the tokens that generation starts from.

    Args:
        max_length: tokens; a longer row is cut at its end.
        skipped: gets a line for each example that the template refuses, which is then left out; None: that is raised.
        others: other processes that may help where there are many; what comes of it is the same.

    Returns:
        What became of the others.

    Raises:
        DataError: the template refuses a conversation or writes it so that the completion cannot be told apart, or the
            tokenizer cannot say where in the text a token stands.
    """
    if not tokenizer.is_fast:
        raise DataError(
            [f"{type(tokenizer).__name__}: not a fast tokenizer, so completions cannot be located in tokens"]
        )
    counts, noticed, errors = Counts(), Noticed(), list[str]()
    make = _Make(tokenizer, max_length)
    chunks = _chunks(_speaking(examples, counts), make.template)
    with closing(each_made(make, chunks, others, MANY // CHUNK)) as all_made:
        for made in all_made:
            errors += made.errors
            noticed.add(made.noticed)
            if not errors or skipped is not None:  # else nothing comes of it: the other errors are still to be found
                counts.full += made.full
                counts.truncated += made.truncated
                if made.rows is not None:
                    writer.extend(made.rows)
    if errors and skipped is None:
        raise DataError(errors)
    if skipped is not None:
        skipped += errors
    counts.template = noticed.notes()
    return counts


class Chunk(NamedTuple):
    """Examples whose rows are made at once."""

    examples: list[Example]
    forms: dict[object, Fitting]
    """How a template is given conversations of the makes that hang on more than the make: as the first of all says."""


class MadeRows(NamedTuple):
    """What became of some examples."""

    rows: Arrays | None
    """None: there are none."""
    truncated: int
    full: list[str]
    """As in `Counts`."""
    noticed: Noticed
    errors: list[str]


class _Make:
    """Makes rows of examples, here or in another process."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self.template = ChatTemplate(tokenizer)
        self._endings = tuple(tokenizer.get_added_vocab())
        self._last_tokens = _Endings(self._endings)
        self._encoder = _Encoder(tokenizer, max_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Make, (self._tokenizer, self._max_length)

    def __call__(self, chunk: Chunk) -> MadeRows:
        self.template.goes_by(chunk.forms)
        noticed, errors, full, truncated = Noticed(), list[str](), list[str](), 0
        rows = list(render_all(chunk.examples, self.template, self._endings, noticed, errors))
        made: list[MadeRow] = []
        for row, found in zip(rows, self._encoder.rows(rows), strict=True):
            if 1 not in found.learn:
                full.append(row.example_id)
                continue
            truncated += found.length > self._max_length
            text_bytes = _bytes(row, found.begin, found.end, self._last_tokens)
            made.append(MadeRow(row.example_id, row.row, found.ids, found.learn, text_bytes))
        return MadeRows(arrays_of(made) if made else None, truncated, full, noticed, errors)


def _chunks(examples: Iterator[Example], template: ChatTemplate) -> Iterator[Chunk]:
    while some := list(islice(examples, CHUNK)):
        told = [each for each in some if each.tools or any(turn.calls or turn.more for turn in each.messages)]
        yield Chunk(some, dict(template.fitting(each, learned_turns(each)) for each in told if each.text is None))


def tokenize(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    skipped: list[str] | None = None,
) -> tuple[Rows, Counts]:
    """The same in memory: the rows, and what became of the others."""
    writer = RowsWriter(None)
    counts = tokenize_into(writer, examples, tokenizer, max_length, skipped)
    return writer.close({}), counts


def _speaking(examples: Iterable[Example], counts: Counts) -> Iterator[Example]:
    """Those in which there is something to learn; the others are counted."""
    for each in examples:
        counts.read += 1
        if _says(each):
            yield each
        else:
            (counts.excluded if _is_excluded(each) else counts.empty).append(each.example_id)


def _says(example: Example) -> bool:
    return bool(example.text.strip()) if example.text is not None else any(map(is_learned, example.messages))


def _is_excluded(example: Example) -> bool:
    return any(is_learned(turn._replace(learned=True)) for turn in example.messages)


class EncodedRow(NamedTuple):
    """The tokens of a row, cut to the length that is asked for, and what of its text they learn."""

    ids: bytes
    """As int32, in native order."""
    learn: bytes
    """Of each token 1 where it is learned, and 0."""
    length: int
    """Tokens before it was cut."""
    begin: int
    """Where in the text the first token ends: what stands before it is not learned."""
    end: int
    """Where in the text the last token ends that is learned."""


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


class _Encoder:
    """Tokenizes rows: by the words that were met before where that can be, else by the tokenizer itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._anchor = _anchor(tokenizer)  # the call has also set the backend to take texts as they are
        self._backend = tokenizer.backend_tokenizer
        self._words = None if self._anchor else words_of(self._backend)
        self._max_length = max_length

    def rows(self, rows: Sequence[Rendered]) -> Iterator[EncodedRow]:
        """Of each row its tokens, in order."""
        quick = [self._by_words(row) for row in rows]
        others = self._by_tokenizer([row for row, found in zip(rows, quick, strict=True) if found is None])
        for found in quick:
            yield next(others) if found is None else found

    def _by_words(self, row: Rendered) -> EncodedRow | None:
        """None: not all of the text is made of words, or it is not known where in it a token ends."""
        words = self._words
        if words is None:
            return None
        tokens, learned = [], list[tuple[int, int, TextPiece]]()
        place = 0
        for piece in _pieces(row):
            found = words.tokens(piece.text)
            if found is None:
                return None
            tokens.append(found)
            count = len(found) // TOKEN
            if piece.learned:
                learned.append((place, place + count, piece))
            place += count
        ids, learn = b"".join(tokens), bytearray(place)
        for first, after, _ in learned:
            learn[first:after] = b"\1" * (after - first)
        learn[:1] = bytes(len(learn[:1]))  # nothing stands before it that could predict it
        begin = words.end(ids[:TOKEN]) if row.spans[0][0] == 0 else 0
        most = self._max_length
        end: int | None = 0
        for first, after, piece in learned:
            if max(first, 1) < min(after, most):
                if after > most:
                    end = words.end(ids[first * TOKEN : most * TOKEN])
                else:
                    end = None if words.is_blank(ids[(after - 1) * TOKEN : after * TOKEN]) else len(piece.text)
                end = None if end is None else end + piece.start
        if begin is None or end is None:
            return None
        return EncodedRow(ids[: most * TOKEN], bytes(learn[:most]), place, begin, end)

    def _by_tokenizer(self, rows: Sequence[Rendered]) -> Iterator[EncodedRow]:
        pieces = [piece for row in rows for piece in _pieces(row)]
        texts = [piece.after(self._anchor) + piece.text for piece in pieces]
        # the template has written the special tokens
        encoded = zip(pieces, self._backend.encode_batch(texts, add_special_tokens=False), strict=True)
        for row in rows:
            of_row = [_of_piece(*next(encoded), self._anchor) for _ in _pieces(row)]
            ids, ends, learn = (np.concatenate(parts) for parts in zip(*of_row, strict=True))
            learn[:1] = False
            kept = learn[: self._max_length]
            end = int(ends[: len(kept)][kept][-1]) if kept.any() else 0
            cut = ids[: self._max_length].tobytes()
            yield EncodedRow(cut, kept.tobytes(), len(ids), int(ends[0]) if len(ends) else 0, end)


def _pieces(row: Rendered) -> list[TextPiece]:
    """A row, cut where a completion begins and where it ends."""
    cuts = [0, *(at for span in row.spans for at in span), len(row.text)]
    return [
        TextPiece(row.text[first:last], first, bool(number % 2))
        for number, (first, last) in enumerate(pairwise(cuts))
        if last > first
    ]


Of = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Of a piece its token ids, where in the row's text each of them ends, and whether it is learned; [tokens] each."""


def _of_piece(piece: TextPiece, encoding: Encoding, anchor: str) -> Of:
    before = len(piece.after(anchor))
    ids, ends = np.array(encoding.ids, np.int32), np.array([end for _, end in encoding.offsets], np.int64)
    if before:
        kept = ends > before
        ids, ends = ids[kept], ends[kept]
    return ids, ends - before + piece.start, np.full(len(ids), piece.learned)


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that can stand before a piece, for tokenizers that begin every text with a space of their own."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    alone, after = ids("x"), ids("\nx")
    return "" if after[-len(alone) :] == alone else "\n"


class _Endings:
    """Tokens that end a turn, or others that were added: what of a text stands before one of them at its end."""

    def __init__(self, endings: Sequence[str]) -> None:
        self._order = {ending: place for place, ending in reversed(list(enumerate(endings))) if ending}
        self._lengths = sorted({len(ending) for ending in self._order})

    def taken_off(self, text: str) -> str:
        """The text without the first of them that it ends with."""
        found = [tail for length in self._lengths if (tail := text[-length:]) in self._order]
        return text.removesuffix(min(found, key=self._order.__getitem__)) if found else text


def _bytes(row: Rendered, begin: int, end: int, endings: _Endings) -> int:
    """UTF-8 bytes of what is learned of a row between two places in its text, without the tokens that end a turn."""
    pieces = (row.text[max(first, begin) : min(last, end)] for first, last in row.spans)
    return sum(len(endings.taken_off(piece).encode()) for piece in pieces)
