"""The base without an adapter, which one pack of a sweep scores before its first trial: step 0 of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bitlora.config.trial import TrialConfig
from bitlora.files import record
from bitlora.files.baseline import BASE, Baseline, write_baseline

if TYPE_CHECKING:
    from pathlib import Path

    from bitlora.data.rows import Rows
    from bitlora.engine.engine import EvalResult
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

    eval: EvalResult
    test: EvalResult | None
    """None where there is no test split, or the eval split could not be scored."""

    @property
    def unusable(self) -> str:
        """Why there is nothing to write of it, in one line; empty where there is."""
        scored = [self.eval, *([self.test] if self.test is not None else [])]
        failed = [each.failed for each in scored if each.failed]
        if not failed and not all(math.isfinite(each.loss) for each in scored):
            return "its loss is not finite"
        return failed[0] if failed else ""

    def write(self, settings: PackSettings, origin: Origin) -> None:
        """Write it into the sweep's folder, its record last.

        Raises:
            OSError: it cannot be written.
        """
        folder, base = settings.storage.folder / BASE, settings.base
        splits = {record.EVAL: (settings.dataset.eval, self.eval)}
        if self.test is not None:
            splits[record.TEST] = (settings.dataset.test, self.test)
        for name, (rows, scored) in splits.items():
            write_scores(folder / name, rows, scored, origin)
        what = {"model": base.model, "quantization": base.quantization, "revision": base.revision}
        baseline = Baseline(
            eval_loss=self.eval.loss,
            test_loss=self.test.loss if self.test is not None else None,
            tokens=sum(self.eval.tokens),
            base=what | {"dtype": origin.dtype, "device": origin.device},
            versions=origin.versions,
        )
        write_baseline(folder, baseline)
        settings.storage.push(*(f"{BASE}/{name}" for name in (*splits, record.RECORD)))


def write_scores(path: Path, rows: Rows, scored: EvalResult, origin: Origin) -> None:
    """Write eval.parquet or test.parquet: what each of `rows` was scored with, and by what."""
    counts = scored.tokens, rows.text_bytes.tolist()
    record.write_scores(path, rows.example_ids, scored.losses, *counts, origin, rows.groups)
