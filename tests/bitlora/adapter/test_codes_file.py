"""The packed file: every quantizer comes back bit by bit, and its size is the one that is known beforehand."""

import json

import pytest
import torch
from adapters import SMOLLM2, of_rank, trial
from peft import PeftConfig

from bitlora.adapter.codes_file import PACKED, load_packed, save_packed
from bitlora.adapter.cost import adapter_bytes
from bitlora.adapter.latent import Latent, quantized_weights
from bitlora.adapter.peft_layers import BitLoraConfig
from bitlora.base.info import LayerShape
from bitlora.quantizers.weights import QUANTIZERS

SHAPES = [LayerShape("model.layers.0.q", 24, 10), LayerShape("model.layers.0.k", 7, 33)]


def latent_of(shapes, config, dtype=torch.float32):
    generator = torch.Generator().manual_seed(config.rank)
    found = {}
    for number, shape in enumerate(shapes):
        a = torch.randn(config.rank, shape.in_features, generator=generator, dtype=dtype) * 0.02
        b = torch.randn(shape.out_features, config.rank, generator=generator, dtype=dtype) * 1e-3
        if number == 0:
            b.zero_()  # as at the start: its scale is 0
        scales = [torch.rand(len(each), 1, generator=generator, dtype=dtype) for each in (a, b)]
        found[shape.name] = Latent(a, b, *scales) if QUANTIZERS[config.quantizer].learns_scales else Latent(a, b)
    return found


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_bit_by_bit_there_and_back_in_the_size_that_was_said(quantizer, granularity, tmp_path):
    for rank in (1, 3, 8, 13):
        config = trial(quantizer, granularity=granularity, rank=rank)
        latent = latent_of(SHAPES, config)
        folder = tmp_path / str(rank)
        folder.mkdir()
        save_packed(folder, latent, config, "some/base")
        packed = load_packed(folder)
        expected = quantized_weights(latent, config)
        assert list(packed.weights) == list(expected)
        for name, matrices in expected.items():
            for found, there in zip(packed.weights[name][:2], matrices[:2], strict=True):
                exact = there.half().float() if quantizer == "none" else there
                assert found.dtype == torch.float32
                assert torch.equal(found, exact)  # every bit but the sign of a zero
        assert (folder / PACKED).stat().st_size == adapter_bytes(of_rank(SHAPES, rank), quantizer, granularity)


def test_float64_weights_are_quantized_in_float32(tmp_path):
    config = trial("int4")
    latent = latent_of(SHAPES, config, torch.float64)
    save_packed(tmp_path, latent, config, "some/base")
    expected = quantized_weights({name: layer.map(torch.Tensor.float) for name, layer in latent.items()}, config)
    for name, (a, b, _) in load_packed(tmp_path).weights.items():
        assert torch.equal(a, expected[name][0])
        assert torch.equal(b, expected[name][1])


@pytest.mark.parametrize("granularity", ["tensor", "component"])
@pytest.mark.parametrize(
    ("quantizer", "smaller"),
    [("binary", 14), ("ternary", 9), ("absmean", 9), ("twn", 9), ("int4", 3.8), ("double_binary", 12)],
)
def test_files_of_rank_32_on_smollm2_against_float16(quantizer, smaller, granularity, tmp_path):
    sizes = {}
    for each in ("none", quantizer):
        config = trial(each, granularity=granularity, rank=32)
        folder = tmp_path / each
        folder.mkdir()
        save_packed(folder, latent_of(SMOLLM2, config), config, "some/base")
        sizes[each] = (folder / PACKED).stat().st_size
        assert sizes[each] == adapter_bytes(of_rank(SMOLLM2, 32), each, granularity)
    assert sizes[quantizer] * smaller <= sizes["none"]


def test_peft_refuses_it_and_says_who_reads_it(tmp_path):
    config = trial("twn")
    save_packed(tmp_path, latent_of(SHAPES, config), config, "some/base")
    with pytest.raises(KeyError, match="BITLORA_PACKED"):
        PeftConfig.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"load it with bitlora\.export\.load_packed_adapter"):
        BitLoraConfig.from_pretrained(str(tmp_path))


def test_what_is_no_packed_adapter_is_said_in_a_line(tmp_path):
    config = trial("ternary")
    save_packed(tmp_path, latent_of(SHAPES, config), config, "some/base")
    about, data = tmp_path / "adapter_config.json", tmp_path / PACKED
    good, bytes_ = about.read_text(), data.read_bytes()
    described = json.loads(good)
    for change, message in (
        ({"format": 2}, "format 2, and this version reads 1; install a newer"),
        ({"peft_type": "LORA"}, "its peft_type is LORA"),
        ({"r": 5}, r"found tensors .*; adapter_config\.json says"),
        ({"quantizer": "int3"}, "no 'int3'"),
    ):
        about.write_text(json.dumps({**described, **change}))
        with pytest.raises(ValueError, match=f"{tmp_path}.*: not a packed adapter: .*{message}"):
            load_packed(tmp_path)
    about.write_text(good)
    data.write_bytes(bytes_[:-1] + b"\xff")
    with pytest.raises(ValueError, match="byte 255 among codes of ternary, which go up to 242"):
        load_packed(tmp_path)
    data.write_bytes(bytes_[:40])
    with pytest.raises(ValueError, match=f"{PACKED}: not a packed adapter"):
        load_packed(tmp_path)
    data.unlink()
    with pytest.raises(ValueError, match=f"{PACKED}: not a packed adapter: No such file"):
        load_packed(tmp_path)
