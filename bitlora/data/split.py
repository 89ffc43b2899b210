"""What is trained on, what is evaluated, what is kept for the end: read, tokenized and split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitlora.data.batches import batch_rows
from bitlora.data.examples import DataError, Example, Message
from bitlora.data.json_lines import DataFiles, SourceFile
from bitlora.data.rows import Rows
from bitlora.data.sources import hub_ids, read_examples
from bitlora.data.tokens import Counts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bitlora.config.sections import DataConfig


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
    revisions: dict[str, str] = field(default_factory=dict)
    """The commit of each data set of the hub, by its id."""
    files: tuple[SourceFile, ...] = ()
    """What was read of the source and the eval source that is a file."""

    @property
    def revision(self) -> str:
        """The same as text: of one data set the commit alone; empty where none is from the hub."""
        if len(self.revisions) == 1:
            return next(iter(self.revisions.values()))
        return ", ".join(f"{name}@{commit}" for name, commit in sorted(self.revisions.items()))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What is trained on, what is evaluated, and what is kept for the end; the test split may have no rows."""

    train: Rows
    eval: Rows
    test: Rows
    summary: DataSummary


def prepare_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    test_rows: int | None = 0,
    places: Mapping[str, Path] | None = None,
) -> Dataset:
    """Read, tokenize and split.

    The split is a permutation seeded by `config.seed`, cut to its first `config.rows`: of these the first part,
    `eval_fraction` of them and at least one, is the eval split, of which the first `eval_rows` are evaluated; the rest of
    it is not trained on either. With `eval_source` nothing is split.

    Args:
        test_rows: the rows after those that are evaluated that become the test split, at most; None: all. Where it is
            not 0, at most half of the eval split is evaluated, so that there are some.
        places: where files lie that are not to be looked for under their names.

    Raises:
        DataError: with every error of both sources; also where too few rows are left.
    """
    errors = _unread(config)
    kept = ["to evaluate"] if test_rows == 0 else ["to evaluate", "to confirm"]
    uses = ["to train on"] if config.eval_source else ["to train on", *kept]
    revisions: dict[str, str] = {}
    files = DataFiles(places or {})
    wanted = config.revision, revisions, files
    main = _load(config.source, tokenizer, config.max_length, uses, errors, *wanted)
    other = (
        _load(config.eval_source, tokenizer, config.max_length, kept, errors, *wanted) if config.eval_source else None
    )
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
        revisions=revisions,
        files=tuple(files.read.values()),
    )
    return Dataset(train=train, eval=evaluated, test=test, summary=summary)


def _unread(config: DataConfig) -> list[str]:
    """An error for each revision of what is not read."""
    ids = [*hub_ids(config.source), *hub_ids(config.eval_source)]
    if isinstance(config.revision, str) and not ids:
        return ["data.revision: neither data.source nor data.eval_source is on the hub, and nothing else has revisions"]
    named = config.revision if isinstance(config.revision, dict) else {}
    return [
        f"data.revision: {name}: no such hub id in data.source or data.eval_source" for name in named if name not in ids
    ]


def _shuffled(rows: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).permutation(rows)


def _load(
    source: str | list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    uses: list[str],
    errors: list[str],
    revision: str | Mapping[str, str] | None,
    found: dict[str, str],
    files: DataFiles,
) -> tuple[Rows, Counts] | None:
    try:
        rows, counts = tokenize(read_examples(source, revision, found, files), tokenizer, max_length)
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
