"""Which rows belong together, and a split that does not part them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
KEY: int = 8
"""Bytes of a number by which rows are alike."""


class Parted(NamedTuple):
    """Rows that are trained on and rows that are not, by their places."""

    train: Indices
    held: Indices
    group: Indices
    """Of every row the first one that belongs to it."""
    notes: list[str]


class RowKeys(NamedTuple):
    """Numbers by which rows are alike, [rows] each: equal number, equal thing."""

    source: npt.NDArray[np.uint64]
    """Of the row of the source that it is from."""
    row: npt.NDArray[np.uint64]
    """Of its tokens."""
    prompt: npt.NDArray[np.uint64]
    """Of its tokens up to the first that is learned; where those are no prompt, a number of its own."""

    def at(self, index: npt.NDArray[np.integer[Any]]) -> RowKeys:
        """Those of some rows."""
        return RowKeys(self.source[index], self.row[index], self.prompt[index])


def key(content: bytes) -> bytes:
    """Of equal contents the same, of others another: a number as its bytes."""
    return blake2b(content, digest_size=KEY).digest()


def prompt_key(tokens: bytes, count: int, number: int) -> bytes:
    """Of the tokens before the first that is learned.

    A text without turns has no prompt, but for its beginning: such rows have keys of their own.

    Args:
        tokens: the row's, of which `count` come before.
        number: the row's own.
    """
    return key(tokens if count > 1 else b"row %d" % number)


def grouped(keys: RowKeys, prompts: bool = True) -> Indices:
    """Of each row the group that it belongs to, named after the group's first row.

    Together belong equal rows, what is of one row of the source (instances of an instruction, turns of a conversation) and,
    where `prompts` says so, what answers the same prompt.

    Returns:
        [rows] indices of rows.
    """
    group = np.arange(len(keys.row), dtype=np.int64)

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = int(group[row])
        return row

    for each in (keys.source, keys.row, *([keys.prompt] if prompts else [])):
        order = np.argsort(each, kind="stable")
        for place in np.flatnonzero(each[order][1:] == each[order][:-1]):
            one, other = root(int(order[place])), root(int(order[place + 1]))
            group[max(one, other)] = min(one, other)
    while not np.array_equal(group, above := group[group]):
        group = above
    return group


def copies(rows: npt.NDArray[np.uint64]) -> int:
    """Rows that are equal to one before them, by their keys."""
    return len(rows) - len(np.unique(rows))


def hold_out(order: Sequence[int] | Indices, group: Indices, wanted: int, least: int, most: int) -> Indices | None:
    """The rows that are held out: whole groups, in the order in which their first rows come, as long as they fit.

    Where each row is a group of its own, it is the first `wanted` of `order`.

    Args:
        order: rows, drawn at random.
        group: of every row (`grouped`).
        least: groups that have to be held out; where too few fit, the smallest of the others are.
        most: rows that may then be held out.

    Returns:
        Rows, those of a group one after the other; None: there are not enough groups, or they are too large.
    """
    rows = np.asarray(order, np.int64)
    _, first, number = np.unique(group[rows], return_index=True, return_inverse=True)
    turn = np.empty(len(first), np.int64)  # of each group its place among the groups
    turn[np.argsort(first)] = np.arange(len(first))
    of_row = turn[number]
    sizes = np.bincount(of_row, minlength=len(first))
    chosen: list[int] = []
    held = 0
    for place, size in enumerate(sizes.tolist()):
        if held == wanted or len(chosen) == len(sizes) - 1:
            break
        if held + size <= wanted:
            chosen.append(place)
            held += size
    there = set(chosen)
    for place in np.argsort(sizes, kind="stable").tolist():
        if len(chosen) >= least or len(chosen) >= len(sizes) - 1 or held + sizes[place] > most:
            break
        if place not in there:
            chosen.append(place)
            held += int(sizes[place])
    if len(chosen) < least:
        return None
    together, ends = np.argsort(of_row, kind="stable"), np.cumsum(sizes)
    parts = [together[ends[place] - sizes[place] : ends[place]] for place in chosen]
    held_rows: Indices = rows[np.concatenate([np.empty(0, np.int64), *parts])]
    return held_rows


def parted(keys: RowKeys, chosen: Indices, fraction: float, least: int, repeated: int) -> Parted:
    """Holds rows out: whole groups of what belongs together, where there are enough of them.

    Args:
        keys: of every row.
        chosen: those that are used, drawn at random.
        fraction: of them that is held out.
        least: groups that are, at least.
        repeated: how many of them are equal to another.
    """
    wanted = min(max(round(len(chosen) * fraction), least), len(chosen) - 1)
    notes = []
    if repeated:
        are = (
            "1 row is a copy of another: both are"
            if repeated == 1
            else f"{repeated} rows are copies of others: they are"
        )
        notes.append(f"{are} on one side, trained on or evaluated")
    group = grouped(keys)
    held = hold_out(chosen, group, wanted, least, 2 * wanted)
    if held is None or 2 * len(held) < wanted:
        group = grouped(keys, prompts=False)
        held = hold_out(chosen, group, wanted, least, len(chosen) // 2)
        if held is not None:
            notes.append("too many rows have the same prompt to stay on one side: only equal rows do")
    if held is None:
        held, notes = chosen[:wanted], ["the rows are too much alike: copies of a row are trained on and evaluated"]
    return Parted(chosen[~np.isin(chosen, held)], held, group, notes)
