"""Which rows belong together, and a split that does not part them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from bitlora.data.rows import Rows

Indices = npt.NDArray[np.int64]


def grouped(rows: Rows, prompts: bool = True) -> Indices:
    """Of each row the group that it belongs to, named after the group's first row.

    Together belong equal rows, what is of one row of the source (instances of an instruction, turns of a conversation) and,
    where `prompts` says so, what answers the same prompt.

    Returns:
        [rows] indices of rows.
    """
    group = np.arange(len(rows), dtype=np.int64)

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = int(group[row])
        return row

    for keys in (_sources(rows), digests(rows), *([_prompts(rows)] if prompts else [])):
        order = np.argsort(keys, kind="stable")
        for place in np.flatnonzero(keys[order][1:] == keys[order][:-1]):
            one, other = root(int(order[place])), root(int(order[place + 1]))
            group[max(one, other)] = min(one, other)
    if np.array_equal(group, np.arange(len(rows))):
        return group
    return np.array([root(row) for row in range(len(rows))], np.int64)


def digests(rows: Rows) -> npt.NDArray[np.uint64]:
    """[rows] Equal tokens, equal number."""
    return _hashed(rows.tokens[a:b].tobytes() for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True))


def _sources(rows: Rows) -> npt.NDArray[np.uint64]:
    return _hashed(name.encode() for name in rows.groups or rows.example_ids)


def _prompts(rows: Rows) -> npt.NDArray[np.uint64]:
    """A text without turns has no prompt, but for its beginning: such rows have numbers of their own."""
    return _hashed(
        rows.tokens[first : first + prompt].tobytes() if prompt > 1 else b"row %d" % row
        for row, (first, prompt) in enumerate(zip(rows.offsets[:-1], _before(rows), strict=True))
    )


def _before(rows: Rows) -> npt.NDArray[np.int64]:
    """[rows] tokens before the first one that is learned."""
    learned = np.flatnonzero(rows.learn)
    found: npt.NDArray[np.int64] = learned[np.searchsorted(learned, rows.offsets[:-1])] - rows.offsets[:-1]
    return found


def _hashed(texts: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(blake2b(text, digest_size=8).digest() for text in texts), np.uint64)


def copies(rows: npt.NDArray[np.uint64]) -> int:
    """Rows that are equal to one before them, of their `digests`."""
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
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(group[row]), []).append(int(row))
    held: list[int] = []
    names: list[int] = []
    for name, rows in members.items():
        if len(held) + len(rows) <= wanted and len(names) < len(members) - 1:
            held += rows
            names.append(name)
    for name, rows in sorted(members.items(), key=lambda one: len(one[1])):
        if len(names) >= least or len(names) >= len(members) - 1 or len(held) + len(rows) > most:
            break
        if name not in names:
            held += rows
            names.append(name)
    return np.array(held, np.int64) if len(names) >= least else None
