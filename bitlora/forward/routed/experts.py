"""Routed experts with an adapter for each slot and each expert.

transformers keeps a layer's experts as two tensors of three axes, and lets another implementation of their products be
registered by name. This one sends a token's copies to its experts as the base's router says (`routing.py` beside it)
and adds what the adapter of its slot makes of it there. The adapter is the one that PEFT has for such a tensor
(`target_parameters`): of rank r, A and B for each expert, which differ from each other.

Axes: P copies of tokens, E experts, S slots, R the largest rank, I in, O out.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from bitlora.base.experts import ExpertWeights
from bitlora.forward.forward_plan import bound_plan
from bitlora.forward.multi_lora import GroupAdapters, LayerGroup, MultiLoraLinear
from bitlora.forward.products import NO_SLOTS
from bitlora.forward.routed.routing import Routing, owners

EXPERTS: Final = "bitlora_experts"
"""The name under which `routed_experts` is known to transformers."""
LAYERS: Final = "bitlora_layers"
"""The attribute of a module of experts that has its two `MultiLoraExperts`."""


class MultiLoraExperts(MultiLoraLinear):
    """One matrix of each expert of a layer, with an adapter for each slot.

    What a `GroupAdapters` holds of it is A as (S, E * R, I) and B as (S, O, E * R); the numbers lie in there as
    (S, E, R, I) and (S, E, O, R), which is what is multiplied (`bitlora.engine.slots.layout.Kind.multiplied`).

    Args:
        name: that of the parameter in the model.
    """

    def __init__(self, weights: ExpertWeights, name: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.base = weights
        self.experts = weights.experts
        self.routes = id(weights.owner)
        self.in_features, self.out_features = weights.in_features, weights.out_features
        self.name = name
        self.index = -1  # nothing is dropped here
        self.dtype = dtype
        self.slots = NO_SLOTS
        self.alone = self.group = LayerGroup((self,))

    def forward(self, x: Tensor) -> Tensor:
        """Its copies of tokens are known to `routed` alone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{self.name} is called by its experts' own layer")

    def adapters(self) -> GroupAdapters | None:
        """Those of the slots that have tokens in the pass; None: none of them has an adapter here."""
        (part,) = self.alone.adapters or (None,)
        spans = bound_plan().spans
        return part if part is not None and any(part.slots[span.slot].rank for span in spans) else None

    def routed(self, x: Tensor, routing: Routing) -> Tensor:
        """(P, I) -> (P, O)."""
        anchor = None
        if not x.requires_grad and torch.is_grad_enabled():
            anchor = torch.empty(0, device=x.device, requires_grad=True)
        return _ExpertsAndAdapters.apply(x, anchor, self, routing, self.adapters())  # type: ignore[no-untyped-call, no-any-return]


def install_experts(model: Any, layers: dict[str, MultiLoraExperts]) -> None:
    """Make `model` (a transformers causal LM) compute its routed experts here.

    Args:
        layers: of all of them, by name.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    by_owner: dict[Any, dict[str, MultiLoraExperts]] = {}
    for layer in layers.values():
        by_owner.setdefault(layer.base.owner, {})[layer.base.parameter] = layer
    for owner, own in by_owner.items():
        object.__setattr__(owner, LAYERS, own)
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, routed_experts)
    model.set_experts_implementation(EXPERTS)


def routed_experts(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What transformers' experts do: (T, width) -> (T, width).

    Args:
        module: transformers' module of the experts.
        chosen: (T, copies) int64, the experts of each token.
        weights: (T, copies), of each in the sum.

    Raises:
        NotImplementedError: the layer is not given every token.
    """
    plan = bound_plan()
    first, second = getattr(module, LAYERS).values()
    if len(hidden) != plan.tokens:
        raise NotImplementedError(f"{first.name} is not called with every token, which packs do not know")
    part = first.adapters() or second.adapters()
    whose, slots, others = None, 1, False
    if part is not None:
        whose, slots = owners(plan, part.slots, hidden.device), len(part.a)
        others = any(part.slots[span.slot].place == slots for span in plan.spans)
    routing = Routing.make(chosen, module.num_experts, whose, slots, others)
    y = first.routed(routing.spread(hidden), routing)
    y = module._apply_gate(y) if module.has_gate else module.act_fn(y)  # noqa: SLF001
    y = second.routed(y, routing)
    if module.has_post_expert_norm:
        y = module.post_expert_norm(y)
    return routing.gathered(y * routing.placed(weights)).to(hidden.dtype)


class _ExpertsAndAdapters(torch.autograd.Function):
    """The products with a matrix of each expert, and with the adapters, with their gradients written out.

    Autograd is told of x alone; `anchor` makes it call `backward` also where x needs no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor | None,
        layer: MultiLoraExperts,
        routing: Routing,
        part: GroupAdapters | None,
    ) -> Tensor:
        weights: ExpertWeights = layer.base
        y = routing.by_expert().times(x, weights.weight.mT[:, None])
        if weights.bias is not None:
            y += weights.bias.index_select(0, routing.expert)
        ctx.layer, ctx.routing, ctx.part = layer, routing, part
        if part is None:
            return y
        products = routing.by_owner(_absent(part))
        own = x.to(part.a.dtype)
        z = products.times(own, _of_a(part.a, layer.experts).mT)
        products.add_times(y, z, _of_b(part.b[0], layer.experts).mT)
        ctx.save_for_backward(own, z)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        dy = grads[0].contiguous()
        layer: MultiLoraExperts = ctx.layer
        part: GroupAdapters | None = ctx.part
        routing: Routing = ctx.routing
        dx = None
        if ctx.needs_input_grad[0]:
            dx = routing.by_expert().times(dy, layer.base.weight[:, None])
        if part is None:
            return dx, None, None, None, None
        x, z = ctx.saved_tensors
        products = routing.by_owner(_absent(part))
        dy = dy.to(part.a.dtype)
        dz = products.times(dy, _of_b(part.b[0], layer.experts))
        products.add_outer(_of_b(part.grad_b[0], layer.experts), dy, z)
        products.add_outer(_of_a(part.grad_a, layer.experts), dz, x)
        if dx is not None:
            products.add_times(dx, dz, _of_a(part.a, layer.experts))
        return dx, None, None, None, None


def _absent(part: GroupAdapters) -> frozenset[int]:
    """The places of the slots that have room in this layer, and no adapter."""
    return frozenset(slot.place for slot in part.slots.values() if not slot.rank)


def _of_a(a: Tensor, experts: int) -> Tensor:
    """(S, E * R, I) -> (E, S, R, I), a view."""
    slots, rows, inputs = a.shape
    return a.view(slots, experts, rows // experts, inputs).transpose(0, 1)


def _of_b(b: Tensor, experts: int) -> Tensor:
    """(S, O, E * R) -> (E, S, O, R), a view of the same numbers, which lie expert by expert."""
    slots, outputs, columns = b.shape
    return b.view(slots, experts, outputs, columns // experts).transpose(0, 1)
