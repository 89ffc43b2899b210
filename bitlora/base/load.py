"""A base and its tokenizer as transformers has them: frozen, in NF4, in 8 bits or in its own dtype."""

from __future__ import annotations

import threading
from typing import Any, Final

import torch

from bitlora.base.locate import BaseError, _hub
from bitlora.base.quantized import keep, load_kept, quantized_place
from bitlora.base.revision import pinned, weights_revision
from bitlora.config.sections import BaseConfig, Dtype

_ONE_AT_A_TIME: Final = threading.RLock()
"""transformers 5.24 ties no weights while it loads, and says so in its own class: of two threads that load at once the
second finds that, and leaves it so for the rest of the process (findings/transformers-loads-in-threads-untie-heads.sh)."""


def import_bitsandbytes() -> None:
    """Import bitsandbytes, and not PyTorch's code generator with it: that takes three times as long, and is for functions
    of bitsandbytes that packs do not call (optimizers, and quantization on devices without kernels). They compute the same
    without it."""
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("eager")  # of the functions that are handed to `torch.compile` at import
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compiler.set_default_backend(before)


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


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The tokenizer of `model` (transformers' `PreTrainedTokenizerBase`).

    Args:
        revision: `bitlora.base.info.BaseInfo`'s; None: whatever is there.

    Raises:
        BaseError: it has none, it is of another revision, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    place, options = pinned(model, revision)
    try:
        return _hub(model, lambda: AutoTokenizer.from_pretrained(place, **options))
    except (OSError, ValueError) as error:
        if isinstance(error, BaseError):
            raise
        raise BaseError(f"base.model: no tokenizer in {model}: {str(error).splitlines()[0]}") from None


def load_model(config: BaseConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a base as transformers has it, frozen: what a pack trains over, and what an adapter is used over. It is of
    `config.revision`, where that is given. Layers in 8 bits leave their inputs whole (`bitlora.base.eight_bits`).

    Raises:
        BaseError: there is no such model or it is of another revision, the hub cannot be reached, or a quantized one is
            asked for in float64.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
    if dtype == torch.float64:
        options["experts_implementation"] = "eager"  # torch's grouped products know no float64
    if config.quantization != "none":
        if dtype == torch.float64:
            raise BaseError("train.dtype: float64 needs base.quantization: none")
        import_bitsandbytes()
    if config.quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=config.double_quantization,
            bnb_4bit_quant_storage=config.quant_storage,
        )
    place, revision = pinned(config.model, config.revision)
    weights = weights_revision(config.model, config.revision) if "quantization_config" in options else None
    kept = None if weights is None else quantized_place(config.model, weights, dtype, config.quantized_as)
    with _ONE_AT_A_TIME:
        model = load_kept(kept, {name: options[name] for name in ("dtype", "device_map")}) if kept is not None else None
        if model is None:
            model = _hub(config.model, lambda: AutoModelForCausalLM.from_pretrained(place, **options, **revision))
            if kept is not None:
                keep(model, kept)
    if config.quantization == "int8":
        from bitlora.base.eight_bits import leave_inputs_whole

        leave_inputs_whole(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX-512 BF16 bitsandbytes' own product is in bfloat16, whatever was asked for, and repacks the
            # weights in place: dequantizing them afterwards gives garbage.
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)
