"""A loaded base made ready for an engine: a `MultiLoraLinear` in the place of every linear layer of its blocks, and
attention that knows its rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bitlora.base.describe import block_layers, choose_targets
from bitlora.base.experts import ExpertWeights
from bitlora.base.load import load_model
from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import LayerAdapter, TrialConfig, adapter_layers, refused_on_experts
from bitlora.forward import attention
from bitlora.forward.forward_plan import ForwardPlan, recomputation
from bitlora.forward.frozen import FrozenWeights
from bitlora.forward.head import Head
from bitlora.forward.multi_lora import LayerGroup, MultiLoraLinear, listening
from bitlora.forward.proof import Proof
from bitlora.forward.routed.experts import MultiLoraExperts, install_experts


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: frozen, its linear layers ready for adapters."""

    model: Any
    linears: dict[str, MultiLoraLinear]
    """The layers that may get adapters: all of the blocks, in the model's order."""
    targets: dict[str, MultiLoraLinear]
    """Those of `base.targets`, which get them where a trial does not say otherwise."""
    dtype: torch.dtype
    device: torch.device
    head: Head

    def adapter_layers(self, config: TrialConfig) -> dict[str, LayerAdapter]:
        """Name -> what a trial's adapter is there, for the layers that it is on, in the model's order.

        Raises:
            ValueError: it is on routed experts, and has what cannot be there.
        """
        found = adapter_layers(config, self.linears, self.targets)
        why = refused_on_experts(config.dropout, config.activations, config.init, config.dora)
        if why and any(self.linears[name].experts > 1 for name in found):
            raise ValueError(why)
        return {name: layer.of_each(self.linears[name].experts) for name, layer in found.items()}

    @property
    def vocab_size(self) -> int:
        """Of the language-model head."""
        return int(self.model.config.get_text_config().vocab_size)

    def hidden(self, plan: ForwardPlan, tokens: Tensor, keep: Tensor) -> Tensor:
        """One forward pass, up to the head.

        Args:
            plan: of the T tokens.
            tokens: (T,) int64, in the rows' order.
            keep: (K,) int64, the places, in that order, whose next token is to be predicted.

        Returns:
            (K, width) in the base's dtype, for `head`.
        """
        if plan.order is not None and plan.inverse is not None:
            tokens, keep = tokens[plan.order], plan.inverse[keep]
        with plan.bound():
            return self.head.hidden(keep, input_ids=tokens[None], position_ids=plan.positions)

    @property
    def values_bytes(self) -> int:
        """What `keep_values` takes of memory; 0 where nothing is quantized."""
        quantized = [layer for layer in self.linears.values() if layer.alone.quantized().state is not None]
        return sum(layer.in_features * layer.out_features for layer in quantized) * self.dtype.itemsize

    def keep_values(self, kept: bool = True) -> bool:
        """Keep the values of quantized weights in the compute dtype beside the codes, so that no pass dequantizes them; or
        no longer. No number hangs on it.

        Returns:
            Whether they were kept before.
        """
        before = any(layer.group.values is not None for layer in self.linears.values())
        for group in {layer.group for layer in self.linears.values()}:
            held = group.quantized()
            if held.state is None:
                continue
            group.values = held.with_values() if kept else None
            widths = [layer.out_features for layer in group.layers]
            parts = group.values.rows(widths) if group.values is not None else [None] * len(widths)
            for layer, part in zip(group.layers, parts, strict=True):
                layer.alone.values = part
        return before

    def logits(self, plan: ForwardPlan, tokens: Tensor, keep: Tensor) -> Tensor:
        """As `hidden`, and what the head makes of it: (K, vocabulary) in the base's dtype, all at once."""
        return self.head.logits(self.hidden(plan, tokens, keep))


def load_base(
    config: BaseConfig, dtype: torch.dtype, device: torch.device, checkpointing: bool = False, longest: int = 8
) -> Base:
    """Load a base, frozen, with room for adapters, and hold it against itself (`check_rows_apart`), where that was not done
    on this machine.

    Args:
        dtype: what it computes in; the weights that are not quantized are kept in it.
        checkpointing: recompute the blocks' activations in the backward pass instead of keeping them.
        longest: tokens of the longest row that it is to see.

    Raises:
        BaseError: see `read_model_config` and `choose_targets`; or a quantized one is asked for in float64; or see
            `check_rows_apart`.
    """
    model = load_model(config, dtype, device)
    model.config.use_cache = False
    proof = Proof.of(config, dtype, device, longest)
    if proof is not None and proof.stands():
        base = inject_adapters(model, config, dtype, device, checkpointing)
        share_inputs(base)
        return base
    rows = trial_rows(longest, model.config.get_text_config().vocab_size, device)
    alone = rows_alone(model, rows)
    base = inject_adapters(model, config, dtype, device, checkpointing)
    share_inputs(base)
    check_rows_apart(base, rows, alone)
    if proof is not None:
        proof.note()
    return base


def share_inputs(base: Base) -> None:
    """Let layers that are given one input be computed together, as seen in a run of the model in which they give zeros.

    Their weights move: each layer's own becomes a view of those of all.
    """
    plan = ForwardPlan.make([], [[4]], [0], base.device)
    tokens = torch.arange(4, device=base.device)
    try:
        with torch.no_grad(), listening() as heard:
            base.hidden(plan, tokens, tokens[-1:])
    except NotImplementedError:  # packs cannot hold this base: `check_rows_apart` says so
        return
    given: dict[tuple[int, int], list[MultiLoraLinear]] = {}
    for layer, x, version in heard.calls:
        given.setdefault((id(x), version), []).append(layer)
    for layers in given.values():
        if len(layers) > 1 and len({*layers}) == len(layers):
            frozen = FrozenWeights.together([layer.base for layer in layers], base.dtype)
            if frozen is not None:
                group = LayerGroup(tuple(layers), frozen)
                for layer in layers:
                    layer.group = group


ROWS_APART: Final = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""How far a row's logits may be from those of the row alone, root mean square over the vocabulary in their standard
deviations, by compute dtype. Sums in another order alone make 0.05 in bfloat16 and 0.005 in float16 over 30 layers."""
COMMON: Final = 3
"""Tokens that the rows of a base's check begin with in common."""


def trial_rows(longest: int, vocab_size: int, device: torch.device) -> list[Tensor]:
    """Two rows, one of `longest` tokens, whose first `COMMON` are equal: (length,) int64 each."""
    return [torch.arange(1, 1 + length, device=device) * 7 % vocab_size for length in (5, max(8, longest))]


def rows_alone(model: Any, rows: list[Tensor]) -> list[Tensor]:
    """The logits that `model`, as transformers has it, gives at the end of each row alone: (vocabulary,) each."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=row[None], use_cache=False).logits[0, -1].double() for row in rows]


def check_rows_apart(base: Base, rows: list[Tensor], alone: list[Tensor]) -> None:
    """Hold the logits of rows in one pass against the model's own of each row alone.

    Rows stand in one sequence, and attention alone knows them apart: a base that mixes tokens elsewhere (state-space,
    convolution), or does not attend as packs have it, would carry one trial into another. The pass has two slots; the rows
    of each share a prefix, and one of them is as long as rows can be.

    Args:
        rows, alone: `trial_rows` and `rows_alone`.

    Raises:
        BaseError: they differ; or the attention is not called once in each layer.
    """
    lengths = [len(row) for row in rows]
    spans = [lengths, lengths[::-1]]
    tokens: list[Tensor] = []
    ends: list[tuple[int, int]] = []  # of each row its place in `rows` and that of its last token in the pass
    for order in ([0, 1], [1, 0]):
        for number, which in enumerate(order):
            tokens.append(rows[which] if number == 0 else rows[which][COMMON:])
            ends.append((which, sum(map(len, tokens)) - 1))
    plan = ForwardPlan.make([], spans, [COMMON, COMMON], base.device)
    keep = torch.tensor([end for _, end in ends], device=base.device)
    try:
        with torch.no_grad(), attention.counted() as calls:
            packed = base.logits(plan, torch.cat(tokens), keep).double()
    except NotImplementedError as error:
        raise BaseError(f"base.model: {error}") from None
    layers = base.model.config.get_text_config().num_hidden_layers
    if calls.count != layers:
        raise BaseError(f"base.model: this base has {layers} layers and called packs' attention {calls.count} times")
    for (which, _), found in zip(ends, packed, strict=True):
        apart = float((found - alone[which]).square().mean().sqrt() / alone[which].std().clamp_min(1e-30))
        if not apart <= ROWS_APART[base.dtype]:
            raise BaseError(
                f"base.model: the logits of a row of {lengths[which]} tokens are others ({apart:.1g} standard deviations) "
                "beside other rows than alone: this base mixes tokens outside its attention, which packs cannot do"
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
    """Put a `MultiLoraLinear` in the place of every linear layer of the model's blocks, and attention by rows, and products
    of routed experts; as PEFT's `inject_adapter_in_model` does it for one adapter."""
    found = block_layers(model)
    targets = choose_targets(found, config, model)
    linears: dict[str, MultiLoraLinear] = {}
    experts: dict[str, MultiLoraExperts] = {}
    for name, layer in found.items():
        if isinstance(layer, ExpertWeights):
            linears[name] = experts[name] = MultiLoraExperts(layer, name, dtype)
        else:
            linears[name] = MultiLoraLinear(layer, name, len(linears) - len(experts), dtype)
            model.set_submodule(name, linears[name])
    attention.install(model)
    if experts:
        install_experts(model, experts)
    model.eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": recomputation})
        _train_nothing_but_checkpoints(model)
    return Base(model, linears, {name: linears[name] for name in targets}, dtype, device, Head(model))
