"""What can be known of a base without loading its weights, and which of its layers get adapters."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitlora.base.info import BaseInfo, LayerShape
from bitlora.base.locate import BaseError, _hub, locate
from bitlora.config.sections import BaseConfig


def read_model_config(model: str) -> tuple[Any, str]:
    """The model's transformers configuration and its revision.

    Raises:
        BaseError: there is no such model, or the hub cannot be reached; each said apart.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    place = locate(model)
    file = Path(place) / "config.json"
    if not Path(place).is_dir():
        file = Path(_hub(model, lambda: hf_hub_download(place, "config.json")))
    try:
        config = AutoConfig.from_pretrained(file.parent)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"base.model: {file}: {str(error).splitlines()[0]}") from None
    hub_commit = file.parent.name if not Path(place).is_dir() else ""
    return config, hub_commit or hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of the model's blocks, by name: those inside a numbered list of layers, so never the head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def targeted(linears: dict[str, nn.Linear], config: BaseConfig) -> list[str]:
    """The names of the layers that get adapters.

    Raises:
        BaseError: a target matches nothing; the nearest name is given.
    """
    if not linears:
        raise BaseError(f"base.model: {config.model} has no linear layers in its blocks")
    if config.targets == "all-linear":
        return list(linears)
    ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
    for target in config.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            near = get_close_matches(target, ends, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ends)}"
            raise BaseError(f"base.targets: {target!r} matches no linear layer of {config.model}; {hint}")
    return [name for name in linears if any(f".{name}".endswith(f".{target}") for target in config.targets)]


def describe_base(config: BaseConfig) -> BaseInfo:
    """What can be known of a base without loading its weights.

    Raises:
        BaseError: see `read_model_config` and `targeted`.
    """
    from transformers import AutoModelForCausalLM

    model_config, revision = read_model_config(config.model)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
    except ValueError as error:
        raise BaseError(f"base.model: {config.model} is no causal LM: {str(error).splitlines()[0]}") from None
    linears = block_linears(model)
    shapes = tuple(LayerShape(n, linears[n].in_features, linears[n].out_features) for n in targeted(linears, config))
    params = sum(p.numel() for p in model.parameters())
    return BaseInfo(
        config.model, config.quantization, revision, shapes, model_config.get_text_config().vocab_size, params
    )
