"""A loaded base made ready for an engine: a `MultiLoraLinear` in the place of every linear layer of its blocks, and
attention that knows its rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bitlora.base.describe import block_linears, targeted
from bitlora.base.load import load_model
from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig
from bitlora.forward import attention
from bitlora.forward.forward_plan import ForwardPlan, recomputation
from bitlora.forward.multi_lora import MultiLoraLinear


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: frozen, its linear layers ready for adapters."""

    model: Any
    targets: dict[str, MultiLoraLinear]
    """The layers that get adapters, in the model's order."""
    dtype: torch.dtype
    device: torch.device

    @property
    def vocab_size(self) -> int:
        """Of the language-model head."""
        return int(self.model.config.get_text_config().vocab_size)

    def logits(self, plan: ForwardPlan, tokens: Tensor, keep: Tensor) -> Tensor:
        """One forward pass.

        Args:
            plan: of the T tokens.
            tokens: (T,) int64.
            keep: (K,) int64, the places whose next token is to be predicted.

        Returns:
            (K, vocabulary) in the base's dtype.
        """
        with plan.bound():
            out = self.model(input_ids=tokens[None], position_ids=plan.positions, use_cache=False, logits_to_keep=keep)
        return out.logits[0]  # type: ignore[no-any-return]


def load_base(config: BaseConfig, dtype: torch.dtype, device: torch.device, checkpointing: bool = False) -> Base:
    """Load a base, frozen, with room for adapters.

    Args:
        dtype: what it computes in; the weights that are not quantized are kept in it.
        checkpointing: recompute the blocks' activations in the backward pass instead of keeping them.

    Raises:
        BaseError: see `read_model_config` and `targeted`; or NF4 asked for in float64.
    """
    model = load_model(config, dtype, device)
    model.config.use_cache = False
    base = inject_adapters(model, config, dtype, device, checkpointing)
    check_rows_apart(base)
    return base


ROWS_APART: Final = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far a row's logits may be from those of the row alone, in their standard deviations, by compute dtype."""


def check_rows_apart(base: Base) -> None:
    """Hold the logits of a row behind another against those of the row alone.

    Rows stand in one sequence, and attention alone knows them apart: a base that mixes tokens elsewhere (state-space,
    convolution, routed layers) would carry one trial into another.

    Raises:
        BaseError: they differ.
    """
    rows = [torch.arange(1, 1 + length, device=base.device) * 7 % base.vocab_size for length in (5, 8)]

    def logits(these: list[Tensor]) -> Tensor:
        plan = ForwardPlan.make([], [[len(row) for row in these]], [0], base.device)
        last = torch.arange(plan.tokens - len(these[-1]), plan.tokens, device=base.device)
        return base.logits(plan, torch.cat(these), last)

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


def _train_nothing_but_checkpoints(model: Any) -> None:
    """Put what transformers checkpoints into training mode, where alone it does so, and nothing else: not what drops out or
    draws at random inside. A block's own rates, which it hands to functions (OPT's `dropout` and `layerdrop`), are zeroed.
    """
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))
        if module.training:
            for name, rate in vars(module).items():
                if "drop" in name and isinstance(rate, float):
                    setattr(module, name, 0.0)


def inject_adapters(
    model: Any, config: BaseConfig, dtype: torch.dtype, device: torch.device, checkpointing: bool = False
) -> Base:
    """Put a `MultiLoraLinear` in the place of every linear layer of the model's blocks, and attention by rows; as PEFT's
    `inject_adapter_in_model` does it for one adapter."""
    linears = block_linears(model)
    names = set(targeted(linears, config))
    targets: dict[str, MultiLoraLinear] = {}
    for name, linear in linears.items():
        layer = MultiLoraLinear(linear, name, len(targets), dtype)
        model.set_submodule(name, layer)
        if name in names:
            targets[name] = layer
    attention.install(model)
    model.eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": recomputation})
        _train_nothing_but_checkpoints(model)
    return Base(model, targets, dtype, device)
