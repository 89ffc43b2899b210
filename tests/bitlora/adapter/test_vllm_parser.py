"""A folder for PEFT read by vLLM's own parser of adapters, out of its wheel: vLLM itself would bring CUDA.

pip download vllm --no-deps && BITLORA_VLLM_WHEEL=vllm-….whl pytest tests/bitlora/adapter/test_vllm_parser.py
"""

import importlib.util
import logging
import os
import sys
import zipfile
from types import ModuleType, SimpleNamespace

import pytest
import torch
from adapters import trial

from bitlora.adapter.latent import Latent
from bitlora.adapter.peft_folder import save_lora_adapter
from bitlora.adapter.servers import vllm_rank
from bitlora.config.trial import layer_adapter

WHEEL = os.environ.get("BITLORA_VLLM_WHEEL")
TRIALS = [
    {"quantizer": "none"},
    {"quantizer": "ternary", "rank": 6, "alpha": 24.5, "scaling": "rslora"},
    {"quantizer": "binary", "rank": 40, "rank_pattern": "q_proj: 3", "alpha_pattern": "q_proj: 9.5"},
    {"quantizer": "none", "dora": True},
]


@pytest.fixture
def helper(monkeypatch, tmp_path):
    """vLLM's `PEFTHelper`, with stand-ins for its logger and its configuration."""
    if WHEEL is None:
        pytest.skip("no wheel of vLLM: give BITLORA_VLLM_WHEEL")
    logger = ModuleType("vllm.logger")
    logger.init_logger = lambda name: SimpleNamespace(info_once=logging.info)
    config = ModuleType("vllm.config.lora")
    config.LoRAConfig = SimpleNamespace
    for name, module in {"vllm": ModuleType("vllm"), "vllm.config": ModuleType("c"), logger.__name__: logger,
                         config.__name__: config}.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    with zipfile.ZipFile(WHEEL) as wheel:
        path = wheel.extract("vllm/lora/peft_helper.py", tmp_path / "vllm")
    spec = importlib.util.spec_from_file_location("peft_helper", path)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peft_helper", found)
    spec.loader.exec_module(found)
    return found.PEFTHelper


@pytest.mark.parametrize("varied", TRIALS)
def test_vllm_reads_rank_and_scale(helper, varied, tmp_path):
    config = trial(**varied)
    names = [f"model.layers.{block}.self_attn.{kind}_proj" for block in range(2) for kind in "qkv"]
    ranks = {name: layer_adapter(config, name).rank for name in names}
    latent = {name: Latent(torch.randn(rank, 16), torch.randn(12, rank)) for name, rank in ranks.items()}
    if config.dora:
        latent = {name: layer._replace(magnitude=torch.ones(12, 1)) for name, layer in latent.items()}
    (tmp_path / "made").mkdir()
    save_lora_adapter(tmp_path / "made", latent, config, None, modules=names)
    found = helper.from_local_dir(str(tmp_path / "made"), 4096)
    allowed = SimpleNamespace(max_lora_rank=vllm_rank(found.r))
    if config.dora:
        with pytest.raises(ValueError, match="does not yet support DoRA"):
            found.validate_legal(allowed)
        return
    found.validate_legal(allowed)
    usual = layer_adapter(config, "model.layers.0.self_attn.v_proj")
    for name in names:
        assert found.get_rank_and_scaling(name) == (max(ranks.values()), pytest.approx(usual.scaling))
    with pytest.raises(ValueError, match="is greater than max_lora_rank"):
        found.validate_legal(SimpleNamespace(max_lora_rank=found.r - 1))
