"""Adapters and whole models for llama.cpp, run by llama.cpp itself."""

import pydoc
from typing import NamedTuple

import numpy as np
import pytest
import torch
from adapters import trial
from llama_cpp import Job, installed, scored, tokenized
from tiny_models import TOKENS, byte_tokenizer, sentencepiece_like, tiny, trained
from tokenizers import Regex, normalizers, pre_tokenizers

from bitlora.adapter.apply import attach_weights, merge
from bitlora.adapter.latent import Latent, quantized_weights
from bitlora.adapter.peft_folder import adapter_config
from bitlora.base.describe import block_linears
from bitlora.base.linears import features
from bitlora.config.trial import layer_adapter
from bitlora.gguf.adapter_file import save_gguf
from bitlora.gguf.architecture import ARCHITECTURES
from bitlora.gguf.model_check import load_model_file
from bitlora.gguf.model_file import save_model
from bitlora.gguf.vocabulary import CUTS

NEAR = 1e-4
"""Between two sums of float32 in other orders, in nats of a token; measured: at most 2e-5."""
NEAR_GEMMA = 4e-3
"""llama.cpp looks a Gemma's activation up in a table of 16 bits; measured: at most 1.3e-3."""
TRIALS = [
    {"quantizer": "none", "scaling": "rslora"},
    {"quantizer": "ternary", "granularity": "component", "rank_pattern": "q_proj: 3, down_proj: 2"},
    {
        "quantizer": "binary",
        "scaling": "rslora",
        "rank_pattern": "o_proj: 2",
        "alpha_pattern": "k_proj: 9.5, up_proj: 2",
    },
]


def adapter(model, config, size=0.1):
    generator = torch.Generator().manual_seed(1)
    latent = {}
    for name, linear in block_linears(model).items():
        inputs, outputs = features(linear)
        rank = layer_adapter(config, name).rank
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        latent[name] = Latent(size * a, size * b)
    return quantized_weights(latent, config)


@torch.no_grad()
def logits(model, rows):
    return [model(torch.tensor([row])).logits[0, :-1].double() for row in rows]


def of_next(found, row):
    return found.log_softmax(-1)[torch.arange(len(row) - 1), torch.tensor(row[1:])].numpy()


def agree(found, ours, rows, near, clear_share=0.5):
    """Hold llama.cpp's view of rows against ours: log-probabilities, and the likeliest token where that is clear."""
    clears, apart = [], []
    for one, each, row in zip(found, ours, rows, strict=True):
        apart.append(np.abs(one.log_probabilities - of_next(each, row)))
        top = each.topk(2, -1)
        clears.append((top.values[:, 0] - top.values[:, 1]).numpy() > 2 * near)
        assert (one.likeliest[clears[-1]] == top.indices[:, 0].numpy()[clears[-1]]).all()
    assert np.max(apart) <= near
    assert np.mean(apart) <= near / 4
    assert np.mean(clears) > clear_share


def random_rows(count=20):
    return torch.randint(3, len(TOKENS), (count, 16), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_llama_cpp_says_what_the_adapter_says(kind, tmp_path):
    """Token by token, with the adapter and without; in float32 all of it."""
    installed()
    rows, base = random_rows(), tmp_path / "base.gguf"
    save_model(base, tiny(kind), byte_tokenizer(), "f32", "tiny")
    jobs, expected = [Job(base, None, rows)], [logits(tiny(kind), rows)]
    for number, varied in enumerate(TRIALS):
        config = trial(**{"rank": 6, "alpha": 24.5, **varied})
        model = tiny(kind)
        weights = adapter(model, config)
        save_gguf(tmp_path / f"{number}.gguf", weights, config, model.config)
        jobs.append(Job(base, tmp_path / f"{number}.gguf", rows))
        expected.append(logits(attach_weights(model, weights, adapter_config(config, "base", list(weights))), rows))
    found = scored(jobs, tmp_path)
    near = NEAR_GEMMA if kind.startswith("gemma") else NEAR
    for number, (job, ours) in enumerate(zip(found, expected, strict=True)):
        agree(job, ours, rows, near)
        for each, row, alone in zip(ours, rows, expected[0], strict=True):
            effect = np.abs(of_next(each, row) - of_next(alone, row)).mean()
            assert number == 0 or effect > 25 * near  # the adapter does something


class Format(NamedTuple):
    """What a whole model's format may change."""

    stored: str
    near: float
    """Of a token's log-probability, in nats: llama.cpp rounds what goes into a layer to its format as well."""
    clear: float
    """In this share of the tokens, at least, the likeliest is further ahead than twice that."""


FORMATS = [Format("f32", NEAR, 0.5), Format("f16", 1e-2, 0.5), Format("q8_0", 0.2, 0.0)]
"""Measured: 4.6e-3 and 0.14 at most, 3e-4 and 8e-3 on average."""


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "phi3"])
def test_llama_cpp_says_what_the_merged_model_says(kind, tmp_path):
    """Over the weights as they are in the file; of each quantizer, in each format. Against the base alone it does
    something."""
    installed()
    rows, alone = random_rows(), logits(tiny(kind), random_rows())
    jobs, expected, formats = [], [], []
    for number, varied in enumerate(TRIALS):
        config = trial(**{"rank": 6, "alpha": 24.5, **varied})
        for format_ in FORMATS:
            model = tiny(kind)
            merge(model, adapter(model, config), config, torch.float32)
            path = tmp_path / f"{number}-{format_.stored}.gguf"
            save_model(path, model, byte_tokenizer(), format_.stored, "tiny")
            model.load_state_dict(load_model_file(path, model.config), strict=False)
            jobs.append(Job(path, None, rows))
            expected.append(logits(model, rows))
            formats.append(format_)
    for found, ours, format_ in zip(scored(jobs, tmp_path), expected, formats, strict=True):
        near = max(format_.near, NEAR_GEMMA) if kind.startswith("gemma") else format_.near
        agree(found, ours, rows, near, format_.clear)
        effect = [np.abs(of_next(o, row) - of_next(a, row)).mean() for o, a, row in zip(ours, alone, rows, strict=True)]
        assert np.mean(effect) > 0.3


ROPES = {
    "llama": [
        {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
        {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    "qwen2": [{"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 64}],
    "phi3": [
        *({"rope_type": "longrope", "rope_theta": 1e3, "original_max_position_embeddings": before, "factor": 4.0,
           "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)]}
          for before in (128, 32)),  # llama.cpp takes the long ones where its context is longer, whatever the text is
        {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5},
    ],
    "gemma3_text": [
        {"full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 5e2}},
    ],
}  # fmt: skip


def test_positions_turn_as_they_do_in_transformers(tmp_path):
    installed()
    rows = torch.randint(3, len(TOKENS), (3, 40), generator=torch.Generator().manual_seed(3)).tolist()
    jobs, expected = [], []
    for kind, rope in ((kind, rope) for kind, of in ROPES.items() for rope in of):
        more = {"num_hidden_layers": 6, "sliding_window": 8} if kind == "gemma3_text" else {}
        model = tiny(kind, rope_parameters=rope, **more)
        jobs.append(Job(tmp_path / f"{len(jobs)}-{kind}.gguf", None, rows))
        save_model(jobs[-1].base, model, byte_tokenizer(), "f32", "tiny")
        expected.append(logits(model, rows))
    for job, found, ours in zip(jobs, scored(jobs, tmp_path), expected, strict=True):
        agree(found, ours, rows, NEAR_GEMMA if "gemma" in job.base.name else NEAR)


TEXTS = [
    "def json.loads(s, *, cls=None):\n    '''It's 1234567 of 89 bytes, isn't IT'S?'''\r\n\n\n\treturn  3.14e-10",
    "  Ein Übermaß naïver Größen – 東京で12345円、привет мир! ½ ²³ ٣٤٥ 🙂🙃 e\u0301",
    "HTTPServer camelCase UPPER_snake x'S 'll we'LL'd / path/to//file.py\n/next   \n  end ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


def corpus():
    return [pydoc.plain(pydoc.render_doc(each)) for each in (str, dict, int)] + TEXTS[:3]


def cuts():
    found = {}
    for steps, name in CUTS.items():
        parts = []
        for step in steps:
            match step:
                case "digits":
                    parts.append(pre_tokenizers.Digits(individual_digits=True))
                case "bytes" | "bytes and words":
                    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step != "bytes"))
                case "whole words":
                    pass
                case pattern:
                    parts.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        found[name] = trained(pre_tokenizers.Sequence(parts), corpus(), "whole words" in steps)
    return found


def pieces():
    """As transformers has Llama 2's and Mistral's, Gemma's, and older ones."""
    space = normalizers.Replace(" ", "▁")
    return {
        "llama": sentencepiece_like(corpus(), None, pre_tokenizers.Metaspace("▁", "always", split=False)),
        "gemma": sentencepiece_like(corpus(), space, pre_tokenizers.Split(" ", "merged_with_previous")),
        "older": sentencepiece_like(corpus(), normalizers.Sequence([normalizers.Prepend("▁"), space]), None),
    }


def test_llama_cpp_makes_the_same_tokens_of_a_text(tmp_path):
    installed()
    jobs, expected = {}, {}
    for name, tokenizer in {**cuts(), **pieces()}.items():
        path = tmp_path / f"{name}.gguf"
        model = tiny("llama", vocab_size=len(tokenizer) + 3)
        save_model(path, model, tokenizer, "f16", "tiny")
        # before a text that begins with a space transformers' Metaspace puts none, SentencePiece and llama.cpp one more
        jobs[path] = [text.lstrip() if name == "llama" else text for text in TEXTS]
        expected[name] = [tokenizer(text, add_special_tokens=False).input_ids for text in jobs[path]]
    for (name, ours), found in zip(expected.items(), tokenized(jobs, tmp_path), strict=True):
        assert found == ours, name
