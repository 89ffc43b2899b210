"""What an export has to do: what its trial did, as far as its arithmetic allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sweeps.cli.trial_folder import TrialFolder

if TYPE_CHECKING:
    from bitlora.data.rows import Rows

NEAR: Final = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2, "auto": 1e-2}
"""How far an export's loss may be from the record's, relative to it, by what the trial was computed in: sums differ in
order, and in 16 bits that is seen in the third digit."""


class ExportError(Exception):
    """An export could not be written, or does not do what its trial did; one line for the user."""


def compare(trial: TrialFolder, model: Any, rows: Rows, at_least: float = 0.0) -> str:
    """Hold a model's loss against the record's.

    Args:
        at_least: how far they may be apart in any case, relative to the record's.

    Raises:
        ExportError: they are too far apart, or it is not finite.
    """
    from bitlora.adapter.loss import eval_loss

    expected = trial.record.eval_loss
    assert expected is not None
    loss = eval_loss(model, rows)
    gap = abs(loss - expected) / expected
    near = max(NEAR[trial.trained_in], at_least)
    found = f"eval loss {loss:.6f}, in the record {expected:.6f}: {gap:.1e} apart"
    if not gap <= near:
        raise ExportError(
            f"{trial.place}: {found} (relative), and at most {near:.0e} is right; adapter or base have changed since the "
            "sweep; nothing was kept"
        )
    return f"checked: {found}"
