"""From examples to rows of tokens: completion masking, truncation, split, and each trial's batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bitlora.chat import Span, is_learned, render_all
from bitlora.sources import DataError, Example, Message, read_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bitlora.config import DataConfig

__all__ = [
    "Counts",
    "DataError",
    "DataSummary",
    "Dataset",
    "Example",
    "Message",
    "Rows",
    "batch_rows",
    "prepare_data",
    "read_examples",
    "tokenize",
]

CHUNK: Final = 1000
"""Texts in one call of the tokenizer: enough to be fast, few enough that their offsets stay small."""


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
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths)
        ids = tuple(self.example_ids[index] for index in chosen)
        return Rows(self.tokens[places], self.learn[places], offsets, ids, self.text_bytes[chosen])


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSummary:
    """What became of the source."""

    source: str
    rows_read: int
    truncated: int
    """Rows cut to max_length and used."""
    dropped: int
    """Rows in which nothing is left to learn."""
    train_rows: int
    eval_rows: int
    """Rows that are evaluated: at most `DataConfig.eval_rows` of the split."""
    eval_split_rows: int
    test_rows: int
    """Rows of the eval split that nobody is tuned on: confirmed trials are scored on them."""
    fingerprint: str
    """16 hex digits over all tokens, masks and ids of the splits: equal data, equal fingerprint."""
    notes: tuple[str, ...]
    """What a reader should know, a plain sentence each."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What is trained on, what is evaluated, and what is kept for the end; the test split may have no rows."""

    train: Rows
    eval: Rows
    test: Rows
    summary: DataSummary


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


def prepare_data(config: DataConfig, tokenizer: PreTrainedTokenizerBase, test_rows: int | None = 0) -> Dataset:
    """Read, tokenize and split.

    The split is a permutation seeded by `config.seed`, cut to its first `config.rows`: of these the first part,
    `eval_fraction` of them and at least one, is the eval split, of which the first `eval_rows` are evaluated; the rest of
    it is not trained on either. With `eval_source` nothing is split.

    Args:
        test_rows: the rows after those that are evaluated that become the test split, at most; None: all. Where it is
            not 0, at most half of the eval split is evaluated, so that there are some.

    Raises:
        DataError: with every error of both sources; also where too few rows are left.
    """
    errors: list[str] = []
    kept = ["to evaluate"] if test_rows == 0 else ["to evaluate", "to confirm"]
    uses = ["to train on"] if config.eval_source else ["to train on", *kept]
    main = _load(config.source, tokenizer, config.max_length, uses, errors)
    other = _load(config.eval_source, tokenizer, config.max_length, kept, errors) if config.eval_source else None
    if errors or main is None:
        raise DataError(errors)
    rows, counts = main
    all_counts = [counts]
    notes = counts.notes(config.max_length)
    chosen = _shuffled(len(rows), config.seed)[: config.rows]
    if len(chosen) < len(rows):
        notes.append(f"{len(chosen)} of {len(rows)} rows were drawn at random; no other is used")
    if other is None:
        held_out = min(max(round(len(chosen) * config.eval_fraction), len(kept)), len(chosen) - 1)
        train, split = rows.take(np.sort(chosen[held_out:])), rows.take(chosen[:held_out])
    else:
        eval_rows, eval_counts = other
        train, split = rows.take(np.sort(chosen)), eval_rows.take(_shuffled(len(eval_rows), config.seed))
        all_counts.append(eval_counts)
        notes += [f"of the eval source: {note}" for note in eval_counts.notes(config.max_length)]
    first = len(split) if test_rows == 0 else len(split) // 2
    first = min(first, config.eval_rows or first)
    evaluated = split.take(np.arange(first))
    test = split.take(np.arange(first, len(split))[:test_rows])
    summary = DataSummary(
        source=_named(config.source),
        rows_read=sum(each.read for each in all_counts),
        truncated=sum(each.truncated for each in all_counts),
        dropped=sum(each.dropped for each in all_counts),
        train_rows=len(train),
        eval_rows=len(evaluated),
        eval_split_rows=len(split),
        test_rows=len(test),
        fingerprint=_fingerprint(train, evaluated, *([test] if len(test) else [])),
        notes=tuple(notes),
    )
    return Dataset(train=train, eval=evaluated, test=test, summary=summary)


def _shuffled(rows: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).permutation(rows)


def _load(
    source: str | list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, uses: list[str], errors: list[str]
) -> tuple[Rows, Counts] | None:
    try:
        rows, counts = tokenize(read_examples(source), tokenizer, max_length)
    except DataError as error:
        errors.extend(error.errors)
        return None
    if len(rows) < len(uses):
        why = "; ".join(counts.notes(max_length))
        need = f"at least {len(uses)} {'is' if len(uses) == 1 else 'are'} needed, {' and '.join(uses)}"
        errors.append(f"{_named(source)}: {len(rows)} usable rows of {counts.read}; {need}{f' ({why})' if why else ''}")
        return None
    return rows, counts


def _named(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _fingerprint(*parts: Rows) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for array in (rows.tokens, rows.learn, rows.offsets):
            digest.update(array.tobytes())
        digest.update("\0".join(rows.example_ids).encode())
    return digest.hexdigest()[:16]


def batch_rows(rows: int, batch_size: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """The rows of one optimizer step, a pure function of its arguments.

    Each epoch is a permutation of all rows, seeded by (seed, epoch); its last batch is short where the rows do not
    come out even. No batch mixes two epochs.

    Args:
        rows: rows of the training split.
        seed: the trial's.
        step: counted from 0.

    Returns:
        Indices of rows, [batch_size] or fewer.
    """
    epoch, batch = divmod(step, -(-rows // batch_size))
    return _permutation(rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].copy()


@lru_cache(maxsize=128)
def _permutation(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)
