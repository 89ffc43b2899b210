"""The slots' optimizer: AdamW over their flat vectors, clipping by their norms, and the learning-rate schedule.

A slot's latent weights are one vector, so what other trainers vectorise over parameters needs no code here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from torch import Tensor
from torch.optim.adamw import adamw

from bitlora.config.trial import TrialConfig
from bitlora.quantizers.codes import Side


def learning_rate(config: TrialConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (1 to `config.steps`).

    It climbs linearly over the first `warmup` share of the steps (at least one step of it is above zero), reaches the
    maximum, and falls towards `floor` times the maximum, where it would be one step after the last, so that no step is
    taken at a rate of zero: along half a cosine (SGDR, arXiv 1608.03983), on a
    line, or not at all.
    """
    warmup = round(config.warmup * config.steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / (config.steps - warmup + 1)
    share = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.floor + (1 - config.floor) * share)


def take_step(
    vectors: Sequence[Sequence[Tensor]],
    taken: Tensor,
    rate: float,
    config: TrialConfig,
    sides: Sequence[Mapping[Side, Sequence[slice]]],
) -> None:
    """One step of AdamW (arXiv 1711.05101; eps 1e-8) over a slot's numbers, in one fused pass; where B has a rate of its
    own (LoRA+, arXiv 2402.12354), in one over all of A and one over all of B.

    Args:
        vectors: latent weights, gradient, first and second moment, each in parts (P,); all but the gradient are changed.
        taken: (), how many steps it has taken; one more after this.
        rate: of A.
        sides: for each part, where in it A and B are.
    """
    passes = [(vectors, rate)]
    rates: tuple[tuple[Side, float], ...] = (("A", rate), ("B", config.loraplus_ratio * rate))
    if config.loraplus_ratio != 1:
        passes = [
            (
                [
                    [part[where] for part, own in zip(each, sides, strict=True) for where in own[side]]
                    for each in vectors
                ],
                own,
            )
            for side, own in rates
        ]
    alone = len(passes) == len(vectors[0]) == 1
    for (latent, grad, first, second), own in passes:
        counts = [taken] if alone else [taken.clone() for _ in latent]
        adamw(
            [*latent], [*grad], [*first], [*second], [], counts, fused=True, amsgrad=False, maximize=False,
            beta1=config.beta1, beta2=config.beta2, lr=own, weight_decay=config.weight_decay, eps=1e-8,
        )  # fmt: skip
    if not alone:
        taken.add_(1)


def clip(grads: Sequence[Sequence[Tensor]], norms: Sequence[float], max_norms: Sequence[float]) -> None:
    """Scale each slot's gradient, in parts (P,), in place so that its 2-norm is at most its maximum, as
    `torch.nn.utils.clip_grad_norm_` does. One whose norm is not finite is left alone."""
    for grad, norm, most in zip(grads, norms, max_norms, strict=True):
        if math.isfinite(norm) and norm + 1e-6 > most:
            for part in grad:
                part.mul_(most / (norm + 1e-6))


GROWTH_STEPS: Final = 2000
"""Steps without an overflow after which the loss scale is doubled, as in `torch.amp.GradScaler`."""


class LossScale(NamedTuple):
    """What a slot's loss is multiplied by before the backward pass, so that its gradients do not vanish in float16
    (arXiv 1710.03740, section 3.2). Always a power of two, so that scaling itself rounds nothing; 1 in other dtypes."""

    value: float = 2.0**12
    """The start is lower than the usual 2**16: a trial of a few dozen steps has none to give away to overflows."""
    clean: int = 0
    """Steps since it last changed."""
    skipped: int = 0
    """Steps that were skipped for an overflow; AdamW has not counted them."""

    def after(self, finite: bool) -> LossScale:
        """The scale after a step whose gradients were finite, or after one that is skipped because they were not."""
        if not finite:
            return LossScale(self.value / 2, 0, self.skipped + 1)
        if self.clean + 1 < GROWTH_STEPS:
            return self._replace(clean=self.clean + 1)
        return LossScale(self.value * 2, 0, self.skipped)


UNSCALED: Final = LossScale(1.0)
