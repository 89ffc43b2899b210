"""The oracle: one trial alone, in a plain loop over stock PEFT layers and torch's AdamW, on padded batches.

It shares no code with the engine: the quantizers are written out again from their papers (`formulas`), straight-through by
`w + (q - w).detach()`; attention, padding and loss are transformers' and the textbook's. Batches and dropout masks are
handed to it.
"""

import math
from dataclasses import dataclass, field

import torch
from formulas import FORMULAS
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.nn import functional as F


def quantize_weight(w, quantizer, axis=None):
    """`axis`: what one scale runs over; None: the whole matrix."""
    if quantizer == "none":
        return w
    if axis is not None:
        slices = [quantize_weight(part, quantizer) for part in w.unbind(1 - axis)]
        return torch.stack(slices, 1 - axis)
    q = FORMULAS[quantizer].quantize(w)
    return w + (q - w).detach()


def double_binary_weight(w, scale):
    """A sign times its row's scale; both are trained."""
    signs = torch.where(w > 0, 1.0, -1.0).to(w.dtype)
    half = scale.to(torch.float16).to(scale.dtype)
    return (scale + (half - scale).detach()) * (w + (signs - w).detach())


def quantize_activations(x):
    high = x if x.dtype == torch.float64 else x.float()
    y = F.normalize(high, dim=-1) * high.shape[-1] ** -0.5
    scale = 127.0 / y.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    q = torch.clip(ROUND(y * scale), -128, 127) / scale
    return (y + (q - y).detach()).to(x.dtype)


def snapping_round(x):
    """Rounding that a last bit cannot tip at a tie: to a fine grid first, whose own borders lie nowhere special."""
    return torch.round(torch.round(x * 2**30) / 2**30)


ROUND = torch.round


class FakeQuantLinear(nn.Module):
    def __init__(self, linear, recipe, component, scale=None):
        """`component`: the axis of the matrix that its rank components lie along; `scale`: of double_binary."""
        super().__init__()
        self.weight, self.quantizer, self.int8 = linear.weight, recipe.quantizer, recipe.int8
        self.axis = component if recipe.component else None
        self.scale = None if scale is None else nn.Parameter(scale.clone())

    def forward(self, x):
        x = quantize_activations(x) if self.int8 else x
        if self.scale is not None:
            return F.linear(x, double_binary_weight(self.weight, self.scale))
        return F.linear(x, quantize_weight(self.weight, self.quantizer, self.axis))


class FakeQuantWeight(nn.Module):
    """Of a weight that PEFT multiplies by itself, as it does those of experts."""

    def __init__(self, recipe, component, scale=None):
        super().__init__()
        self.quantizer, self.axis = recipe.quantizer, component if recipe.component else None
        self.scale = None if scale is None else nn.Parameter(scale.clone())

    def forward(self, weight):
        if self.scale is not None:
            return double_binary_weight(weight, self.scale)
        return quantize_weight(weight, self.quantizer, self.axis)


class GivenDropout(nn.Module):
    """Dropout with a mask from outside: (tokens, width) over the batch's real tokens, in order."""

    def __init__(self, p):
        super().__init__()
        self.p, self.keep, self.real = p, None, None

    def forward(self, x):
        if self.keep is None:
            return x
        keep = torch.zeros(*self.real.shape, x.shape[-1], dtype=torch.bool)
        keep[self.real] = self.keep
        return torch.where(keep.view(x.shape), x / (1 - self.p), torch.zeros_like(x))


@dataclass
class Recipe:
    """What the oracle needs of a trial, in plain words."""

    quantizer: str = "none"
    component: bool = False
    int8: bool = False
    rank: int = 4
    alpha: float = 8
    dropout: float = 0.0
    rate: float = 1e-3
    weight_decay: float = 0.0
    max_norm: float = 1.0
    schedule: str = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    steps: int = 20
    micro: int | None = None
    rslora: bool = False
    betas: tuple = (0.9, 0.999)
    loraplus: float = 1.0
    peft: dict = field(default_factory=dict)
    """More of PEFT's `LoraConfig`."""


class PlainLoop:
    def __init__(self, model, recipe, latents, row_order=lambda n: list(range(n)), targets="all-linear", parameters=()):
        """`latents`: layer name -> A, B, scales of A, of B (None but with double_binary), magnitudes (None without DoRA):
        the values to start from; `targets`: PEFT's `target_modules`; `parameters`: those of the names whose weights it
        adapts as parameters."""
        self.recipe, self.row_order = recipe, row_order
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            use_rslora=recipe.rslora,
            target_modules=targets,
            target_parameters=[*parameters] or None,
            bias="none",
            task_type="CAUSAL_LM",
            **recipe.peft,
        )
        self.model = get_peft_model(model, config, autocast_adapter_dtype=False)
        self.model.train()
        modules = dict(self.model.base_model.model.named_modules())
        self.drops, self.params = {}, []
        for name, (a, b, scale_a, scale_b, magnitude) in latents.items():
            if name in parameters or f"{name}.weight" in parameters:
                self._give_parameter(modules, name, a, b, scale_a, scale_b)
                continue
            layer = modules[name]
            if magnitude is not None:
                weight = layer.lora_magnitude_vector["default"].weight
                weight.data = magnitude.reshape(weight.shape).clone()
                self.params.append(weight)
            for side, value, axis, scale in ((layer.lora_A, a, 1, scale_a), (layer.lora_B, b, 0, scale_b)):
                assert side["default"].weight.shape == value.shape
                side["default"].weight.data = value.clone()
                side["default"] = FakeQuantLinear(side["default"], recipe, axis, scale)
                self.params += [*side["default"].parameters()]
            layer.lora_dropout["default"] = self.drops[name] = GivenDropout(recipe.dropout)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        given = [part for values in latents.values() for part in values if part is not None]
        assert len(trained) == len(self.params) == len(given)
        self.optimizer = (
            create_loraplus_optimizer(
                self.model,
                torch.optim.AdamW,
                lr=recipe.rate,
                loraplus_lr_ratio=recipe.loraplus,
                betas=recipe.betas,
                loraplus_weight_decay=recipe.weight_decay,
            )
            if recipe.loraplus != 1
            else torch.optim.AdamW(self.params, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=recipe.betas)
        )
        self.shares = [group["lr"] / recipe.rate for group in self.optimizer.param_groups]
        self.taken = 0

    def _give_parameter(self, modules, name, a, b, scale_a, scale_b):
        owner, _, parameter = name.rpartition(".")
        layer = modules.get(name) or modules[owner]
        while parameter != layer.parameter_name != "weight":
            layer = layer.base_layer
        for side, value, axis, scale in ((layer.lora_A, a, 1, scale_a), (layer.lora_B, b, 0, scale_b)):
            linear = side["default"]
            assert linear.weight.shape == value.shape
            linear.weight.data = value.clone()
            nn.utils.parametrize.register_parametrization(linear, "weight", FakeQuantWeight(self.recipe, axis, scale))
            self.params += [*linear.parameters()]

    def _rate(self):
        r, t = self.recipe, self.taken + 1
        w = round(r.warmup * r.steps)
        if t <= w:
            return r.rate * t / w
        x = (t - w) / (r.steps - w + 1)  # the step after the last would be at the floor
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * x)), "linear": 1 - x, "constant": 1.0}[r.schedule]
        floor = 1.0 if r.schedule == "constant" else r.floor
        return r.rate * (floor + (1 - floor) * fall)

    def _sums(self, rows, masks=None):
        """Summed loss of each row. `rows`: (tokens, learn) lists; `masks`: layer -> (tokens of these rows, width)."""
        longest = max(len(tokens) for tokens, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        labels = torch.full((len(rows), longest), -100)
        for i, (tokens, learn) in enumerate(rows):
            n = len(tokens)
            ids[i, :n], real[i, :n] = torch.tensor(tokens), True
            labels[i, :n] = torch.where(torch.tensor(learn), torch.tensor(tokens), -100)
        for name, drop in self.drops.items():
            drop.keep, drop.real = (None, None) if masks is None else (masks[name], real)
        logits = self.model(input_ids=ids, attention_mask=real.long()).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        per_token = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
        return per_token.sum(1)

    def step(self, rows, masks=None):
        """One optimizer step on `rows`; gives the mean loss per completion token before it.

        `masks`: layer -> (tokens of all rows, width), in the order of the rows given.
        """
        order = self.row_order(len(rows))
        count = sum(sum(learn) for _, learn in rows)
        starts = [sum(len(t) for t, _ in rows[:i]) for i in range(len(rows))]
        size, total = self.recipe.micro or len(rows), 0.0
        self.optimizer.zero_grad()
        for k in range(0, len(rows), size):
            picked = order[k : k + size]
            part = None
            if masks is not None:
                where = [slice(starts[i], starts[i] + len(rows[i][0])) for i in picked]
                part = {name: torch.cat([mask[w] for w in where]) for name, mask in masks.items()}
            loss = self._sums([rows[i] for i in picked], part).sum() / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.params, self.recipe.max_norm)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = share * self._rate()
        self.optimizer.step()
        self.taken += 1
        return total

    def evaluate(self, rows):
        self.model.eval()
        with torch.no_grad():
            sums = self._sums(rows)
        self.model.train()
        return float(sums.sum()) / sum(sum(learn) for _, learn in rows)
