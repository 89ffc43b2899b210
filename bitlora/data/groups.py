"""Which rows belong together, and a split that does not part them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    first: dict[tuple[str, object], int] = {}
    group = np.arange(len(rows), dtype=np.int64)

    def root(row: int) -> int:
        while group[row] != row:
            group[row] = group[group[row]]
            row = int(group[row])
        return row

    for row, keys in enumerate(_keys(rows, prompts)):
        for key in keys:
            one, other = root(first.setdefault(key, row)), root(row)
            group[max(one, other)] = min(one, other)
    return np.array([root(row) for row in range(len(rows))], np.int64)


def _keys(rows: Rows, prompts: bool) -> Iterator[list[tuple[str, object]]]:
    for row in range(len(rows)):
        part = slice(rows.offsets[row], rows.offsets[row + 1])
        tokens = rows.tokens[part]
        prompt = int(np.argmax(rows.learn[part]))
        keys: list[tuple[str, object]] = [("row", rows.groups[row]), ("tokens", digest(tokens))]
        if prompts and prompt > 1:  # a text without turns has none, but for its beginning
            keys.append(("prompt", digest(tokens[:prompt])))
        yield keys


def digest(tokens: npt.NDArray[np.int32]) -> bytes:
    """Equal tokens, equal digest."""
    return blake2b(tokens.tobytes(), digest_size=16).digest()


def digests(rows: Rows) -> list[bytes]:
    """Of each row its tokens' digest."""
    return [digest(rows.tokens[a:b]) for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]


def copies(rows: Rows) -> int:
    """Rows that are equal to one before them."""
    return len(rows) - len(set(digests(rows)))


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
