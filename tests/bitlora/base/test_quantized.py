"""A base in NF4 that is kept is the one that was quantized, bit for bit; what is broken is made again."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from adapters import exact, trial
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bitlora import timeouts
from bitlora.adapter.apply import merge
from bitlora.base import load as loading
from bitlora.base.load import load_model
from bitlora.base.quantized import KEPT, keep, quantized_place
from bitlora.base.revision import config_digest, weights_revision
from bitlora.config.sections import BaseConfig
from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")


@pytest.fixture
def base(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    return BaseConfig(model=str(tiny_base), quantization="nf4")


def kept(tmp_path):
    return sorted((tmp_path / "cache" / KEPT).iterdir())


def state(model):
    """Every number that the model computes with."""
    found = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            quantized = module.weight.quant_state
            found |= {f"{name}.absmax": quantized.absmax, f"{name}.code": quantized.code}
            assert (quantized.blocksize, quantized.quant_type) == (64, "nf4")
            assert module.support_avx512bf16_for_cpu is False
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_time_it_is_read_and_equal_to_the_last_bit(base, tmp_path, monkeypatch, dtype):
    first = load_model(base, dtype, CPU)
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(loading, "keep", lambda *_: pytest.fail("quantized again"))
    second = load_model(base, dtype, CPU)
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(weight.requires_grad for weight in second.parameters())
    tokens = torch.arange(3, 12)[None]
    assert torch.equal(first(tokens).logits, second(tokens).logits)


def test_other_dtypes_and_other_weights_have_places_of_their_own(base, tmp_path, tiny_base):
    load_model(base, torch.float32, CPU)
    load_model(base, torch.bfloat16, CPU)
    other = tmp_path / "elsewhere" / tiny_base.name
    other.mkdir(parents=True)
    for file in tiny_base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    load_model(base.model_copy(update={"model": str(other)}), torch.float32, CPU)
    assert len(kept(tmp_path)) == 2  # the same weights in another folder are the same
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    load_model(base.model_copy(update={"model": str(other)}), torch.float32, CPU)
    assert len(kept(tmp_path)) == 3


def test_what_is_broken_is_made_again(base, tmp_path):
    first = load_model(base, torch.float32, CPU)
    (folder,) = kept(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    second = load_model(base, torch.float32, CPU)
    one, other = state(first), state(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len((kept(tmp_path)[0] / "model.safetensors").read_bytes()) > 500


def test_a_full_disk_costs_no_more_than_the_time(base, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    load_model(base, torch.float32, CPU)
    assert kept(tmp_path) == []


def test_what_nobody_uses_any_more_goes(base, tmp_path):
    load_model(base, torch.float32, CPU)
    (old,) = kept(tmp_path)
    long_ago = time.time() - timeouts.CACHE_KEPT_S - 60
    os.utime(old, (long_ago, long_ago))
    load_model(base, torch.bfloat16, CPU)
    (new,) = kept(tmp_path)
    assert new != old


def test_an_unquantized_base_is_not_kept(base, tmp_path):
    load_model(base.model_copy(update={"quantization": "none"}), torch.float32, CPU)
    assert not (tmp_path / "cache" / KEPT).exists()


def test_what_was_damaged_without_changing_its_size_is_made_again(base, tmp_path):
    first = load_model(base, torch.float32, CPU)
    (folder,) = kept(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # as after a loss of power
    second = load_model(base, torch.float32, CPU)
    one, other = state(first), state(second)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert weights.read_bytes() == whole


def test_bases_that_share_a_revision_of_before_are_not_taken_for_each_other(base, tmp_path, tiny_base):
    """Of sweeps of before, the revision was a digest of the configuration alone."""
    of_before = config_digest(tiny_base)
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(other)).save_pretrained(other)
    (other / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    pinned = base.model_copy(update={"revision": of_before})
    load_model(pinned, torch.float32, CPU)
    found = load_model(pinned.model_copy(update={"model": str(other)}), torch.float32, CPU)
    assert len(kept(tmp_path)) == 2
    fresh = load_model(base.model_copy(update={"model": str(other)}), torch.float32, CPU)
    assert torch.equal(found(torch.arange(9)[None]).logits, fresh(torch.arange(9)[None]).logits)


def test_many_processes_at_once_keep_one(base, tmp_path):
    model = load_model(base, torch.float32, CPU)
    [place] = kept(tmp_path)
    shutil.rmtree(place)
    at = quantized_place(base.model, weights_revision(base.model, None), torch.float32, base.quantized_as)
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda _: keep(model, at), range(3))] == [None] * 3
    assert len(kept(tmp_path)) == 1
    again = load_model(base, torch.float32, CPU)
    assert all(torch.equal(state(model)[name], value) for name, value in state(again).items())


def test_threads_load_one_after_another(base, tmp_path):
    """transformers 5.24.0, `initialization.no_tie_weights`: two loads at once, and no head is tied here any more."""
    stock = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(3) as pool:
        models = [*pool.map(lambda _: load_model(base, torch.float32, CPU), range(3))]
    assert PreTrainedModel.tie_weights is stock
    first = state(models[0])
    assert all(torch.equal(first[name], value) for model in models[1:] for name, value in state(model).items())


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
@pytest.mark.parametrize("double", [False, True])
def test_with_bitsandbytes_options_it_computes_what_stock_layers_do(double, storage, tiny_base, tmp_path, monkeypatch):
    """Loaded anew and from what is kept: the pack's logits are transformers' own, and so is what is merged from it."""
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    config = BaseConfig(model=str(tiny_base), double_quantization=double, quant_storage=storage)
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=double, bnb_4bit_quant_storage=storage,
    )  # fmt: skip
    stock = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, quantization_config=options)
    tokens = torch.randint(3, 90, (20,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = exact(stock)(tokens[None]).logits[0]
        for _ in range(2):
            base = load_base(config, torch.float32, CPU)
            layer = next(iter(base.linears.values())).base
            assert layer.weight.quant_state.nested is double
            assert str(layer.weight.dtype) == f"torch.{storage}"
            found = base.logits(ForwardPlan.make([], [[20]], [0], CPU), tokens, torch.arange(20))
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert len(kept(tmp_path)) == 1
        merged = merge(load_model(config, torch.float32, CPU), {}, trial("none"), torch.float32)
        assert torch.allclose(merged(tokens[None]).logits[0], expected, rtol=1e-5, atol=1e-5)


def test_other_options_have_places_of_their_own(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    for options in ({}, {"double_quantization": True}, {"quant_storage": "bfloat16"}):
        load_model(BaseConfig(model=str(tiny_base), **options), torch.float32, CPU)
    assert len(kept(tmp_path)) == 3
