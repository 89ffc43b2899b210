"""The base without an adapter, which one pack of a sweep scores before its first trial: step 0 of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bitlora.config.trial import TrialConfig
from bitlora.files import record
from bitlora.files.baseline import BASE, Baseline, write_baseline
from sweeps.pack.measuring.measuring import Scored, write_scored

if TYPE_CHECKING:
    from bitlora.files.origin import Origin
    from sweeps.pack.settings import PackSettings

BARE: Final = TrialConfig(
    quantizer="none",
    activations="full",
    rank=1,
    alpha=1.0,
    dropout=0.0,
    scaling="lora",
    learning_rate=1.0,
    weight_decay=0.0,
    batch_size=1,
    micro_batch=None,
    max_grad_norm=1.0,
    schedule="constant",
    warmup=0.0,
    floor=0.0,
    steps=1,
    eval_every=1,
    seed=0,
)
"""A trial that takes no step: its B is zero, so that it adds zeros, and its losses are the base's own."""


@dataclass(frozen=True, slots=True)
class BareScores:
    """What the base came to."""

    eval: Scored
    test: Scored | None
    """None where there is no test split, or the eval split could not be scored."""

    @property
    def unusable(self) -> str:
        """Why there is nothing to write of it, in one line; empty where there is."""
        scored = [self.eval, *([self.test] if self.test is not None else [])]
        failed = [why for each in scored if (why := each.result.failed or each.measured.failed)]
        if not failed and not all(math.isfinite(each.loss) for each in scored):
            return "its loss is not finite"
        return failed[0] if failed else ""

    def write(self, settings: PackSettings, origin: Origin) -> None:
        """Write it into the sweep's folder, its record last.

        Raises:
            OSError: it cannot be written.
        """
        folder, base = settings.storage.folder / BASE, settings.base
        files = write_scored(folder, settings.dataset, self.eval, self.test, origin)
        what = {"model": base.model, "quantization": base.quantization, "revision": base.revision}
        baseline = Baseline(
            eval_loss=self.eval.loss,
            test_loss=self.test.loss if self.test is not None else None,
            tokens=sum(self.eval.result.tokens),
            base=what | {"dtype": origin.dtype, "device": origin.device},
            versions=origin.versions,
            metrics=self.eval.measured.values or None,
        )
        write_baseline(folder, baseline)
        settings.storage.push(*(f"{BASE}/{name}" for name in (*files, record.RECORD)))
