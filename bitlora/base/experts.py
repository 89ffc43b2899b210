"""Routed experts: transformers keeps each of their two matrices for all experts of a layer in a tensor of three axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """One matrix of each expert of a layer: what PEFT calls one of its `target_parameters`."""

    owner: Any
    """transformers' module of the experts."""
    parameter: str
    experts: int
    in_features: int
    out_features: int

    @property
    def weight(self) -> Tensor:
        """(experts, out, in), as a view where the base has it the other way round."""
        weight: Tensor = getattr(self.owner, self.parameter).detach()
        return weight.mT if self.owner.is_transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """(experts, out)."""
        if not self.owner.has_bias:
            return None
        bias: Tensor = getattr(self.owner, f"{self.parameter}_bias").detach()
        return bias

    def set_weight(self, weight: Tensor) -> None:
        """Put another (experts, out, in) in its place."""
        weight = weight.mT.contiguous() if self.owner.is_transposed else weight
        setattr(self.owner, self.parameter, nn.Parameter(weight, requires_grad=False))


def named_experts(model: nn.Module) -> dict[str, ExpertWeights]:
    """Those of all layers, by the names of their parameters in the model."""
    return {
        f"{name}.{weights.parameter}": weights
        for name, module in model.named_modules()
        for weights in expert_weights(module)
    }


def expert_weights(module: nn.Module) -> list[ExpertWeights]:
    """The matrices of a module of routed experts, in the order in which they are multiplied; none where it is no such
    module, or does not leave its products to transformers' `ExpertsInterface`."""
    owner: Any = module
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "num_experts")):
        return []
    found: list[ExpertWeights] = []
    for name in ("gate_up_proj" if owner.has_gate else "up_proj", "down_proj"):
        weight = getattr(module, name, None)
        if not isinstance(weight, Tensor) or weight.ndim != 3 or len(weight) != owner.num_experts or len(weight) < 2:
            return []
        experts, rows, columns = weight.shape
        inputs, outputs = (rows, columns) if owner.is_transposed else (columns, rows)
        found.append(ExpertWeights(module, name, experts, inputs, outputs))
    return found
