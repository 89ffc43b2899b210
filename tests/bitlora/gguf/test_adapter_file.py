"""The file for llama.cpp, against what its names, turns and scales mean: of attention the scores, by rotations of complex
numbers where the product reorders rows."""

import math
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from adapters import trial
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bitlora.adapter.latent import Latent, Weights, quantized_weights
from bitlora.gguf.adapter_check import compare_gguf, load_gguf
from bitlora.gguf.adapter_file import save_gguf
from bitlora.gguf.architecture import ARCHITECTURES

SHAPE = {"rank": 6, "alpha": 24.5}
HIDDEN, HEADS, GROUPS, WIDTH = 24, 6, 2, 8
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HEADS * WIDTH),
    "self_attn.k_proj": (HIDDEN, GROUPS * WIDTH),
    "self_attn.v_proj": (HIDDEN, GROUPS * WIDTH),
    "self_attn.o_proj": (HEADS * WIDTH, HIDDEN),
    "mlp.gate_proj": (HIDDEN, 40),
    "mlp.down_proj": (40, HIDDEN),
}
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
CASES = {
    "plain": ({}, {"": 24.5 / 6}),
    "rslora": ({"scaling": "rslora"}, {"": 24.5 / math.sqrt(6)}),
    "ranks": ({"rank_pattern": "q_proj: 2"}, {"": 24.5 / 6, "q_proj": 24.5 / 2}),
    "alphas": (
        {"alpha_pattern": "k_proj: 3, down_proj: 0.7"},
        {"": 24.5 / 6, "k_proj": 0.5, "down_proj": 0.7 / 6},
    ),
    "all of them": (
        {"scaling": "rslora", "rank_pattern": "q_proj: 2", "alpha_pattern": "k_proj: 3"},
        {"": 24.5 / math.sqrt(6), "q_proj": 24.5 / math.sqrt(2), "k_proj": 3 / math.sqrt(6)},
    ),
}
"""What a trial has besides, and what its layers are scaled by: by the ends of their names, "" the others'."""


def base(kind="llama"):
    return SimpleNamespace(
        model_type=kind, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=WIDTH
    )


def adapter(config, shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    latent = {}
    for block in range(2):
        for kind, (inputs, outputs) in shapes.items():
            rank = 2 if "q_proj" in kind and "q_proj" in config.rank_pattern else config.rank
            a, b = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((rank, inputs), (outputs, rank)))
            latent[f"model.layers.{block}.{kind}"] = Latent(a, b)
    return quantized_weights(latent, config)


def delta(tensors, fields, name):
    """What is added to a weight, as llama.cpp's formula has it."""
    a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
    return fields["adapter.lora.alpha"] / b.shape[1] * b.astype(np.float64) @ a.astype(np.float64)


def opened(path):
    reader = gguf.GGUFReader(path)
    return {each.name: np.array(each.data) for each in reader.tensors}, {
        key: field.contents() for key, field in reader.fields.items()
    }


def scale_of(scales, layer):
    return next((scale for end, scale in scales.items() if end and layer.endswith(end)), scales[""])


@pytest.mark.parametrize("quantizer", ["none", "ternary", "binary"])
@pytest.mark.parametrize("case", CASES)
def test_every_layer_adds_what_the_adapter_adds(case, quantizer, tmp_path):
    varied, scales = CASES[case]
    config = trial(**{"quantizer": quantizer, **SHAPE, **varied})
    weights = adapter(config)
    save_gguf(tmp_path / "a.gguf", weights, config, base("qwen2"))
    tensors, fields = opened(tmp_path / "a.gguf")
    assert {fields[key] for key in ("general.type", "adapter.type", "general.architecture")} == {
        "adapter",
        "lora",
        "qwen2",
    }
    assert {each.dtype for each in tensors.values()} == {np.dtype(np.float32)}
    assert len(tensors) == 2 * len(weights)
    for layer, (a, b, _) in weights.items():
        _, _, block, kind = layer.split(".", 3)
        expected = scale_of(scales, layer) * (b.double() @ a.double()).numpy()
        found = delta(tensors, fields, f"blk.{block}.{GGUF_NAMES[kind]}")
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma3_text"])
def test_attention_scores_are_those_of_transformers(kind, tmp_path):
    """llama.cpp turns neighbours in a Llama and halves in the others; a score of a query and a key says whether the rows
    that are turned together are those that transformers turns together, in every head and group."""
    config = trial("none", **SHAPE)
    weights = adapter(config)
    save_gguf(tmp_path / "a.gguf", weights, config, base(kind))
    tensors, fields = opened(tmp_path / "a.gguf")
    llama = fields["general.architecture"] == "llama"
    assert llama == (kind in ("llama", "mistral"))
    x = torch.randn(5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def heads(rows, count):
        return rows.reshape(5, count, WIDTH).transpose(0, 1)

    q, k = (
        heads(x @ (24.5 / 6 * weights[name].b.double() @ weights[name].a.double()).T, count)
        for name, count in (("model.layers.1.self_attn.q_proj", HEADS), ("model.layers.1.self_attn.k_proj", GROUPS))
    )
    angles = torch.arange(5.0)[:, None] * 1e4 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    whole = torch.cat([angles, angles], -1).double()
    q, k = apply_rotary_pos_emb(q[None], k[None], whole.cos()[None], whole.sin()[None])
    expected = q[0] @ k[0].repeat_interleave(HEADS // GROUPS, 0).mT

    def turned(name, count):
        y = heads(x @ torch.from_numpy(delta(tensors, fields, name)).T, count)
        pair = (y[..., 0::2], y[..., 1::2]) if llama else (y[..., : WIDTH // 2], y[..., WIDTH // 2 :])
        return torch.complex(*pair) * torch.polar(torch.ones_like(angles), angles)

    q, k = turned("blk.1.attn_q", HEADS), turned("blk.1.attn_k", GROUPS).repeat_interleave(HEADS // GROUPS, 0)
    torch.testing.assert_close((q @ k.conj().mT).real, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_rotation_above_is_transformers(tmp_path):
    from transformers import LlamaConfig

    rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, rope_theta=1e4))
    cos, _ = rotary(torch.zeros(1), torch.arange(5)[None])
    angles = torch.arange(5.0)[:, None] * 1e4 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    torch.testing.assert_close(cos[0], torch.cat([angles, angles], -1).cos())


def test_fused_projections_go_to_fused_tensors(tmp_path):
    shapes = {"self_attn.qkv_proj": (HIDDEN, 80), "mlp.gate_up_proj": (HIDDEN, 80)}
    config = trial("none", **SHAPE)
    weights = adapter(config, shapes)
    save_gguf(tmp_path / "a.gguf", weights, config, base("phi3"))
    tensors, fields = opened(tmp_path / "a.gguf")
    for kind, name in (("self_attn.qkv_proj", "blk.0.attn_qkv"), ("mlp.gate_up_proj", "blk.0.ffn_up")):
        a, b, _ = weights[f"model.layers.0.{kind}"]
        np.testing.assert_allclose(delta(tensors, fields, name), (24.5 / 6 * b @ a).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_check_reads_back_what_was_written(kind, dtype, tmp_path):
    shapes = {"self_attn.qkv_proj": (HIDDEN, 80), "mlp.gate_up_proj": (HIDDEN, 80)} if kind == "phi3" else SHAPES
    config = trial(**{"quantizer": "none", **SHAPE, **CASES["all of them"][0]})
    weights = adapter(config, shapes, dtype)
    save_gguf(tmp_path / "a.gguf", weights, config, base(kind))
    compare_gguf(load_gguf(tmp_path / "a.gguf", weights, base(kind)), weights, config)


def test_the_check_sees_every_slip(tmp_path):
    config = trial("ternary", **SHAPE)
    weights = adapter(config)
    path = tmp_path / "a.gguf"

    def caught(written, message, of=config, kind="llama"):
        save_gguf(path, written, of, base(kind))
        with pytest.raises(ValueError, match=message):
            compare_gguf(load_gguf(path, weights, base()), weights, config)

    other = "what llama.cpp would read is not the adapter"
    q = "model.layers.1.self_attn.q_proj"
    caught({**weights, q: Weights(weights[q].a, weights[q].b.roll(1, 0))}, f"{q}: {other}")
    caught({**weights, q: Weights(weights[q].a.roll(1, 1), weights[q].b)}, f"{q}: {other}")
    caught(weights, other, config.model_copy(update={"scaling": "rslora"}))
    caught(weights, other, config.model_copy(update={"alpha": 24.6}))
    caught(weights, other, config.model_copy(update={"alpha": 1e-60}))
    caught(weights, "general.architecture is qwen2", kind="qwen2")
    caught({name: each for name, each in weights.items() if name != q}, f"{path}: not the adapter in GGUF: .*attn_q")
    up = "model.layers.1.mlp.up_proj"
    caught({**weights, up: weights["model.layers.1.mlp.gate_proj"]}, r"blk\.1\.ffn_up\.weight\.lora_a is of no layer")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not the adapter in GGUF"):
        load_gguf(path, weights, base())


def test_what_llama_cpp_has_not_is_refused(tmp_path):
    config = trial("none", **SHAPE)
    with pytest.raises(ValueError, match=r"the base is a gpt_neox; adapters are written for gemma, .*, qwen3$"):
        save_gguf(tmp_path / "a.gguf", adapter(config), config, base("gpt_neox"))
    odd = adapter(config, {"self_attn.latent_proj": (HIDDEN, 16)})
    with pytest.raises(ValueError, match=r"llama has no layer for model\.layers\.0\.self_attn\.latent_proj"):
        save_gguf(tmp_path / "a.gguf", odd, config, base())
    int8 = config.model_copy(update={"activations": "int8"})
    with pytest.raises(ValueError, match="activations: int8"):
        save_gguf(tmp_path / "a.gguf", adapter(config), int8, base())
    assert not list(tmp_path.iterdir())
