"""What can be known of a base without loading its weights, and which of its layers get adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitlora.base.admission import admit
from bitlora.base.experts import ExpertWeights, expert_weights, named_experts
from bitlora.base.info import BaseInfo, LayerShape
from bitlora.base.linears import features, is_linear
from bitlora.base.locate import BaseError, _hub
from bitlora.base.revision import config_digest, local_revision, pinned
from bitlora.config.sections import BaseConfig
from bitlora.config.targets import ALL, EXPERTS_ONLY, TargetChoice, targeted, unmatched


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """The configuration of a base, and which base that is."""

    config: Any
    """transformers'."""
    revision: str
    """What `base.revision` comes to: a branch or a tag is a commit from here on."""
    config_digest: str
    """`bitlora.base.info.BaseInfo`."""


def read_model_config(model: str, revision: str | None = None) -> FoundConfig:
    """The model's configuration and its revision.

    Args:
        revision: of the hub a branch, tag or commit; of a folder or a package what it must be; None: what is there.

    Raises:
        BaseError: there is no such model or revision, or the hub cannot be reached; each said apart.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    place, options = pinned(model, revision)
    local = Path(place).is_dir()
    file = Path(place) / "config.json"
    if not local:
        file = Path(_hub(model, lambda: hf_hub_download(place, "config.json", revision=options.get("revision"))))
    try:
        config = AutoConfig.from_pretrained(file.parent)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"base.model: {file}: {str(error).splitlines()[0]}") from None
    if not local:
        return FoundConfig(config, file.parent.name, "")
    return FoundConfig(config, local_revision(model, file.parent), config_digest(file.parent))


def block_linears(model: Any) -> dict[str, nn.Module]:
    """Every linear layer of the text decoder's blocks, by its name in the model: those inside a numbered list of layers, so
    never the head; and of a model that sees images or hears, never those that do it.

    Args:
        model: transformers' causal LM.
    """
    text = {id(module) for module in model.get_decoder().modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and id(module) in text and any(part.isdigit() for part in name.split("."))
    }


def block_experts(model: Any) -> dict[str, ExpertWeights]:
    """The matrices of the text decoder's routed experts that can have adapters, by their names in the model."""
    text = {id(module) for module in model.get_decoder().modules()}
    return {name: weights for name, weights in named_experts(model).items() if id(weights.owner) in text}


def block_layers(model: Any) -> dict[str, nn.Module | ExpertWeights]:
    """All that can have an adapter, by its name, in the model's order: `block_linears` and `block_experts`."""
    found: dict[str, nn.Module | ExpertWeights] = {**block_linears(model), **block_experts(model)}
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], order.get(item[0].rpartition(".")[0], 0))))


def expert_params(model: Any) -> int:
    """Parameters of the text decoder's routed experts that cannot have adapters: transformers keeps those of a layer in one
    tensor of three axes."""
    return sum(
        parameter.numel()
        for module in model.get_decoder().modules()
        if not isinstance(module, nn.Conv1d) and not expert_weights(module)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 3
    )


def choose_targets(layers: Mapping[str, nn.Module | ExpertWeights], config: BaseConfig, model: Any) -> list[str]:
    """The names of the layers that `base.targets` is about.

    Raises:
        BaseError: see `check_targets`; or there are no linear layers.
    """
    if not layers:
        raise BaseError(f"base.model: {config.model} has no linear layers in its blocks to adapt")
    check_targets("base.targets", config.targets, list(layers), expert_share(model))
    return targeted(config.targets, layers)


def expert_share(model: Any) -> float:
    """Which share of the model's parameters are routed experts that cannot have adapters."""
    every: int = sum(parameter.numel() for parameter in model.parameters())
    return expert_params(model) / every


def check_targets(key: str, text: str, linears: Sequence[str], experts: float) -> None:
    """Hold a text about targets against a base.

    Args:
        key: where it stands in the spec.
        linears: the names of all that can have adapters in the base's blocks.
        experts: `expert_share`.

    Raises:
        BaseError: a part of it matches no layer; the nearest name is given. Or it would leave out what it seems to name:
            routed experts.
    """
    kinds = {ALL, "mlp", EXPERTS_ONLY} & {*TargetChoice.parse(text).names}
    if experts and kinds:
        ends = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears)
        raise BaseError(
            f"{key}: {min(kinds)}; {experts:.0%} of the parameters of the base are routed experts, which this class of "
            f"models keeps where adapters do not reach them; name the layers that are to have them: [{', '.join(ends)}]"
        )
    if why := unmatched(text, linears):
        raise BaseError(f"{key}: {why}")


def all_modules(model: str, revision: str | None = None) -> tuple[list[str], bool]:
    """The names of all modules of a base, and whether it has routed experts.

    Raises:
        BaseError: see `read_model_config`; or it is no causal LM.
    """
    found = _without_weights(model, read_model_config(model, revision))
    return [name for name, _ in found.named_modules() if name], bool(named_experts(found))


def _without_weights(name: str, found: FoundConfig) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):  # in bfloat16: torch's grouped products of experts take nothing else there
            return AutoModelForCausalLM.from_config(found.config, dtype=torch.bfloat16)
    except ValueError as error:
        raise BaseError(f"base.model: {name} is no causal LM: {str(error).splitlines()[0]}") from None


def describe_base(config: BaseConfig, longest: int | None = None) -> BaseInfo:
    """What can be known of a base without loading its weights.

    Args:
        longest: tokens of the longest row that it is to see.

    Raises:
        BaseError: see `read_model_config`, `bitlora.base.admission.admit` and `choose_targets`.
    """
    found = read_model_config(config.model, config.revision)
    model = _without_weights(config.model, found)
    admit(model, config.model, longest)
    layers = block_layers(model)
    targets = tuple(choose_targets(layers, config, model))
    shapes = tuple(
        LayerShape(name, layer.in_features, layer.out_features, experts=layer.experts)
        if isinstance(layer, ExpertWeights)
        else LayerShape(name, *features(layer))
        for name, layer in layers.items()
    )
    params = sum(p.numel() for p in model.parameters())
    vocab_size = found.config.get_text_config().vocab_size
    return BaseInfo(
        config.model,
        config.quantized_as,
        found.revision,
        shapes,
        targets,
        vocab_size,
        params,
        found.config_digest,
        expert_share(model),
    )
