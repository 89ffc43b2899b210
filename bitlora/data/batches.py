"""The order in which a trial meets its rows: a pure function of its seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


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
