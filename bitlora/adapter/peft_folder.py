"""A trial on disk: its adapter in PEFT's layout, and the checkpoint that it goes on from.

Stock PEFT reads the adapter of a full-precision trial as the LoRA adapter it is. Latent weights of a quantized one would
be silently wrong there, so its configuration names a type that stock PEFT does not know and refuses; it is read by
`bitlora.adapter.peft_layers`. With the quantized weights in the place of
the latent ones it is an ordinary LoRA adapter (`save_lora_adapter`), written so that servers, which read one rank and one
alpha and nothing else of the scale, compute what PEFT does.

A checkpoint is one safetensors file: latent weights and AdamW's moments, in its header what else the trial goes on with.
One file is replaced in one step on a disk and is one object in a store; nothing in it can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from bitlora.adapter.latent import AdapterLatent, Latent, quantized_weights
from bitlora.adapter.servers import even, short_names
from bitlora.config.targets import of_pattern, pattern
from bitlora.config.trial import TrialConfig, as_written, layer_adapter
from bitlora.quantizers.weights import QUANTIZERS

PEFT_TYPE: Final = "BITLORA: install bitlora-sweeps and import bitlora.export"
"""All that PEFT says of a type that it does not know is its name: so the name says what makes it known."""
EARLIER_TYPE: Final = "BITLORA"
"""The type in the folders of version 0.1."""
PACKED_TYPE: Final = "BITLORA_PACKED: install bitlora-sweeps and use bitlora.export.load_packed_adapter"
"""Of an adapter whose weights are not PEFT's tensors but codes (`bitlora.adapter.codes_file`)."""
EARLIER_PACKED_TYPE: Final = "BITLORA_PACKED"
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
KEYS: Final = ("lora_A.weight", "lora_B.weight", "lora_A.scales", "lora_B.scales", "lora_magnitude_vector")
"""How the parts of a layer (`bitlora.adapter.latent.Latent`) are called in PEFT's files, in their order."""
MAGNITUDE: Final = KEYS[-1]
"""Of DoRA: (out,) in the files."""

FUSED: Final = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that PEFT (0.21.2) takes for routed experts' in a list of modules, over bases that have such experts."""


def adapter_config(
    config: TrialConfig, base_model: str, targets: list[str], experts: Collection[str] = (), routed: bool = False
) -> dict[str, Any]:
    """The adapter's configuration in PEFT's keys, with the quantizer and the activations beside them.

    Args:
        experts: those of `targets` that are routed experts'.
        routed: the base has routed experts, also where none is among `targets`.
    """
    config = as_written(config)
    spelled = {name: as_parameter(name, experts, routed) for name in targets}
    meant = [name for name in spelled.values() if name is not None]
    parameters = {"target_parameters": meant} if meant else {}
    plain = config.quantizer == "none" and config.activations == "full"
    described = {
        "peft_type": "LORA" if plain else PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.scaling == "rslora",
        **_patterns(config, {name: own or name for name, own in spelled.items()}),
        "target_modules": [name for name in targets if spelled[name] is None],
        **parameters,
        "bias": "none",
        "inference_mode": True,
    }
    if not plain:
        described |= {
            "quantizer": config.quantizer,
            "granularity": config.granularity,
            "activations": config.activations,
        }
    return described | ({"use_dora": True} if config.dora else {})


def as_parameter(name: str, experts: Collection[str], routed: bool = False) -> str | None:
    """What PEFT calls a target where it is one of its `target_parameters`; None: it is a module of its own.

    Routed experts are. Beside them so is the weight of a linear layer whose name PEFT would take for theirs: its adapter
    is the same.
    """
    if name in experts:
        return name
    return f"{name}.weight" if (experts or routed) and name.rpartition(".")[2] in FUSED else None


def adapted_experts(latent: AdapterLatent, config: TrialConfig) -> frozenset[str]:
    """The layers of an adapter that are routed experts': A has the rank's rows for each of them."""
    kept = as_written(config)
    return frozenset(name for name, layer in latent.items() if len(layer.a) != layer_adapter(kept, name).rank)


def tensor_place(name: str, experts: Collection[str]) -> str:
    """The module of PEFT's that a target's A and B are in. The tensors of one module of experts are wrapped in each other,
    the last of them outermost."""
    if name not in experts:
        return name
    owner = name.rpartition(".")[0]
    together = sorted((each for each in experts if each.rpartition(".")[0] == owner), key=_as_multiplied)
    return owner + ".base_layer" * (len(together) - 1 - together.index(name))


def _as_multiplied(name: str) -> bool:
    return name.endswith(".down_proj")


def _patterns(config: TrialConfig, targets: dict[str, str]) -> dict[str, dict[str, float]]:
    """Rank and alpha of the layers where they are others, by their whole names: keys of files are sorted, by PEFT too, and
    of keys that match one layer the first counts.

    Args:
        targets: name -> what PEFT calls it.
    """
    found: dict[str, dict[str, float]] = {}
    for key, text, usual in (
        ("rank_pattern", config.rank_pattern, config.rank),
        ("alpha_pattern", config.alpha_pattern, config.alpha),
    ):
        numbers = {name: of_pattern(pattern(text), name, usual) for name in targets}
        if own := {targets[name]: number for name, number in numbers.items() if number != usual}:
            found[key] = own
    return found


def save_adapter(
    folder: Path, latent: AdapterLatent, config: TrialConfig, base_model: str, step: int | None = None
) -> None:
    """Write the latent weights into `folder`, which exists and is empty (`bitlora.files.writing.write_folder`).

    Args:
        step: at which they were so; it stands in the header of the weights' file.
    """
    experts = adapted_experts(latent, config)
    _write(folder, latent, experts, adapter_config(config, base_model, list(latent), experts), step)


def _write(
    folder: Path, latent: AdapterLatent, experts: Collection[str], described: dict[str, Any], step: int | None = None
) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, layer in latent.items():
        for key, part in zip(KEYS, layer, strict=True):
            if part is not None:
                whole = part.flatten() if key == MAGNITUDE else part
                tensors[f"base_model.model.{tensor_place(name, experts)}.{key}"] = whole.cpu().contiguous()
    at = {} if step is None else {"step": str(step)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **at})
    (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_latent(folder: Path, config: TrialConfig) -> dict[str, Latent]:
    """The latent weights that `save_adapter` wrote for a trial: layer name -> A, B, and learned scales of both.

    Raises:
        ValueError: there are none, they are broken, or of another trial; the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        parameters: list[str] = described.get("target_parameters") or []
        experts = {name for name in parameters if not name.endswith(".weight")}
        targets: list[str] = [*described["target_modules"], *(name.removesuffix(".weight") for name in parameters)]
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or path}: no such file; the trial has no adapter") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an adapter: {str(error).splitlines()[0]}") from None
    learned = QUANTIZERS[config.quantizer].learns_scales
    keys = [*KEYS[:2], *(KEYS[2:4] if learned else (None, None)), MAGNITUDE if config.dora else None]
    names = {
        target: [key and f"base_model.model.{tensor_place(target, experts)}.{key}" for key in keys]
        for target in targets
    }
    expected = {name for each in names.values() for name in each if name}
    if expected != tensors.keys():
        raise ValueError(f"{path}: {min(expected ^ tensors.keys())} is missing, or not of a {config.quantizer} adapter")
    latent = {target: Latent._make(name and tensors[name] for name in each) for target, each in names.items()}
    for target, (a, b, _, _, magnitude) in latent.items():
        rank = layer_adapter(as_written(config), target).rank
        if a.ndim == b.ndim == 2 and target in experts and len(a) % rank == 0:
            rank = len(a)
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            found = f"A {[*a.shape]} and B {[*b.shape]}"
            raise ValueError(f"{path}: {target}: found {found}; rank {rank} has A [{rank}, in], B [out, …]")
        if magnitude is not None and magnitude.shape != b.shape[:1]:
            raise ValueError(f"{path}: {target}: found magnitudes {[*magnitude.shape]}; give [{b.shape[0]}]")
    return {
        target: layer if layer.magnitude is None else layer._replace(magnitude=layer.magnitude[:, None])
        for target, layer in latent.items()
    }


def save_lora_adapter(
    folder: Path,
    latent: AdapterLatent,
    config: TrialConfig,
    base_model: str | None,
    revision: str | None = None,
    modules: Iterable[str] = (),
    routed: bool = False,
) -> None:
    """Write the adapter as an ordinary LoRA adapter, with its quantized weights, for PEFT and for servers.

    Of routed experts' adapters rank, alpha and names stay as they were trained.

    Args:
        base_model: the hub's id of the base; None where it has none.
        revision: the hub's commit of it.
        modules: the names of all modules of the base, for short target names; without them names are whole.
        routed: the base has routed experts, also where the adapter is on none of them.

    Raises:
        ValueError: it has `int8` activations, which an ordinary LoRA adapter has not.
    """
    if config.activations != "full":
        raise ValueError(f"activations: {config.activations}: stock PEFT would run it on full activations")
    experts = adapted_experts(latent, config)
    plain = as_written(config).model_copy(update={"quantizer": "none"})
    weights = quantized_weights(latent, config)
    made = {name: Latent(layer.a, layer.b, magnitude=layer.magnitude) for name, layer in weights.items()}
    if not experts:
        made, plain = even(made, plain)
    described = adapter_config(plain, "", list(made), experts, routed)
    described |= {"base_model_name_or_path": base_model, "revision": revision}
    if described["lora_alpha"] == int(described["lora_alpha"]):
        described["lora_alpha"] = int(described["lora_alpha"])  # PEFT's type for it
    every = frozenset(modules)
    if every and not experts:
        described["target_modules"] = short_names(described["target_modules"], every)
    _write(folder, made, experts, described)
