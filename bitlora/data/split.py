"""What is trained on, what is evaluated, what is kept for the end: read, tokenized and split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitlora.data.batches import batch_rows
from bitlora.data.cached import LoadedRows, Seen, load_rows
from bitlora.data.examples import DataError, Example, Message
from bitlora.data.rows import BLOCK, Picked, Rows, keys_of
from bitlora.data.sources import How, files_of, hub_ids, read_examples
from bitlora.data.tokens import Counts, tokenize
from bitlora.files.machine_cache import remembered
from bitlora.files.source_file import SourceFile
from bitlora.tokenized.groups import Indices, RowKeys, copies, grouped, hold_out, parted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bitlora.config.metrics import MetricConfig
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
    """Rows that nobody is trained or tuned on: confirmed trials are scored on them."""
    copies: int = 0
    """Rows of the source, of those that are used, that are equal to another before them."""
    shared: int = 0
    """Rows of the source that are equal to one of the eval source."""
    fingerprint: str
    """16 hex digits over all tokens, masks and ids of the splits: equal data, equal fingerprint. Test rows that were added
    later do not count, since trials of before hang on none of them."""
    added: str = ""
    """The same over those; nothing where none were added."""
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

    train: Picked | Rows
    eval: Rows
    test: Rows
    summary: DataSummary
    sets: Mapping[str, Rows] = field(default_factory=dict)
    """By the name of a metric the rows of the eval set that it is over; of choices those of each question stand behind each
    other, the right one first."""


def prepare_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    test_rows: int | None = 0,
    places: Mapping[str, Path] | None = None,
    seen: Seen = lambda *_: None,
    added: bool = False,
) -> Dataset:
    """Read, tokenize and split.

    The split is a permutation seeded by `config.seed`, cut to its first `config.rows`: of these the first part,
    `eval_fraction` of them and at least one, is the eval split, of which the first `eval_rows` are evaluated; the rest of
    it is not trained on either. With `eval_source` nothing is split. Rows that belong together stay on one side.

    Args:
        test_rows: the rows after those that are evaluated that become the test split, at most; None: all. Where it is
            not 0, at most half of the eval split is evaluated, so that there are some.
        places: where files lie that are not to be looked for under their names.
        seen: told how many rows have been read, where they are not kept on this machine.
        added: what is trained on and evaluated is as with `test_rows` 0, and the test split is what is left (`_unseen`).

    Raises:
        DataError: with every error of both sources; also where too few rows are left, or where the sources share rows.
    """
    errors = _unread(config)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    keeps = test_rows != 0 and not added
    kept = ["to evaluate", "to confirm"] if keeps else ["to evaluate"]
    uses = ["to train on"] if config.eval_source else ["to train on", *kept]
    main = _load(config.source, config, How.of(config, places=places), tokenizer, uses, errors, seen)
    evaluation = How.of(config, evaluation=True, places=places)
    other = _load(config.eval_source, config, evaluation, tokenizer, kept, errors, seen) if config.eval_source else None
    if errors or main is None:
        raise DataError(errors)
    rows, notes = main.rows, main.notes
    loaded = [main]
    shuffled = _shuffled(len(rows), config.seed)
    chosen, spare = np.split(shuffled, [len(rows) if config.rows is None else config.rows])
    keys = keys_of(rows)
    repeated, shared = copies(keys.row[chosen]), 0
    if other is None:
        parts = parted(keys, chosen, config.eval_fraction, len(kept), repeated)
        index, group = np.sort(parts.train), parts.group
        train = Picked(rows, index, group[index])
        split = Picked(rows, parts.held, group[parts.held])
        trained, said = group[index], parts.notes
    else:
        train, shared, said = _apart(Picked(rows, np.sort(chosen)), keys, other.rows, config)
        index = _shuffled(len(other.rows), config.seed)
        others, group = keys_of(other.rows), np.empty_like(index)
        group[index] = named = index[grouped(others.at(index))]
        split = Picked(other.rows, index, named)
        trained, spare = group[np.isin(others.row, keys.row[train.index])], index[:0]
        loaded.append(other)
        said = [*(f"of the eval source: {note}" for note in other.notes), *said]
    first = len(split) // 2 if keeps else len(split)
    first = min(first, config.eval_rows or first)
    evaluated, test = _scored(split, first, test_rows if keeps else 0)
    left = "no other is used"
    if added:
        test, beyond_draw = _unseen(split, first, group, trained, spare, test_rows)
        left = f"what is confirmed on are {len(test)} of the others" if beyond_draw else left
    if len(chosen) < len(rows):
        notes.append(f"{len(chosen)} of {len(rows)} rows were drawn at random; {left}")
    notes += said
    summary = DataSummary(
        source=_named(config.source),
        rows_read=sum(each.read for each in loaded),
        truncated=sum(each.truncated for each in loaded),
        dropped=sum(each.dropped for each in loaded),
        train_rows=len(train),
        eval_rows=len(evaluated),
        eval_split_rows=len(split),
        test_rows=len(test),
        copies=repeated,
        shared=shared,
        fingerprint=_fingerprint(train, evaluated, test if keeps else test.take([])),
        added=_computed(test) if added else "",
        notes=tuple(notes),
        revisions={name: commit for each in loaded for name, commit in each.commits.items()},
        files=_files(config, places or {}),
    )
    return Dataset(train=train, eval=evaluated, test=test, summary=summary)


def _scored(split: Picked, first: int, test_rows: int | None) -> tuple[Rows, Rows]:
    """What of the eval split is evaluated, and what is kept for the end: no group is in both, where there are several."""
    places = np.arange(len(split))
    if test_rows == 0:
        return split.take(places[:first]), split.take([])
    group = split.index if split.group is None else split.group
    held = hold_out(places, group, first, 1, max(first, len(split) // 2))
    evaluated = places[:first] if held is None else held[:first]
    rest = places[~np.isin(places, evaluated)]
    if held is not None:
        rest = rest[~np.isin(group[rest], group[evaluated])]
    return split.take(evaluated), split.take(rest[:test_rows])


def _unseen(
    split: Picked, first: int, group: Indices, trained: Indices, spare: Indices, most: int | None
) -> tuple[Rows, bool]:
    """Rows that nobody was trained or tuned on in a sweep whose first rows of the eval split were evaluated, and that kept
    none: the others of it; where there are none, of those that were not drawn as many as are evaluated.

    Args:
        group: of every row of the pool that the split is of.
        trained: the groups of what was trained on.
        spare: rows of that pool which were not drawn.
        most: of them, at most; None: all of the split's.

    Returns:
        Them, and whether they were not drawn.

    Raises:
        DataError: there are none.
    """
    seen = np.concatenate([trained, group[split.index[:first]]])
    rest, others = (index[~np.isin(group[index], seen)] for index in (split.index[first:], spare))
    beyond_draw = len(rest) == 0
    if beyond_draw:
        rest = others[: first if most is None else most]
    if not len(rest):
        raise DataError(
            [
                f"confirm: the sweep was begun without it, and of the {len(split)} rows of its eval split none is left "
                "that nobody was trained or tuned on; begin one with confirm, or with fewer data.eval_rows than that"
            ]
        )
    rest = rest[:most]
    return Picked(split.pool, rest, group[rest]).take(np.arange(len(rest))), beyond_draw


def _apart(train: Picked, keys: RowKeys, evaluated: Rows, config: DataConfig) -> tuple[Picked, int, list[str]]:
    """The rows to train on beside an eval source, and of those that are in it too how many there are, and what is said.

    Args:
        keys: of the pool that they are of.

    Raises:
        DataError: there are such rows, and `config.shared_rows` is to refuse them; or nothing else is left.
    """
    shared = np.isin(keys.row[train.index], keys_of(evaluated).row)
    if not shared.any():
        return train, 0, []
    count = int(shared.sum())
    them = f"1 row of {len(train)} is" if count == 1 else f"{count} rows of {len(train)} are"
    if config.shared_rows == "refuse":
        first = train.example_ids[int(np.argmax(shared))]
        raise DataError(
            [
                f"data.source: {them} in data.eval_source too (first: {first}); data.shared_rows: drop does not train on "
                "them, keep does"
            ]
        )
    if config.shared_rows == "keep":
        return train, count, [f"{them} in the eval source too, and trained on; data.shared_rows: drop would not"]
    if count == len(train):
        raise DataError([f"data.source: {them} in data.eval_source too, and data.shared_rows: drop leaves none"])
    left = Picked(train.pool, train.index[~shared])
    return left, count, [f"{them} in the eval source too, and not trained on"]


def with_sets(
    dataset: Dataset,
    config: DataConfig,
    metrics: Mapping[str, MetricConfig],
    tokenizer: PreTrainedTokenizerBase,
    places: Mapping[str, Path] | None = None,
) -> Dataset:
    """It with the eval sets of `metrics`: of each at most `config.eval_rows` rows, or questions, drawn by `config.seed`.

    Raises:
        DataError: with every error of all of them; also where a choice does not fit `config.max_length`.
    """
    errors: list[str] = []
    sets: dict[str, Rows] = {}
    commits: dict[str, str] = {}
    for name, metric in metrics.items():
        if metric.set is None:
            continue
        of_choices = metric.kind == "choice_accuracy"
        source = config.eval_sets[metric.set]
        how = How.of(config, evaluation=True, places=places)._replace(choices=of_choices)
        found = _load(source, config, how, tokenizer, ["to evaluate"], errors, lambda *_: None)
        if found is None:
            continue
        commits |= found.commits
        if of_choices and (lost := found.truncated + found.dropped):
            errors.append(
                f"data.eval_sets.{metric.set}: {lost} choices do not fit data.max_length {config.max_length}, and what is "
                "cut cannot be compared"
            )
        groups = found.rows.groups if of_choices else found.rows.example_ids
        places_of: dict[str, list[int]] = {}
        for place, group in enumerate(groups):
            places_of.setdefault(group, []).append(place)
        drawn = _shuffled(len(places_of), config.seed)[: config.eval_rows]
        several = [*places_of.values()]
        sets[name] = found.rows.take([place for number in np.sort(drawn) for place in several[number]])
    if errors:
        raise DataError(errors)
    fingerprint = hashlib.sha256(dataset.summary.fingerprint.encode())
    for name, rows in sets.items():
        fingerprint.update(f"\0{name}\0{_computed(rows)}".encode())
    known = dataset.summary.fingerprint if not sets else fingerprint.hexdigest()[:16]
    summary = replace(dataset.summary, fingerprint=known, revisions=dataset.summary.revisions | commits)
    return replace(dataset, sets=sets, summary=summary)


def beyond(dataset: Dataset, vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """An error where a token is beyond a base's embedding: its tokenizer knows more than it does."""
    for rows in (dataset.train, dataset.eval, dataset.test, *dataset.sets.values()):
        if len(places := np.flatnonzero(rows.largest_tokens >= vocab_size)):
            row = rows.take(places[:1])
            token = int(row.tokens[row.tokens >= vocab_size][0])
            named = f"the token {tokenizer.convert_ids_to_tokens(token)!r} is number {token}"
            return [f"{row.example_ids[0]}: {named}, and the base's embedding has {vocab_size} rows"]
    return []


def _unread(config: DataConfig) -> list[str]:
    """An error for each revision of what is not read."""
    every = (config.source, config.eval_source, *config.eval_sets.values())
    ids = [name for source in every for name in hub_ids(source)]
    if isinstance(config.revision, str) and not ids:
        return ["data.revision: neither data.source nor data.eval_source is on the hub, and nothing else has revisions"]
    named = config.revision if isinstance(config.revision, dict) else {}
    return [
        f"data.revision: {name}: no such hub id in data.source or data.eval_source" for name in named if name not in ids
    ]


def _shuffled(rows: int, seed: int) -> Indices:
    return np.random.Generator(np.random.PCG64(seed)).permutation(rows)


def _load(
    source: str | list[str],
    config: DataConfig,
    how: How,
    tokenizer: PreTrainedTokenizerBase,
    uses: list[str],
    errors: list[str],
    seen: Seen,
) -> LoadedRows | None:
    """The rows of a source, and what became of it; None: it is said what is wrong with it."""
    try:
        found = load_rows(source, how, tokenizer, config.max_length, seen)
    except DataError as error:
        errors.extend(error.errors)
        return None
    if len(found.rows) < len(uses):
        why = "; ".join(found.notes)
        need = f"at least {len(uses)} {'is' if len(uses) == 1 else 'are'} needed, {' and '.join(uses)}"
        errors.append(
            f"{_named(source)}: {len(found.rows)} usable rows of {found.read}; {need}{f' ({why})' if why else ''}"
        )
        return None
    return found


def _files(config: DataConfig, places: Mapping[str, Path]) -> tuple[SourceFile, ...]:
    """Those of the sources that are files, as they are now."""
    found: dict[str, Path] = {}
    for source in (config.source, config.eval_source, *config.eval_sets.values()):
        found |= files_of(source, places)
    return tuple(SourceFile.of(name, path) for name, path in found.items())


def _named(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _fingerprint(train: Picked, evaluated: Rows, test: Rows) -> str:
    scored = [evaluated, test] if len(test) else [evaluated]
    kept = train.pool.kept
    if kept is None:
        return _computed(train, *scored)
    # of rows that are kept their places say as much, and reading all of them takes a while
    about = [kept.folder.name, hashlib.sha256(train.index.data).hexdigest(), _computed(*scored), len(scored)]
    return remembered("fingerprints", kept.folder.name.rpartition("-")[0], about, lambda: _computed(train, *scored))


def _computed(*parts: Picked | Rows) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for block in rows.blocks():
            digest.update(block.tokens.data)
        for block in rows.blocks():
            digest.update(block.learn.data)
        digest.update(np.concatenate([[0], np.cumsum(rows.lengths)]).astype(np.int64).data)
        for start in range(0, len(rows), BLOCK):
            names = rows.example_ids[start : start + BLOCK]
            digest.update(("\0" * (start > 0) + "\0".join(names)).encode())
    return digest.hexdigest()[:16]
