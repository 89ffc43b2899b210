"""Adapters to test with: shapes of SmolLM2-135M's layers, and a trial's configuration."""

from __future__ import annotations

from functools import partial
from typing import Any

from bitlora.base.info import AdaptedLayer, LayerShape
from bitlora.config.trial import TrialConfig

WIDTHS = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "o": (576, 576),
          "gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}  # fmt: skip
SMOLLM2 = [LayerShape(f"{layer}.{name}", *widths) for layer in range(30) for name, widths in WIDTHS.items()]


def of_rank(shapes: list[LayerShape], rank: int) -> list[AdaptedLayer]:
    """The layers of an adapter of one rank."""
    return [AdaptedLayer(shape.name, shape.in_features, shape.out_features, rank) for shape in shapes]


def exact(model: Any) -> Any:
    """`model`, computing in the dtype that was asked for: on CPUs with AVX-512 BF16 bitsandbytes has a product of its own
    for NF4 layers, in bfloat16, so that stock logits are 3e-3 off. And always as it is trained: in evaluation, on a CPU
    there alone, an 8-bit layer rounds its inputs."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            module.train = partial(_trains, module)
    return model.train(model.training)


def _trains(layer: Any, mode: bool = True) -> Any:
    layer.training = True
    return layer


def quantized(how: str, dtype: Any = "float32") -> dict[str, Any]:
    """transformers' options for a base that is quantized so, in bitsandbytes' own words."""
    from transformers import BitsAndBytesConfig

    options = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype},
        "int8": {"load_in_8bit": True},
    }
    return {"quantization_config": BitsAndBytesConfig(**options[how])} if how in options else {}


def trial(quantizer: str, **options: Any) -> TrialConfig:
    fixed = {
        "activations": "full",
        "rank": 4,
        "alpha": 7,
        "dropout": 0.0,
        "scaling": "lora",
        "learning_rate": 5e-3,
        "weight_decay": 0.0,
        "batch_size": 2,
        "micro_batch": None,
        "max_grad_norm": 1.0,
        "schedule": "constant",
        "warmup": 0.0,
        "floor": 0.0,
        "steps": 8,
        "eval_every": 8,
        "seed": 1,
    }
    return TrialConfig(**{**fixed, **options, "quantizer": quantizer})
