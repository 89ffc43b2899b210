"""What the product takes from torch that nobody promised it: what AdamW keeps, seeds, and autograd's smaller rules.

A failure shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import inspect
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint


def _optimizer(latent: Tensor) -> torch.optim.AdamW:
    """As `bitlora.engine.slots.optim.make_optimizer`: over a vector that autograd knows nothing of."""
    optimizer = torch.optim.AdamW([latent], lr=1e-2, weight_decay=0.1, fused=True)
    latent.grad = torch.zeros_like(latent)
    return optimizer


def _step(optimizer: torch.optim.AdamW, latent: Tensor, number: int) -> None:
    assert latent.grad is not None
    latent.grad.copy_(torch.sin(torch.arange(len(latent)) + number))
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_adamw_keeps(dtype: torch.dtype) -> None:
    """bitlora.engine.slots.slot.Slot.state: nothing of a parameter before its first step, then `step`, `exp_avg` and
    `exp_avg_sq`, under the tensor itself; anything more would be lost in a checkpoint."""
    latent = torch.linspace(-1, 1, 6, dtype=dtype)
    optimizer = _optimizer(latent)
    assert not optimizer.state.get(latent)
    _step(optimizer, latent, 0)
    moments = optimizer.state.get(latent)
    assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert (moments["step"].dtype, moments["step"].shape, float(moments["step"])) == (
        torch.float32,
        torch.Size([]),
        1.0,
    )
    assert moments["exp_avg"].dtype == moments["exp_avg_sq"].dtype == dtype
    assert not latent.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_goes_on_from_what_it_kept(dtype: torch.dtype) -> None:
    """bitlora.engine.slots.slot.Slot.restore: a state that is put under the tensor is gone on from, to the last bit."""
    whole = torch.linspace(-1, 1, 64, dtype=dtype)
    optimizer = _optimizer(whole)
    for number in range(3):
        _step(optimizer, whole, number)
    again = whole.clone()
    other = _optimizer(again)
    kept = optimizer.state[whole]
    other.state[again] = {
        "step": torch.tensor(3.0),
        "exp_avg": kept["exp_avg"].clone(),
        "exp_avg_sq": kept["exp_avg_sq"].clone(),
    }
    for number in range(3, 6):
        for each, latent in ((optimizer, whole), (other, again)):
            each.param_groups[0]["lr"] = 1e-2 / (number + 1)
            _step(each, latent, number)
    assert torch.equal(whole, again)
    assert float(other.state[again]["step"]) == 6


def test_adamw_is_the_textbooks() -> None:
    """bitlora.engine.slots.optim: decoupled weight decay, betas 0.9 and 0.999, eps 1e-8 by default; views see its steps."""
    latent = torch.linspace(-1, 1, 6, dtype=torch.float64)
    start, view = latent.clone(), latent[2:4].view(1, 2)
    optimizer = _optimizer(latent)
    _step(optimizer, latent, 0)
    assert latent.grad is not None
    grad = latent.grad
    first, second = 0.1 * grad / (1 - 0.9), 0.001 * grad**2 / (1 - 0.999)
    torch.testing.assert_close(latent, start * (1 - 1e-2 * 0.1) - 1e-2 * first / (second.sqrt() + 1e-8))
    assert torch.equal(view.flatten(), latent[2:4])


def test_clipping_is_torchs_own() -> None:
    """bitlora.engine.slots.optim.clip: says that it clips as `clip_grad_norm_`, with its 1e-6."""
    parameter = nn.Parameter(torch.zeros(64, dtype=torch.float64))
    grad = torch.linspace(-3, 3, 64, dtype=torch.float64)
    parameter.grad = grad.clone()
    norm = nn.utils.clip_grad_norm_([parameter], 1.0)
    assert float(norm) == pytest.approx(float(torch.linalg.vector_norm(grad)))
    torch.testing.assert_close(parameter.grad, grad * (1.0 / (float(norm) + 1e-6)))


# ---- seeds


def test_numbers_of_a_seed() -> None:
    """bitlora.engine.slots.slot.Slot.start, bitlora.forward.dropout: where a trial starts, and what it drops, are functions
    of its seed. Were these other numbers, a trial that goes on under this torch would not be the one that began, and what
    came before would not be made again: bump what checkpoints are held against, and say so in the changelog."""
    generator = torch.Generator().manual_seed(7)
    uniform = torch.empty(3).uniform_(-1, 1, generator=generator)
    normal = torch.empty(3).normal_(0, 0.01, generator=generator)
    words = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    torch.testing.assert_close(uniform, torch.tensor(UNIFORM), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal, torch.tensor(NORMAL), atol=1e-6, rtol=0)
    assert words.tolist() == WORDS


UNIFORM = [0.06984508, -0.60239363, 0.31842339]
NORMAL = [-0.00032552, 0.01011054, 0.01771494]
WORDS = [4867557868310195784, 1600133948115120494, 7736051844387465946]


def test_words_of_random_bits_fill_all_64() -> None:
    """bitlora.forward.dropout.dropout_mask: `random_(-(2**63), None)` draws every bit, and a view as int16 has four entries
    of each word, spread evenly."""
    words = torch.empty(4096, dtype=torch.int64).random_(-(2**63), None, generator=torch.Generator().manual_seed(0))
    parts = words.view(torch.int16)
    assert parts.shape == (4 * 4096,)
    assert abs(float((parts < 0).float().mean()) - 0.5) < 0.02
    kept = parts >= round(0.1 * 2**16) - 2**15
    assert abs(float(kept.float().mean()) - 0.9) < 0.02
    per_place = kept.view(-1, 4).float().mean(0)
    assert float((per_place - 0.9).abs().max()) < 0.03


# ---- autograd


class _Counted(torch.autograd.Function):
    """As `bitlora.forward.multi_lora._BaseAndAdapters`: told of x, with an anchor beside it."""

    calls: list[tuple[bool, ...]]

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        _Counted.calls.append(ctx.needs_input_grad)
        [x] = ctx.saved_tensors
        assert torch.isfinite(x).all()
        return grads[0] @ ctx.weight.T if ctx.needs_input_grad[0] else None, None, None


def _counted(x: Tensor) -> Tensor:
    anchor = torch.empty(0, requires_grad=torch.is_grad_enabled())
    y: Tensor = _Counted.apply(x, anchor, torch.eye(4) * 2)  # type: ignore[no-untyped-call]
    return y


def test_an_empty_anchor_makes_backward_run() -> None:
    """bitlora.forward.multi_lora.MultiLoraLinear: in the first block x needs no gradient, and its adapters need theirs all
    the same; an anchor of no elements is enough, and its gradient may be None."""
    _Counted.calls = []
    _counted(torch.ones(3, 4)).sum().backward()
    assert _Counted.calls == [(False, True, False)]
    with torch.no_grad():
        assert not _counted(torch.ones(3, 4)).requires_grad


def test_checkpointing_calls_such_a_function_once_more() -> None:
    """bitlora.forward.inject: blocks of such layers are recomputed (`use_reentrant=False`), and have one gradient each."""
    _Counted.calls = []
    x = torch.ones(3, 4, requires_grad=True)
    y = checkpoint(lambda part: _counted(_counted(part)), x, use_reentrant=False)
    y.sum().backward()
    assert _Counted.calls == [(True, True, False)] * 2
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((3, 4), 4.0))


def test_grouped_heads_in_attention() -> None:
    """bitlora.forward.attention: `enable_gqa` repeats each head of keys for the queries of its group, side by side."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    grouped = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    wide = [part.repeat_interleave(2, 1) for part in (key, value)]
    torch.testing.assert_close(grouped, F.scaled_dot_product_attention(query, *wide, is_causal=True, scale=0.3))


def test_padding_on_the_right_is_never_seen() -> None:
    """bitlora.forward.attention: under the causal mask, what stands to the right of a token changes nothing of it, to the
    last bit; so padding there needs no mask."""
    torch.manual_seed(0)
    short = [torch.randn(1, 4, 5, 8) for _ in range(3)]
    long = [torch.cat([part, torch.randn(1, 4, 3, 8)], 2) for part in short]
    out = F.scaled_dot_product_attention(*long, is_causal=True)[:, :, :5]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*short, is_causal=True), atol=1e-6, rtol=1e-6)


def test_a_product_into_a_part() -> None:
    """bitlora.forward.multi_lora._add: `addmm_` adds into rows of a larger tensor, in its own memory."""
    y = torch.zeros(6, 4)
    y[2:4].addmm_(torch.ones(2, 3), torch.ones(3, 4), alpha=0.5)
    assert y.sum(1).tolist() == [0, 0, 6, 6, 0, 0]


# ---- the machine


def test_what_a_cpu_can() -> None:
    """bitlora.base.load.resolve_dtype: `amx_bf16` and `avx512_bf16` say whether `dtype: auto` is bfloat16 on a CPU. Were
    the keys others, `auto` would be float32 everywhere, at a third of the speed."""
    found = torch.cpu.get_capabilities()
    assert not found.get("no such thing", False)
    if platform.machine() in ("x86_64", "AMD64"):
        assert {"amx_bf16", "avx512_bf16"} <= found.keys()
        assert all(isinstance(found[key], bool) for key in ("amx_bf16", "avx512_bf16"))
        flags = _cpu_flags()
        assert not flags or found["avx512_bf16"] == ("avx512_bf16" in flags)
    assert isinstance(torch.backends.cpu.get_cpu_capability(), str)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return {flag for line in lines if line.startswith("flags") for flag in line.split()}
    except OSError:
        return set()


def test_emulated_bfloat16_can_be_left_out() -> None:
    """bitlora.base.load.resolve_dtype: `is_bf16_supported(False)`: the first argument is whether emulation counts. On older
    GPUs it would, and bfloat16 is slow there."""
    assert next(iter(inspect.signature(torch.cuda.is_bf16_supported).parameters)) == "including_emulation"


def test_dtypes_are_wide_enough_for_sums() -> None:
    """bitlora.engine, bitlora.quantizers: latent weights and norms are in `promote_types(dtype, float32)`; dtypes are found
    by name, and named without their prefix."""
    wide = {
        dtype: torch.promote_types(dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16, torch.float64)
    }
    assert [*wide.values()] == [torch.float32, torch.float32, torch.float64]
    assert getattr(torch, str(torch.bfloat16).removeprefix("torch.")) is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_without_weights_are_in_bfloat16_alone(dtype: torch.dtype) -> None:
    """Why `describe_base` makes a base without weights in bfloat16: torch 2.13.0, torch/_meta_registrations.py."""

    def product(device: str) -> Tensor:
        x, w = torch.ones(6, 16, device=device, dtype=dtype), torch.ones(2, 16, 8, device=device, dtype=dtype)
        return F.grouped_mm(x, w, offs=torch.tensor([2, 6], dtype=torch.int32, device=device))

    assert product("cpu").shape == (6, 8)
    if dtype == torch.bfloat16:
        assert product("meta").shape == (6, 8)
    else:
        with pytest.raises(RuntimeError, match="Expected inputs of BF16 type"):
            product("meta")


def test_attention_over_rows_without_padding_takes_what_it_is_given() -> None:
    """bitlora.forward.attention: rows with more keys than queries, a window, fewer heads of keys; a window of (-1, 0) is
    causal, and only where nothing is cached are there gradients."""
    parameters = inspect.signature(varlen_attn).parameters
    assert [*parameters][:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= parameters.keys()
    assert "(-1, 0) for causal attention" in " ".join((varlen_attn.__doc__ or "").split())
