"""What servers of adapters read of an ordinary LoRA adapter's folder in PEFT's layout, so that it is written for all of
them at once: vLLM, SGLang and LoRAX, as of November 2026.

All take `r` and `lora_alpha` for every layer. Of `rank_pattern` and `alpha_pattern` only vLLM knows, in 0.33.0, SGLang
passes over `use_rslora` (its scale is then sqrt(r) too small), LoRAX stacks a kind of layer over all blocks, so that ranks
must not differ. Nothing of that is an error there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from bitlora.adapter.latent import Latent
from bitlora.config.targets import NO_PATTERN, of_pattern, pattern
from bitlora.config.trial import TrialConfig

if TYPE_CHECKING:
    from torch import Tensor

VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
NUMBER: Final = re.compile(r"(^|\.)\d+(\.|$)")
"""In a name: which of a list of modules it is."""


def vllm_rank(rank: int) -> int | None:
    """The least `--max-lora-rank` with which vLLM takes an adapter of this rank; None: there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def hindrances(described: dict[str, Any]) -> list[str]:
    """What of an exported adapter the servers cannot do, a sentence each; nothing where all three take it as it is.

    Args:
        described: its `adapter_config.json`.
    """
    if described.get("use_dora"):
        return [
            "The adapter is DoRA's, and none of the three has its magnitudes: vLLM refuses it, LoRAX would leave them out "
            "without a word. Serve what `bitlora export --to merged` writes."
        ]
    if described.get("target_parameters"):
        return [
            "The adapter is on routed experts, or beside them, as PEFT's target_parameters: not held against what these "
            "servers read. "
            "Serve what `bitlora export --to merged` writes."
        ]
    found = []
    if vllm_rank(described["r"]) is None:
        found.append(f"Its rank is {described['r']}, and vLLM takes {VLLM_RANKS[-1]} at most.")
    if any(NUMBER.search(name) for name in described["target_modules"]):
        found.append(
            "LoRAX passes over a kind of layer (q_proj, say) on which not every block has an adapter, without a word; this "
            "one names its layers one by one."
        )
    if described["base_model_name_or_path"] is None:
        found.append(
            "LoRAX asks for the base of an adapter, and on the hub there is none that is known: write what --model-id is "
            "into base_model_name_or_path in adapter_config.json."
        )
    return found


def even(layers: dict[str, Latent], config: TrialConfig) -> tuple[dict[str, Latent], TrialConfig]:
    """The same adapter with one rank and one alpha for all layers, and without rsLoRA: what all readers agree about.

    A layer of smaller rank gets zeros, one with another scale has the difference in its B.

    Args:
        layers: weights in full precision.
        config: of an adapter as it is written (`bitlora.config.trial.as_written`), in full precision.
    """
    ranks, alphas = pattern(config.rank_pattern), pattern(config.alpha_pattern)
    own = {name: (int(of_pattern(ranks, name, config.rank)), of_pattern(alphas, name, config.alpha)) for name in layers}
    over = math.sqrt if config.scaling == "rslora" else float
    highest = max(rank for rank, _ in own.values())
    ((usual_rank, usual_alpha), _), *_ = Counter(own.values()).most_common(1)
    made = {}
    for name, layer in layers.items():
        rank, alpha = own[name]
        times = (alpha / over(rank)) / (usual_alpha / over(usual_rank))
        a, b = _longer(layer.a, 0, highest), _longer(layer.b, 1, highest)
        made[name] = layer._replace(a=a, b=b if times == 1 else b * times)
    shape = {"rank": highest, "alpha": usual_alpha * (highest / over(usual_rank)), "scaling": "lora"}
    return made, config.model_copy(update={**shape, "rank_pattern": NO_PATTERN, "alpha_pattern": NO_PATTERN})


def _longer(part: Tensor, axis: int, length: int) -> Tensor:
    """With zeros at its end, along `axis`."""
    import torch

    more = length - part.shape[axis]
    zeros = [more if number == axis else size for number, size in enumerate(part.shape)]
    return part if not more else torch.cat([part, part.new_zeros(zeros)], axis)


def short_names(targets: Collection[str], modules: Collection[str]) -> list[str]:
    """The shortest ends of names by which PEFT finds the targets, and nothing else among a base's modules; where each end
    without a number reaches another module too, the whole name.

    Args:
        targets: names of modules.
        modules: names of all modules of the base.
    """
    others = {end for name in modules if name not in targets for end in _ends(name)}

    def short(name: str) -> str:
        return next((end for end in _ends(name) if end not in others and not NUMBER.search(end)), name)

    return sorted({short(name) for name in targets})


def _ends(name: str) -> list[str]:
    """What PEFT finds a module by, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
