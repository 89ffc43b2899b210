"""Tokenized examples as flat arrays, in memory or mapped from a file, and some of them in another order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitlora.files.machine_cache import CachePlace, Use
from bitlora.tokenized.arrays import Arrays, ArraysError, ArrayWriter, Names, let_go, open_arrays
from bitlora.tokenized.groups import RowKeys, key, prompt_key

BLOCK: Final = 10_000
"""Rows that are copied at once."""
TOUCHED: Final = 1000
"""Rows that are read of a file before what they touched is let go of: a row brings 64 kB and more along, as Linux maps."""
DTYPES: Final[dict[str, type]] = {
    **{"tokens": np.int32, "learn": np.bool_, "ends": np.int64, "learned": np.int64, "text_bytes": np.int64},
    **{"ids": np.uint8, "id_ends": np.int64, "groups": np.uint8, "group_ends": np.int64},
    **{"source_keys": np.uint64, "row_keys": np.uint64, "prompt_keys": np.uint64, "largest": np.int32},
}
"""The arrays that rows are kept in, by the names of their files."""
ENDS: Final = {"tokens": "ends", "ids": "id_ends", "groups": "group_ends"}
"""Those in which a row has several values -> where each row ends in them."""


@dataclass(slots=True)
class KeptRows:
    """Where rows are kept. Rows that are kept travel as their place: whoever gets them maps the same files."""

    folder: Path
    use: Use | None = None
    """Holds the folder for as long as the rows are there."""
    taken: int = 0
    """Rows that were read since what they touched was let go of."""


MOVED: Final[dict[Path, Rows]] = {}
"""Rows that were kept on another machine, by their place there, and are here (`sweeps.pack.data`)."""


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
    example_ids: Sequence[str]
    text_bytes: npt.NDArray[np.int64]
    """[rows] UTF-8 bytes of the completions that the tokens in `learn` stand for, without the tokens that end a turn: what
    bases with other tokenizers are compared by."""
    groups: Sequence[str] = ()
    """[rows] Rows of equal text here belong together: at first those of one row of the source, after the split also equal
    rows and those with the same prompt. Empty: each row is alone."""
    keys: RowKeys | None = None
    """None: they can be computed."""
    learned: npt.NDArray[np.int64] | None = None
    """[rows] as `learn_tokens`; None: it can be computed."""
    largest: npt.NDArray[np.int32] | None = None
    """[rows] the largest token id; None: it can be computed."""
    kept: KeptRows | None = None

    @classmethod
    def of(cls, arrays: Arrays, kept: KeptRows | None = None) -> Rows:
        """Of the arrays of DTYPES."""
        return cls(
            tokens=arrays["tokens"],
            learn=arrays["learn"],
            offsets=np.concatenate([np.zeros(1, np.int64), arrays["ends"]]),
            example_ids=Names(arrays["ids"], arrays["id_ends"]),
            text_bytes=arrays["text_bytes"],
            groups=Names(arrays["groups"], arrays["group_ends"]),
            keys=RowKeys(arrays["source_keys"], arrays["row_keys"], arrays["prompt_keys"]),
            learned=arrays["learned"],
            largest=arrays["largest"],
            kept=kept,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kept is not None:
            return rows_at, (self.kept.folder,)
        return Rows, tuple(getattr(self, each.name) for each in fields(self))

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row."""
        return np.diff(self.offsets)

    @property
    def learn_tokens(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row that count in the loss."""
        if self.learned is not None:
            return self.learned
        before = np.concatenate([[0], np.cumsum(self.learn, dtype=np.int64)])
        return np.diff(before[self.offsets])

    @property
    def largest_tokens(self) -> npt.NDArray[np.int32]:
        """[rows] the largest token id of each."""
        if self.largest is not None:
            return self.largest
        return np.array([self.tokens[first:last].max() for first, last in pairwise(self.offsets.tolist())], np.int32)

    def blocks(self) -> Iterator[Rows]:
        """All of them, copied some at a time."""
        return Picked(self, np.arange(len(self))).blocks()

    def first(self, count: int | None) -> Rows:
        """The first so many rows; all of them where there are no more, and for None."""
        return self if count is None or count >= len(self) else self.take(np.arange(count))

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Rows:
        """The rows at `indices`, in that order, copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens, learn = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.bool_)
        for start in range(
            0, len(chosen), BLOCK
        ):  # of all rows at once the places alone would take more than the tokens
            block = slice(start, start + BLOCK)
            first, last = offsets[start], offsets[min(start + BLOCK, len(chosen))]
            shift = self.offsets[chosen[block]] - offsets[:-1][block]
            places = np.arange(first, last) + np.repeat(shift, lengths[block])
            tokens[first:last], learn[first:last] = self.tokens[places], self.learn[places]
            if self.kept is not None:
                self.kept.taken += len(lengths[block])
                if self.kept.taken >= TOUCHED:  # pages of files are memory, too, for as long as they are mapped
                    let_go(self.tokens)
                    let_go(self.learn)
                    self.kept.taken = 0
        ids = tuple(_at(self.example_ids, chosen))
        groups = tuple(_at(self.groups, chosen)) if self.groups else ()
        keys = None if self.keys is None else self.keys.at(chosen)
        learned = None if self.learned is None else self.learned[chosen]
        largest = None if self.largest is None else self.largest[chosen]
        return Rows(tokens, learn, offsets, ids, self.text_bytes[chosen], groups, keys, learned, largest)


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """Some rows of many, in an order of their own, without a copy of them."""

    pool: Rows
    index: npt.NDArray[np.int64]
    """[rows] which of the pool's."""
    group: npt.NDArray[np.int64] | None = None
    """[rows] the row of the pool after which the group is named that a row belongs to; None: as the pool says."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row."""
        return self.pool.offsets[self.index + 1] - self.pool.offsets[self.index]

    @property
    def learn_tokens(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row that count in the loss."""
        return self.pool.learn_tokens[self.index]

    @property
    def largest_tokens(self) -> npt.NDArray[np.int32]:
        """[rows] the largest token id of each."""
        return self.pool.largest_tokens[self.index]

    @property
    def text_bytes(self) -> npt.NDArray[np.int64]:
        """[rows] As those of `Rows`."""
        return self.pool.text_bytes[self.index]

    @property
    def example_ids(self) -> Sequence[str]:
        """[rows] As those of `Rows`."""
        return _at(self.pool.example_ids, self.index)

    @property
    def groups(self) -> Sequence[str]:
        """[rows] As those of `Rows`."""
        if self.group is not None:
            return _at(self.pool.example_ids, self.group)
        return _at(self.pool.groups, self.index) if self.pool.groups else ()

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Rows:
        """The rows at `indices`, in that order, copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        found = self.pool.take(self.index[chosen])
        if self.group is None:
            return found
        names = _at(self.pool.example_ids, self.group[chosen])
        return Rows(**{each.name: getattr(found, each.name) for each in fields(found)} | {"groups": tuple(names)})

    def blocks(self) -> Iterator[Rows]:
        """All of them, copied some at a time."""
        for start in range(0, len(self), BLOCK):
            yield self.take(np.arange(start, min(start + BLOCK, len(self))))


class MadeRow(NamedTuple):
    """A row before it is among others."""

    example_id: str
    source: str
    """The row of the source that it is from."""
    tokens: bytes
    """As int32, in native order; at least two."""
    learn: bytes
    """Of each token 1 where it is learned, and 0: one is, and the first is not."""
    text_bytes: int


def arrays_of(rows: Sequence[MadeRow]) -> Arrays:
    """Rows as the arrays of DTYPES; the prompt keys of those that have no prompt are for `RowsWriter` to number."""
    content = b"".join(row.tokens for row in rows)
    tokens, learn = np.frombuffer(content, np.int32), _together((row.learn for row in rows), np.bool_)
    lengths = np.array([len(row.learn) for row in rows], np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    places = np.flatnonzero(learn)
    answers = places[np.searchsorted(places, starts)]
    bounds = (np.stack([starts, answers, ends]) * tokens.itemsize).T.tolist()
    ids, sources = ([name.encode() for name in names] for names in zip(*(row[:2] for row in rows), strict=True))
    return {
        "tokens": tokens,
        "learn": learn,
        "ends": ends,
        "learned": np.add.reduceat(learn, starts, dtype=np.int64),
        "text_bytes": np.array([row.text_bytes for row in rows], np.int64),
        **{"ids": _together(ids, np.uint8), "id_ends": np.cumsum(list(map(len, ids)), dtype=np.int64)},
        **{"groups": _together(sources, np.uint8), "group_ends": np.cumsum(list(map(len, sources)), dtype=np.int64)},
        "source_keys": _together(map(key, sources), np.uint64),
        "row_keys": _together([key(content[first:last]) for first, _, last in bounds], np.uint64),
        "prompt_keys": _together([key(content[first:answer]) for first, answer, _ in bounds], np.uint64),
        "largest": np.maximum.reduceat(tokens, starts),
    }


def _together(parts: Iterable[bytes], dtype: type) -> npt.NDArray[Any]:
    return np.frombuffer(b"".join(parts), dtype)


class RowsWriter:
    """Rows as they grow.

    Args:
        folder: gets them; None: they are in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer = ArrayWriter(DTYPES, folder)
        self._count = 0
        self._places = dict.fromkeys(ENDS, 0)

    def extend(self, more: Arrays) -> None:
        """Rows as the arrays of DTYPES (`arrays_of`), after those that are here."""
        more = dict(more)
        for name, ends in ENDS.items():
            more[ends] = more[ends] + self._places[name]
            self._places[name] += len(more[name])
        starts = more["ends"] - np.diff(more["ends"], prepend=self._places["tokens"] - len(more["tokens"]))
        alone = np.flatnonzero(more["learn"][starts - starts[:1] + 1])
        more["prompt_keys"] = more["prompt_keys"].copy()
        for number in alone.tolist():
            more["prompt_keys"][number] = np.frombuffer(prompt_key(b"", 1, self._count + number), np.uint64)[0]
        self._count += len(starts)
        for name, values in more.items():
            self._writer.add(name, values.tobytes())

    def close(self, about: Mapping[str, Any]) -> Rows:
        """All of them; with what is to be known of them (`bitlora.tokenized.arrays.read_about`). Raises OSError."""
        return Rows.of(self._writer.close(about))

    def abandon(self) -> None:
        """Close its files as they are."""
        self._writer.abandon()


def _at(names: Sequence[str], index: npt.NDArray[np.int64]) -> Sequence[str]:
    return names.at(index) if isinstance(names, Names) else tuple(names[place] for place in index.tolist())


def rows_at(folder: Path) -> Rows:
    """The rows that are kept in a folder, which is held for as long as they are there. Raises ArraysError."""
    if folder in MOVED:
        return MOVED[folder]
    use = CachePlace(folder).use()
    if use is None:
        raise ArraysError(f"{folder} is not there")
    return Rows.of(open_arrays(folder, DTYPES), KeptRows(folder, use))


def keys_of(rows: Rows) -> RowKeys:
    """By what rows are alike."""
    if rows.keys is not None:
        return rows.keys
    learned = np.flatnonzero(rows.learn)
    before = learned[np.searchsorted(learned, rows.offsets[:-1])] - rows.offsets[:-1]
    sources = [key(name.encode()) for name in rows.groups or rows.example_ids]
    whole, prompts = [], []
    for number, (first, last) in enumerate(pairwise(rows.offsets.tolist())):
        whole.append(key(rows.tokens[first:last].tobytes()))
        prompts.append(prompt_key(rows.tokens[first : first + before[number]].tobytes(), int(before[number]), number))
    return RowKeys(*(np.frombuffer(b"".join(each), np.uint64) for each in (sources, whole, prompts)))
