"""A folder for PEFT read as vLLM, SGLang and LoRAX read it, by their rules in this file's words: each computes what PEFT
computes with the trial's own ranks, alphas and scaling.
"""

import copy
import json
import math

import pytest
import torch
from both_ways import VOCAB, Trial
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from bitlora.adapter.latent import Latent, quantized_weights
from bitlora.adapter.peft_folder import save_adapter, save_lora_adapter
from bitlora.adapter.servers import hindrances, short_names, vllm_rank
from bitlora.config.trial import layer_adapter

TOKENS = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(9))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = LINEAR[:4]
TRIALS = {
    "plain": (LINEAR, {}, {}),
    "rank 6, alpha 24.5": (LINEAR, {"rank": 6, "alpha": 24.5}, {}),
    "alpha is a third": (LINEAR, {"rank": 3, "alpha": 0.1}, {}),
    "rslora": (LINEAR, {"rank": 6, "alpha": 24.5, "rslora": True}, {}),
    "ranks": (LINEAR, {"rank": 6, "alpha": 24.5}, {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 9}}),
    "alphas": (LINEAR, {"rank": 6, "alpha": 24.5}, {"alpha_pattern": {"up_proj": 3, ".*proj": 7.5}}),
    "both, rslora": (
        ATTENTION,
        {"rank": 6, "alpha": 24.5, "rslora": True, "quantizer": "ternary"},
        {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"k_proj": 1, "o_proj": 0.3}},
    ),
    "one block": (["q_proj", "down_proj"], {"rank": 6, "alpha": 24.5, "quantizer": "binary"}, {"block": 1}),
}


def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


def names_of(model):
    return [name for name, _ in model.named_modules() if name]


@pytest.fixture(params=TRIALS)
def told(request, tmp_path):
    """The folder, the trial's configuration, and what stock PEFT computes that is told ranks, alphas and scaling itself."""
    targets, recipe, own = TRIALS[request.param]
    own = dict(own)
    block = own.pop("block", None)
    config = Trial(seed=1, own=own, **recipe).config
    model = base()
    wanted = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, use_rslora=config.scaling == "rslora", target_modules=targets,
        layers_to_transform=block, init_lora_weights=False, **own,
    )  # fmt: skip
    torch.manual_seed(3)
    stock = get_peft_model(base(), wanted, autocast_adapter_dtype=False)
    parts = {
        name.removeprefix("base_model.model."): module
        for name, module in stock.named_modules()
        if hasattr(module, "lora_A")
    }
    latent = {
        name: Latent(module.lora_A["default"].weight.detach().clone(), module.lora_B["default"].weight.detach().clone())
        for name, module in parts.items()
    }
    assert all(a.dtype == torch.float64 for a, *_ in latent.values())
    weights = quantized_weights(latent, config)
    for name, module in parts.items():
        module.lora_A["default"].weight.data.copy_(weights[name].a)
        module.lora_B["default"].weight.data.copy_(weights[name].b)
    save_lora_adapter(tmp_path, latent, config, "owner/name", COMMIT, names_of(model))
    expected = logits(stock)
    assert float((expected - logits(base())).abs().max()) > 1e-3
    return request.param, tmp_path, latent, weights, expected


def read(folder, names):
    """The configuration and module -> A, B, as all three find them: a tensor's name is the module's behind
    `base_model.model.` and before `.lora_A.weight`, and the module is one of the base's."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, side, last = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert name.startswith("base_model.model.")
        assert (side in ("lora_A", "lora_B"), last) == (True, "weight")
        assert module in names
        found.setdefault(module, {})[side] = tensor
    assert all(parts.keys() == {"lora_A", "lora_B"} for parts in found.values())
    return config, {module: (parts["lora_A"], parts["lora_B"]) for module, parts in found.items()}


def vllm(config, layers, most):
    """Refuses what it has not; one rank and one scale for all layers, which are filled into buffers of `most` ranks."""
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert config.get("bias", "none") == "none"
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert most in (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert config["r"] <= most
    assert all(len(a) == b.shape[1] <= most for a, b in layers.values())
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def sglang(config, layers):
    """Knows no rsLoRA; by the last parts of the target names it chooses what to make room for."""
    assert config["peft_type"].lower() == "lora"
    assert not {**(config.get("rank_pattern") or {}), **(config.get("alpha_pattern") or {})}
    room = {name.split(".")[-1] for name in config["target_modules"]}
    assert {name.split(".")[-1] for name in layers} <= room
    assert all(len(a) == b.shape[1] <= config["r"] for a, b in layers.values())
    return config["lora_alpha"] / config["r"]


def lorax(config, layers, blocks):
    """Stacks a kind of layer over all blocks; where a block has none, the whole kind is passed over."""
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    kinds = {}
    for name, (a, b) in layers.items():
        kinds.setdefault(name.split(".")[-1], []).append((a, b))
    for each in kinds.values():
        torch.stack([a for a, _ in each])
        torch.stack([b for _, b in each])
    return scale, all(len(each) == blocks for each in kinds.values())


def test_each_server_computes_what_peft_does(told):
    which, folder, latent, weights, expected = told
    model = base()
    config, layers = read(folder, names_of(model))
    assert layers.keys() == latent.keys()
    assert config.keys().isdisjoint({"rank_pattern", "alpha_pattern"})
    stacked, whole = lorax(config, layers, 2)
    assert whole == (which != "one block")
    for scale in (vllm(config, layers, vllm_rank(config["r"])), sglang(config, layers), stacked):
        model = base()
        for name, (a, b) in layers.items():
            model.get_submodule(name).weight.data += scale * b @ a
        assert float((logits(model) - expected).abs().max()) < 1e-11
    for name, (a, b) in layers.items():  # the quantizer's values, but where a scale of its own is in B
        rank = len(weights[name].a)
        assert torch.equal(a[:rank], weights[name].a)
        assert not a[rank:].any()
        assert not b[:, rank:].any()
        if which not in ("ranks", "alphas", "both, rslora"):
            assert torch.equal(b, weights[name].b)


def test_stock_peft_reads_it(told):
    which, folder, _, _, expected = told
    config = PeftConfig.from_pretrained(folder)
    assert (config.base_model_name_or_path, config.revision) == ("owner/name", COMMIT)
    short = {"one block": 0, "both, rslora": 4}.get(which, 7)
    assert sum("." not in name for name in config.target_modules) == short
    model = PeftModel.from_pretrained(base(), folder, autocast_adapter_dtype=False)
    assert float((logits(model) - expected).abs().max()) < 1e-11
    if which in ("plain", "rank 6, alpha 24.5"):
        written = (config.r, config.lora_alpha)
        assert written == ((4, 8) if which == "plain" else (6, 24.5))


def test_of_dora_the_norms_stay(tmp_path):
    own = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}}
    config = Trial(seed=1, rank=6, alpha=24.5, rslora=True, own={"dora": True, **own}).config
    torch.manual_seed(3)
    wanted = LoraConfig(
        r=6, lora_alpha=24.5, use_rslora=True, use_dora=True, target_modules=ATTENTION, init_lora_weights=False, **own
    )
    stock = get_peft_model(base(), wanted, autocast_adapter_dtype=False)
    latent = {}
    for name, module in stock.named_modules():
        if hasattr(module, "lora_A"):
            magnitude = module.lora_magnitude_vector["default"].weight
            magnitude.data *= torch.rand_like(magnitude) + 0.5
            a, b = (part["default"].weight.detach().clone() for part in (module.lora_A, module.lora_B))
            latent[name.removeprefix("base_model.model.")] = Latent(a, b, magnitude=magnitude.detach()[:, None].clone())
    save_lora_adapter(tmp_path, latent, config, None)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["use_dora"] is True
    model = PeftModel.from_pretrained(base(), tmp_path, autocast_adapter_dtype=False)
    assert float((logits(model) - logits(stock)).abs().max()) < 1e-11


def test_beside_experts_that_have_no_adapter_a_layer_is_not_taken_for_theirs(tmp_path):
    """PEFT takes a `down_proj` in a list for the experts' where the base has some, also by its whole name."""
    torch.manual_seed(0)
    shape = Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_experts=3,
        num_experts_per_tok=2, moe_intermediate_size=4, mlp_only_layers=[0], num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(shape)
    wanted, layers = copy.deepcopy(model), {}
    for name in ("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.k_proj"):
        weight = wanted.get_submodule(name).weight
        a, b = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
        layers[name] = Latent(a, b)
        weight.data += 1.5 * b @ a
    config = Trial(seed=1, rank=2, alpha=3).config
    save_lora_adapter(tmp_path, layers, config, None, None, names_of(model), routed=True)
    read = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert float((logits(wanted) - logits(model)).abs().max()) > 1e-2
    assert float((logits(read) - logits(wanted)).abs().max()) < 1e-5


def test_without_the_base_names_are_whole_and_nothing_of_it_is_known(tmp_path):
    config = Trial(seed=1, rank=2).config
    name = "model.layers.0.mlp.up_proj"
    save_lora_adapter(tmp_path, {name: Latent(torch.ones(2, 16), torch.ones(24, 2))}, config, None)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == [name]
    assert (written["base_model_name_or_path"], written["revision"]) == (None, None)
    assert PeftModel.from_pretrained(base().float(), tmp_path).peft_config["default"].r == 2


def test_the_trials_own_adapter_keeps_what_it_was_trained_with(tmp_path):
    own = {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 5}}
    config = Trial(seed=1, rank=2, rslora=True, own=own).config
    name = "model.layers.0.mlp.up_proj"
    save_adapter(tmp_path, {name: Latent(torch.ones(3, 16), torch.ones(24, 3))}, config, "/models/mine")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["rank_pattern"], written["alpha_pattern"]) == ({name: 3}, {name: 5})
    assert (written["use_rslora"], written["target_modules"]) == (True, [name])
    assert layer_adapter(config, name).scaling == pytest.approx(5 / 3**0.5)


def test_names_are_as_short_as_they_may_be():
    """GPT-2 has a `c_proj` in the attention and one behind it; the head is a module too."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=16))
    names = names_of(model)

    def short(*targets):
        chosen = [name for name in names if name.endswith(targets)]
        found = short_names(chosen, names)
        # By PEFT's rule: the whole name, or its end behind a dot.
        reached = [name for name in names if any(name == one or name.endswith(f".{one}") for one in found)]
        assert reached == chosen
        return found

    assert short("c_proj", "c_attn") == ["c_attn", "c_proj"]
    assert short("attn.c_proj", "c_fc") == ["attn.c_proj", "c_fc"]
    assert short("h.1.attn.c_proj", "c_attn") == ["c_attn", "transformer.h.1.attn.c_proj"]
    assert short("h.0.mlp.c_fc", "h.1.attn.c_attn") == ["transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn"]


@pytest.mark.parametrize(
    ("rank", "allowed"), [(1, 1), (2, 8), (6, 8), (8, 8), (9, 16), (257, 320), (512, 512), (513, None)]
)
def test_the_least_rank_that_vllm_allows(rank, allowed):
    assert vllm_rank(rank) == allowed


def test_what_a_server_cannot_do_is_said():
    whole = {"r": 6, "target_modules": ["q_proj"], "base_model_name_or_path": "owner/name"}
    assert hindrances(whole) == []

    def said(**more):
        (sentence,) = hindrances(whole | more)
        return sentence

    assert "`bitlora export --to merged`" in said(use_dora=True)
    assert "`bitlora export --to merged`" in said(target_parameters=["model.layers.0.mlp.experts.down_proj"])
    assert said(r=600) == "Its rank is 600, and vLLM takes 512 at most."
    assert said(target_modules=["model.layers.1.self_attn.q_proj"]).startswith("LoRAX passes over a kind of layer")
    assert said(base_model_name_or_path=None).startswith("LoRAX asks for the base of an adapter")
