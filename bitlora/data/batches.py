"""The order in which a trial meets its rows: a pure function of its seed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LEAST: Final = 16
MOST_BYTES: Final = 2**26
"""Orders that are kept: so many, and more as long as they take no more than this."""
_KEPT: OrderedDict[tuple[int, int, int], npt.NDArray[np.integer[Any]]] = OrderedDict()


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
    return _permutation(rows, seed, epoch)[batch * batch_size : (batch + 1) * batch_size].astype(np.int64)


def _permutation(rows: int, seed: int, epoch: int) -> npt.NDArray[np.integer[Any]]:
    """Of the last ones asked for: those of all trials of a pack, where memory allows."""
    key = rows, seed, epoch
    if key not in _KEPT:
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)
        while len(_KEPT) >= LEAST and sum(each.nbytes for each in _KEPT.values()) > MOST_BYTES:
            _KEPT.popitem(last=False)
        _KEPT[key] = order.astype(np.min_scalar_type(rows))
    _KEPT.move_to_end(key)
    return _KEPT[key]
