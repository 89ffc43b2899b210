"""A trial on disk: its adapter in PEFT's layout, and the checkpoint that it goes on from.

Stock PEFT reads the adapter of a full-precision trial as the LoRA adapter it is. Latent weights of a quantized one would
be silently wrong there, so its configuration names a type that stock PEFT does not know and refuses; it is read by
`bitlora.peft_adapter`. Baked, with the quantized weights in the place of the latent ones, it is an ordinary LoRA adapter.

A checkpoint is one safetensors file: latent weights and AdamW's moments, in its header what else the trial goes on with.
One file is replaced in one step on a disk and is one object in a store; nothing in it can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from bitlora.config import TrialConfig
from bitlora.record import CHECKPOINT, replacing

if TYPE_CHECKING:
    from bitlora.slot import SlotState

PEFT_TYPE: Final = "BITLORA"
PACKED_TYPE: Final = "BITLORA_PACKED"
"""Of an adapter whose weights are not PEFT's tensors but codes (`bitlora.packing`)."""
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


def adapter_config(config: TrialConfig, base_model: str, targets: list[str]) -> dict[str, Any]:
    """The adapter's configuration in PEFT's keys, with the quantizer and the activations beside them."""
    plain = config.quantizer == "none" and config.activations == "full"
    described = {
        "peft_type": "LORA" if plain else PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.scaling == "rslora",
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    if not plain:
        described |= {
            "quantizer": config.quantizer,
            "granularity": config.granularity,
            "activations": config.activations,
        }
    return described


def save_adapter(folder: Path, latent: Mapping[str, tuple[Tensor, ...]], config: TrialConfig, base_model: str) -> None:
    """Write the latent weights into `folder`, which exists and is empty (`bitlora.record.write_folder`).

    Args:
        latent: layer name -> A (rank, in), B (out, rank), and of learned scales those of A (rank, 1) and B (out, 1).
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, parts in latent.items():
        for key, part in zip(("lora_A.weight", "lora_B.weight", "lora_A.scales", "lora_B.scales"), parts, strict=False):
            tensors[f"base_model.model.{name}.{key}"] = part.cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(adapter_config(config, base_model, list(latent)), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_latent(folder: Path, config: TrialConfig) -> dict[str, tuple[Tensor, ...]]:
    """The latent weights that `save_adapter` wrote for a trial: layer name -> A, B, and learned scales of both.

    Raises:
        ValueError: there are none, they are broken, or of another trial; the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        targets: list[str] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["target_modules"]
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or path}: no such file; the trial has no adapter") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an adapter: {str(error).splitlines()[0]}") from None
    keys = ("lora_A.weight", "lora_B.weight") + ("lora_A.scales", "lora_B.scales") * (
        config.quantizer == "double_binary"
    )
    names = {target: [f"base_model.model.{target}.{key}" for key in keys] for target in targets}
    expected = {name for each in names.values() for name in each}
    if expected != tensors.keys():
        raise ValueError(f"{path}: {min(expected ^ tensors.keys())} is missing, or not of a {config.quantizer} adapter")
    latent = {target: tuple(tensors[name] for name in each) for target, each in names.items()}
    for target, (a, b, *_) in latent.items():
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == config.rank:
            found = f"A {[*a.shape]} and B {[*b.shape]}"
            raise ValueError(
                f"{path}: {target}: found {found}; rank {config.rank} has A [{config.rank}, in], B [out, …]"
            )
    return latent


def bake(latent: Mapping[str, tuple[Tensor, ...]], config: TrialConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights that the forward pass sees: layer name -> A (rank, in), B (out, rank), float32 (or float64)."""
    from bitlora.quantizers import quantize

    baked = {}
    for name, (a, b, *scales) in latent.items():
        scale_a, scale_b = scales or (None, None)
        baked[name] = (
            quantize(config.quantizer, a, "A", config.granularity, scale_a),
            quantize(config.quantizer, b, "B", config.granularity, scale_b),
        )
    return baked


def save_baked_adapter(
    folder: Path, latent: Mapping[str, tuple[Tensor, ...]], config: TrialConfig, base_model: str
) -> None:
    """Write the adapter as an ordinary LoRA adapter, with its quantized weights; arguments as for `save_adapter`.

    Raises:
        ValueError: it has `int8` activations, which an ordinary LoRA adapter has not.
    """
    if config.activations != "full":
        raise ValueError(f"activations: {config.activations}: stock PEFT would run it on full activations")
    plain = config.model_copy(update={"quantizer": "none"})
    save_adapter(folder, bake(latent, config), plain, base_model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a trial goes on with beside its state (`bitlora.slot.SlotState`)."""

    step: int
    tokens: int
    seconds: float
    losses: list[float]
    """Train losses of the steps since the last evaluation; at an evaluated step, since the one before it."""
    first_loss: float


def save_checkpoint(folder: Path, state: SlotState, progress: Progress, config: TrialConfig, base: str) -> None:
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
    with replacing(folder / CHECKPOINT) as part:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part, metadata=about)


def load_checkpoint(folder: Path, config: TrialConfig, base: str) -> tuple[SlotState, Progress] | None:
    """What the trial in `folder` goes on from; None where there is no checkpoint.

    Raises:
        ValueError: there is one that is broken, or of another trial or base; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    from bitlora.optim import UNSCALED, LossScale
    from bitlora.slot import SlotState

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            latent, exp_avg, exp_avg_sq = (file.get_tensor(name) for name in ("latent", "exp_avg", "exp_avg_sq"))
        progress = Progress(**json.loads(about["progress"]))
        loss_scale = LossScale(*json.loads(about["loss_scale"])) if "loss_scale" in about else UNSCALED
        written_for = TrialConfig.model_validate_json(about["config"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from None
    for what, found, here in (("trial", written_for, config), ("base", about["base"], base)):
        if found != here:
            raise ValueError(f"{path}: the checkpoint of another {what}")
    return SlotState(progress.step, latent, exp_avg, exp_avg_sq, loss_scale), progress
