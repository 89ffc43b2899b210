"""What changes on the way: an adapter that was trained over one form of its base, and is served over another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sweeps.cli.exports.forms import WHOLE, Form
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from reports.statistics.paired import Interval

Over = Literal["nf4", "bf16"]
WORDS: Final[dict[str, str]] = {"nf4": "NF4", "int8": "8 bits", "bf16": "16 bits (bfloat16)", "none": "its own dtype"}


@dataclass(frozen=True, slots=True)
class Moved:
    """The loss of one adapter over two forms of its base, by the same plain loop over the same rows."""

    over: Over
    """What it is served over."""
    served: float
    """Nats per completion token."""
    before: str
    """What it was trained over."""
    trained: float
    interval: Interval | None
    """Of the difference, over the examples; None: they are too few."""

    @property
    def text(self) -> str:
        """In a sentence."""
        ends = self.interval
        sure = "" if ends is None else f" (95 %: {ends.low:+.4f} to {ends.high:+.4f})"
        return (
            f"over the base in {WORDS[self.over]} its eval loss is {self.served:.4f}, over {WORDS[self.before]}, which it "
            f"was trained over, {self.trained:.4f}: {self.served - self.trained:+.4f} nats a token{sure}"
        )


def served_form(trial: TrialFolder, form: Form, asked: Over | None) -> Over | None:
    """What an export is to be measured over, beside what it was trained over; None: nothing.

    Where it is not asked for: 16 bits of an adapter that was trained over a quantized base, and goes where most have none.

    Raises:
        InputError: the export brings its own base.
    """
    if form in WHOLE:
        if asked is not None:
            raise InputError(["--served-over: a merged model brings its own base; leave it away"])
        return None
    if asked is None:
        return "bf16" if form in ("gguf", "peft") and trial.base.quantization != "none" else None
    same = trial.base.quantization == ("nf4" if asked == "nf4" else "none")
    return None if same and (asked == "nf4" or trial.trained_in == "bfloat16") else asked


def measured(trial: TrialFolder, over: Over, rows: Rows) -> Moved:
    """Score a trial's adapter over the base that it was trained over, and over the other.

    Raises:
        InputError: the base cannot be had so.
    """
    import pandas as pd
    import torch

    from bitlora.adapter.loss import example_losses
    from reports.statistics.paired import paired

    def scored(model: Any) -> pd.DataFrame:
        losses = example_losses(_with_adapter(trial, model), rows)
        table = {"example_id": list(rows.example_ids), "loss": losses, "tokens": rows.learn_tokens}
        return pd.DataFrame(table | ({"group": list(rows.groups)} if len(rows.groups) else {}))

    base = trial.base.model_copy(update={"quantization": "nf4" if over == "nf4" else "none"})
    before = scored(trial.model())
    after = scored(trial.model(base, torch.bfloat16 if over == "bf16" else None))
    loss, other = (math.fsum(table["loss"]) / int(table["tokens"].sum()) for table in (before, after))
    return Moved(over, other, trial.base.quantization, loss, paired({0: before}, {0: after}))


def _with_adapter(trial: TrialFolder, model: Any) -> Any:
    from bitlora.adapter.apply import attach_weights
    from bitlora.adapter.latent import quantized_weights
    from bitlora.adapter.peft_folder import adapter_config

    config = trial.config
    weights = quantized_weights(trial.latent, config)
    described = adapter_config(config, trial.base.model, list(weights)) | {"activations": config.activations}
    return attach_weights(model, weights, described)
