"""What an engine would take of memory, from shapes alone: the base is built without weights, and one pass over it counts
what PyTorch keeps for the backward pass. An estimate: allocators round, and kernels have work space.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bitlora.base.describe import block_linears, read_model_config
from bitlora.base.linears import features
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.engine.engine import Engine
from bitlora.engine.gauge import held
from bitlora.engine.memory import LongestRow, MemoryNeeds, copied_bytes, head_bytes
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.head import CHUNK_ROWS
from bitlora.forward.inject import Base, inject_adapters

META: Final = torch.device("meta")
BYTES: Final = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Of a quantized weight: four bits, and a float32 scale for 64; eight, scales of rows aside."""
DOUBLE_BYTES: Final = 0.5 + (1 + 4 / 256) / 64
"""With double quantization: the scale is a byte, and a float32 for 256 of them."""


def estimate(
    config: BaseConfig,
    dtype: torch.dtype,
    device: torch.device,
    checkpointing: bool,
    widest: TrialConfig,
    longest: LongestRow,
) -> MemoryNeeds:
    """What an engine with trials like `widest` over this base would take on `device`.

    Raises:
        Exception: whatever a model raises that cannot be run without weights.
    """
    from transformers import AutoModelForCausalLM

    found = read_model_config(config.model, config.revision)
    with META:
        model = AutoModelForCausalLM.from_config(found.config, dtype=dtype)
    model.config.use_cache = False
    weights = _base_bytes(model, config, dtype)
    base = inject_adapters(model, config, dtype, META)
    engine = Engine(base, 1)
    engine.attach(widest)
    kept = [_kept_bytes(base, longest, rows) for rows in (1, 2)]
    token = (kept[1] - kept[0]) / longest.tokens
    if widest.dropout:
        # a byte for each entry of a mask
        token += sum(base.linears[name].in_features for name in base.adapter_layers(widest))
    text = found.config.get_text_config()
    if checkpointing:  # of each block its input, of one block all, again in the backward pass
        token = text.hidden_size * text.num_hidden_layers * dtype.itemsize + token / text.num_hidden_layers
    place = engine.slots[0]
    # Without gradients a layer's largest activations are there, and what the block was given.
    passing = 4 * text.hidden_size + 3 * max(layer.out_features for layer in base.targets.values())
    return MemoryNeeds(
        base=held(device) + weights + CHUNK_ROWS * head_bytes(base),
        slot=float(place.nbytes + copied_bytes(place)),
        token=token + longest.learned / longest.tokens * base.head.width * dtype.itemsize,
        eval_token=float(passing * dtype.itemsize),
        row=longest.tokens,
    )


def _base_bytes(model: Any, config: BaseConfig, dtype: torch.dtype) -> float:
    """Of the weights, and of the largest layer once more where it is dequantized for each product."""
    everything: float = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if config.quantization == "none":
        return everything
    bytes_ = DOUBLE_BYTES if config.double_quantization else BYTES[config.quantization]
    sizes = [
        math.prod(features(linear)) for linear in block_linears(model).values()
    ]  # experts are no layers of bitsandbytes
    return everything - sum(sizes) * (dtype.itemsize - bytes_) + 2 * max(sizes) * dtype.itemsize


def _kept_bytes(base: Base, longest: LongestRow, rows: int) -> int:
    """What is kept of a forward pass for the backward pass."""
    batch = longest.rows(rows, base.vocab_size)
    count = len(batch.tokens)
    plan = ForwardPlan.make([Span(0, 0, count)], [batch.lengths], [0], META)
    learned = torch.empty(rows * longest.learned, dtype=torch.long, device=META)
    with _counting(base) as kept:
        base.hidden(plan, torch.empty(count, dtype=torch.long, device=META), learned)
    return sum(storage.nbytes() for storage in kept.values())


@contextlib.contextmanager
def _counting(base: Base) -> Iterator[dict[StorageWeakRef, Any]]:
    """Gives the storages that autograd keeps meanwhile, each once, without those of the base."""
    own = {StorageWeakRef(parameter.untyped_storage()) for parameter in base.model.parameters()}
    kept: dict[StorageWeakRef, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in own:
            kept[key] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
