"""The checkpoint that a trial goes on from: one safetensors file.

Latent weights and AdamW's moments are its tensors, what else the trial goes on with stands in its header. One file is
replaced in one step on a disk and is one object in a store; nothing in it can be executed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitlora.config.trial import TrialConfig
from bitlora.files.record import CHECKPOINT
from bitlora.files.writing import replacing

if TYPE_CHECKING:
    from bitlora.engine.slots.slot import SlotState


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """What a trial goes on with beside its state (`bitlora.engine.slots.slot.SlotState`)."""

    step: int
    tokens: int
    seconds: float
    losses: list[float]
    """Train losses of the steps since the last evaluation; at an evaluated step, since the one before it."""
    first_loss: float


class Checkpoint(NamedTuple):
    """What a trial goes on from."""

    state: SlotState
    progress: TrialProgress
    config: TrialConfig
    """Its own, or that of the trial that it is a copy of."""


def save_checkpoint(
    folder: Path, state: SlotState, progress: TrialProgress, config: TrialConfig, base: str, name: str = CHECKPOINT
) -> None:
    """Write the checkpoint of the trial in `folder`.

    Args:
        base: what tells the base and its targets from others; a checkpoint over another one is not gone on from.
    """
    from safetensors.torch import save_file

    tensors = {"latent": state.latent, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
    about = {
        "progress": json.dumps(asdict(progress)),
        "config": config.model_dump_json(),
        "base": base,
        "loss_scale": json.dumps(state.loss_scale),
    }
    with replacing(folder / name) as part:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata=about)


def load_checkpoint(folder: Path, config: TrialConfig | None, base: str, name: str = CHECKPOINT) -> Checkpoint | None:
    """What the trial in `folder` goes on from; None where there is no such checkpoint.

    Args:
        config: the trial's; None: whosever it is.

    Raises:
        ValueError: it is broken, or of another trial or base; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    from bitlora.engine.slots.optim import UNSCALED, LossScale
    from bitlora.engine.slots.slot import SlotState

    path = folder / name
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            latent, exp_avg, exp_avg_sq = (file.get_tensor(name) for name in ("latent", "exp_avg", "exp_avg_sq"))
        reached = json.loads(about["progress"])
        reached.pop("best", None)  # of versions before
        progress = TrialProgress(**reached)
        loss_scale = LossScale(*json.loads(about["loss_scale"])) if "loss_scale" in about else UNSCALED
        written_for = TrialConfig.model_validate_json(about["config"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from None
    if config is not None and not config.same_until(written_for, progress.step):
        raise ValueError(f"{path}: the checkpoint of another trial")
    if about["base"] != base:
        raise ValueError(f"{path}: the checkpoint of another base")
    return Checkpoint(SlotState(progress.step, latent, exp_avg, exp_avg_sq, loss_scale), progress, written_for)
