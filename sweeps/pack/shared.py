"""What a trial begins with, or goes on from, as the first worker of a pack has read it: on all of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from bitlora.config.trial import TrialConfig
from bitlora.engine.checkpoint import Checkpoint, TrialProgress
from bitlora.engine.slots.optim import UNSCALED, LossScale
from bitlora.engine.slots.slot import SlotState

if TYPE_CHECKING:
    from bitlora.adapter.latent import Latent
    from bitlora.engine.engine import Engine


def shared(engine: Engine, found: Checkpoint | None, config: TrialConfig) -> Checkpoint | None:
    """What the first worker has read, on all of them; of the others' it is summed with zeros.

    Args:
        config: of an adapter of that size.
    """
    about = engine.workers.broadcast((found.progress, found.config) if found is not None else None)
    if engine.workers.size == 1 or about is None:
        return found
    state = _broadcast_state(engine, found.state if found is not None else None, about[0].step, config)
    return Checkpoint(state, *about)


def begun_with(engine: Engine, latent: Mapping[str, Latent], config: TrialConfig) -> Checkpoint:
    """What a trial begins with that has these latent weights, of another trial, and nothing behind it.

    Raises:
        ValueError: they are of another adapter.
    """
    names = engine.base.adapter_layers(config)
    if names.keys() != latent.keys():
        raise ValueError(f"{min(names.keys() ^ latent.keys())}: an adapter is there in one of both alone")
    whole = torch.cat([part.flatten() for name in names for part in latent[name].tensors])
    scale = LossScale() if engine.base.dtype == torch.float16 else UNSCALED
    nothing = TrialProgress(step=0, tokens=0, seconds=0.0, losses=[], first_loss=0.0)
    return Checkpoint(SlotState(0, whole, torch.zeros_like(whole), torch.zeros_like(whole), scale), nothing, config)


def _broadcast_state(engine: Engine, state: SlotState | None, step: int, config: TrialConfig) -> SlotState:
    size = engine.weights(config)
    dtype, device = engine.latent_dtype, engine.base.device
    own = [torch.zeros(size)] * 3 + [torch.zeros(len(LossScale._fields))]
    if state is not None:
        own = [state.latent, state.exp_avg, state.exp_avg_sq, torch.tensor(state.loss_scale)]
    latent, exp_avg, exp_avg_sq, scale = parts = [part.to(device, dtype, copy=True) for part in own]
    engine.workers.sum(parts, dtype)
    value, clean, skipped = scale.tolist()
    return SlotState(step, latent, exp_avg, exp_avg_sq, LossScale(value, int(clean), int(skipped)))
