"""Two trials over the same eval examples: how far apart they are, and how sure that is.

A trial's eval loss is a ratio, the summed loss of all examples over their tokens. Both trials score the same examples with
the same tokens, so their difference is one ratio too, R = sum(d) / sum(t), where d is the difference of an example's summed
losses and t its tokens. Its standard error is that of a ratio estimator, from the residuals d - R t (Cochran, Sampling
Techniques, 3rd ed., section 6.3), and the interval is Student's t with one degree of freedom less than there are examples.
It speaks of other examples of the same kind; of another seed it says nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import pandas as pd

CONFIDENCE: Final = 0.95
FEWEST: Final = 5
"""Examples in common, below which there is no interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The difference of two eval losses, second minus first, in nats per completion token."""

    difference: float
    low: float
    high: float
    examples: int

    @property
    def decided(self) -> bool:
        """The interval does not hold zero: one of the two is better on such examples."""
        return not self.low <= 0 <= self.high


def paired(first: pd.DataFrame | None, second: pd.DataFrame | None) -> Interval | None:
    """Compare two trials example by example.

    Args:
        first, second: eval.parquet of each (`example_id`, `loss` in nats summed over the example, `tokens`); None: there
            is none.

    Returns:
        None where they did not score the same examples, or too few.
    """
    if first is None or second is None:
        return None
    both = first.merge(second, on="example_id", suffixes=("", "_second"), validate="one_to_one")
    same = len(both) == len(first) == len(second) and bool((both["tokens"] == both["tokens_second"]).all())
    if not same or len(both) < FEWEST:
        return None
    from scipy import stats

    weights = both["tokens"].to_numpy()
    n, tokens = len(both), float(weights.sum())
    apart = both["loss_second"].to_numpy() - both["loss"].to_numpy()
    difference = float(apart.sum()) / tokens
    residuals = apart - difference * weights
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / tokens
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    if not math.isfinite(difference + reach):
        return None
    return Interval(difference, difference - reach, difference + reach, n)
