"""What is known of learning rates before anything is trained: `search.prior`.

The likeliest rate of a configuration, for AdamW, is

    5e-5 * m * (2000 / width)^0.781 * (alpha / 32)^(-1/2) * q * (batch / middle)^(1/2)

and its logarithm is normally distributed around that, with a standard deviation of `ln 2`. Where each part is from:

- `5e-5 (2000 / width)^0.781` is full fine-tuning's rate over a base of that width, and `m` how many times that a LoRA
  adapter's is: 10, and 15 in runs of some hundred steps. Schulman et al., "LoRA Without Regret" (Thinking Machines, 2025);
  the rule with its exponent for Llama's family stood in tinker-cookbook's `hyperparam_utils`. Their adapters are scaled by
  `32 / rank`, under which the best rate is nearly the same at every rank: so the rank is not in it.
- `alpha` is that of adapters scaled by `alpha / rank`; rsLoRA's `alpha / sqrt(rank)` is `alpha * sqrt(rank)` of those. An
  adapter's update grows with `alpha * rate` while A is still what it began as, and with `alpha * rate^2` once A has moved
  as well. Equal updates so want a rate between `alpha^-1` and `alpha^(-1/2)`. It is the latter that sweeps here came to:
  2e-3 at alpha 16 down to 5e-4 at 128 (reports/examples/full-precision and lowbit).
- `q` is 2 for weights of at most 2 bits, else 1: a latent weight acts only when it crosses a threshold, so that BitNet
  wants and bears larger rates (arXiv 2310.11453, section 3.3). Of the rates in reports/examples/lowbit binary and ternary
  adapters did best at one to three times those of full precision.
- Adam's rate goes with the square root of the batch (Malladi et al., arXiv 2205.10287). That is used between the batch
  sizes of one sweep, around their middle, alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from itertools import accumulate, product
from random import Random
from statistics import NormalDist
from typing import Any, Final

from bitlora.base.info import BaseInfo
from bitlora.quantizers.weights import QUANTIZERS
from sweeps.search.sampling.choice import sampler_of
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

FULL: Final = 5e-5
"""Full fine-tuning's rate over a base 2000 wide."""
WIDTH: Final = 0.781
TIMES: Final = 10
SHORT: Final = 15
SHORT_STEPS: Final = 100
ALPHA: Final = 32
POWER: Final = 0.5
"""The literature alone leaves 0.5 to 1, and says of `LOW_BITS` only that it is more than 1."""
LOW_BITS: Final = 2.0
SPREAD: Final = math.log(2)
"""Standard deviation of the logarithm of the best rate."""
TINY: Final = 1e-300
"""What takes the place of a lowest rate of 0."""
EPSILON: Final = 1e-12
"""Where no more than this of the distribution lies in a range, the end that is nearest to it is the rate."""
STRENGTH: Final = 8
"""After so many trials every other rate is still drawn from here; after n one in `(STRENGTH + n) / STRENGTH`."""
RATE: Final = "learning_rate"


class RatePrior:
    """The rates of a sweep's configurations.

    Args:
        base: what the adapters are on.
        steps: of a full trial.
    """

    def __init__(self, spec: Spec, base: BaseInfo, steps: int) -> None:
        self._spec, self._space = spec, spec.search.space
        (width, _), *_ = Counter(shape.in_features for shape in base.linears).most_common(1)
        times = SHORT if steps <= SHORT_STEPS else TIMES
        self._of_base = FULL * times * (2000 / width) ** WIDTH
        batches = self._space.get("batch_size")
        ends = spaces.extent(batches) if batches is not None else {spec.train.batch_size}
        self._middle = math.sqrt(min(ends) * max(ends))

    def likeliest(self, chosen: Mapping[str, Any]) -> float:
        """That of a configuration of which `chosen` was chosen, whether it lies in the space or not."""
        adapter = self._spec.adapter.model_dump() | {"batch_size": self._spec.train.batch_size} | dict(chosen)
        alpha = adapter["alpha"] * (math.sqrt(adapter["rank"]) if adapter["scaling"] == "rslora" else 1)
        levels = QUANTIZERS[adapter["quantizer"]].levels
        low = LOW_BITS if levels is not None and levels.count <= 4 else 1
        size = math.sqrt(adapter["batch_size"] / self._middle)
        return float(self._of_base * (ALPHA / alpha) ** POWER * size * low)

    def words(self) -> str:
        """What it says of this sweep, in words."""
        axes = [axis for axis in ("quantizer", "rank", "alpha", "scaling", "batch_size") if axis in self._space]
        ends = product(*(spaces.extent(self._space[axis]) for axis in axes))
        rates = [self.likeliest(dict(zip(axes, values, strict=True))) for values in ends]
        low, high = f"{min(rates):.2g}", f"{max(rates):.2g}"
        likeliest = low if low == high else f"{low} to {high}"
        return (
            f"learning rates around {likeliest}, half to twice as much, by the literature and by sweeps recorded before"
        )

    def rate(self, chosen: Mapping[str, Any], share: float) -> float:
        """The rate out of the space below which `share` (0 to 1) of what is probable lies; other axes are `chosen`."""
        _, domain = spaces.option(self._space, RATE, chosen)
        middle = math.log(self.likeliest(chosen))
        if isinstance(domain, spaces.Choices):
            values = sorted(domain.values)
            likely = [-(((math.log(value) - middle) / SPREAD) ** 2) / 2 for value in values]
            weights = [math.exp(one - max(likely)) for one in likely]
            sums = list(accumulate(weights))
            return float(values[min(bisect_left(sums, share * sums[-1]), len(values) - 1)])
        normal = NormalDist(middle, SPREAD)
        low, high = math.log(max(domain.low, TINY)), math.log(domain.high)
        below, above = normal.cdf(low), normal.cdf(high)
        at = below + share * (above - below)
        if 0 < at < 1 and above - below > EPSILON:
            rate = min(max(math.exp(normal.inv_cdf(at)), domain.low), domain.high)
        else:  # all of the range is improbable
            rate = domain.low if middle < low else domain.high
        if domain.step is None:
            return rate
        first, step = Decimal(str(domain.low)), Decimal(str(domain.step))
        most, near = int((Decimal(str(domain.high)) - first) // step), round((Decimal(rate) - first) / step)
        return float(first + min(most, near) * step)


def rate_prior(spec: Spec, base: BaseInfo, steps: int) -> RatePrior | None:
    """That of a sweep; None where it is to have none, and where nothing hangs on it."""
    space = spec.search.space
    hung_on = any(isinstance(domain, spaces.By) and domain.axis == RATE for domain in space.values())
    models = sampler_of(spec.search) in ("tpe", "gp")
    known = spec.search.prior == "auto" and models and RATE in space and not hung_on and base.linears
    return RatePrior(spec, base, steps) if known else None


class FirstPoints:
    """Where trials go before anything is known of this sweep: the values of each list in turn, and rates from all over the
    prior, so that none of them goes twice before all have gone once.

    Args:
        count: how many there are to be.
    """

    def __init__(self, space: spaces.Space, count: int, chance: Random) -> None:
        lists = {axis: domain.values for axis, domain in space.items() if isinstance(domain, spaces.Choices)}
        self._lists = {axis: values for axis, values in lists.items() if axis != RATE}
        self._shares = tuple((number + 0.5) / count for number in range(count))
        self._chance = chance
        self._left: dict[str, list[Any]] = {}

    def _next(self, of: str, values: tuple[Any, ...]) -> Any:
        left = self._left.setdefault(of, [])
        if not left:
            left += self._chance.sample(values, len(values))
        return left.pop()

    def point(self) -> dict[str, Any]:
        """Values of the axes that are lists, the learning rate aside."""
        return {axis: self._next(axis, values) for axis, values in self._lists.items()}

    def share(self) -> float:
        """Which share of what is probable lies below the rate."""
        return float(self._next(RATE, self._shares))
