"""What tests share: a small base with a tokenizer, instruction data, and the command line in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import results

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer with a chat template; gives the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token=special[2], pad_token=special[0], chat_template=CHAT
    )
    tokenizer.save_pretrained(folder)
    return len(vocab)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small blocks with a byte-level tokenizer and a chat template, as a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base") / "tiny"
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def float64_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX of two small blocks: in float64 all of it is, while transformers' RMSNorm runs in float32 even there."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("base") / "float64"
    config = GPTNeoXConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instruction data that can be learned a little: sums, as prompt and completion."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(12) for b in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class CommandLine:
    """`python -m sweeps` with a Ray temp dir of its own."""

    env: dict[str, str]

    def start(self, *args: str | Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sweeps", *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.env}
        return subprocess.Popen(command, **{**pipes, **options})  # type: ignore[call-overload, no-any-return]

    def __call__(self, *args: str | Path, timeout: float = 240, **options: Any) -> Ended:
        began = time.monotonic()
        process = self.start(*args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, err = process.communicate(timeout=60)
            raise AssertionError(f"still running after {timeout} s\n{out}\n{err}") from None
        return Ended(process.returncode, out, err, time.monotonic() - began)


@contextlib.contextmanager
def command_line() -> Iterator[CommandLine]:
    # Short: Ray puts sockets below it, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="bl-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        yield CommandLine({**os.environ, "RAY_TMPDIR": temp, "COLUMNS": "200"})


@pytest.fixture
def bitlora() -> Iterator[CommandLine]:
    with command_line() as command:
        yield command


SpecWriter = Callable[..., Path]


@pytest.fixture
def write_spec(tmp_path: Path, tiny_base: Path, arithmetic: Path) -> SpecWriter:
    """Writes a spec of a quick sweep; sections given replace keys of it."""
    return spec_writer(tmp_path, tiny_base, arithmetic)


def spec_writer(folder: Path, tiny_base: Path, arithmetic: Path) -> SpecWriter:
    def write(name: str = "quick", **sections: dict[str, Any]) -> Path:
        spec: dict[str, Any] = {
            "name": name,
            "out": str(folder / name),
            "base": {"model": str(tiny_base), "quantization": "none"},
            "data": {"source": str(arithmetic), "max_length": 64, "eval_rows": 12},
            "adapter": {"rank": 4, "alpha": 8},
            "train": {"steps": 8, "eval_every": 4, "batch_size": 2, "learning_rate": 1e-3, "dtype": "float32"},
            "search": {"trials": 4, "sampler": "random", "startup": 2, "space": {"rank": [2, 4, 8]}, "first": []},
            "scheduler": {"name": "none", "grace": 4},
            "resources": {"slots": 2},
        }
        for key, value in sections.items():
            spec[key] = {**spec.get(key, {}), **value}
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(spec))  # JSON is YAML
        return path

    return write


RESUMABLE: dict[str, Any] = {
    "train": {"steps": 400, "eval_every": 20, "batch_size": 4, "dtype": "float64"},
    "adapter": {"dropout": 0.1},
    "search": {
        "trials": 4,
        "sampler": "grid",
        "space": {"rank": [2, 4], "quantizer": ["none", "ternary"]},
    },
}
"""Long enough to be in the middle of it; in float64, without a scheduler and over a grid, so that two runs are equal."""


@pytest.fixture
def resumable(tmp_path: Path, float64_base: Path, arithmetic: Path) -> SpecWriter:
    """Writes the spec of a sweep whose numbers do not hang on what goes wrong meanwhile."""

    def write(out: Path | str | None = None, **resources: Any) -> Path:
        path = spec_writer(tmp_path, float64_base, arithmetic)("quick", **RESUMABLE, resources=resources)
        if out is not None:
            path.write_text(json.dumps({**json.loads(path.read_text()), "out": str(out)}))
        return path

    return write


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory: pytest.TempPathFactory, float64_base: Path, arithmetic: Path) -> Path:
    """What the sweep of `resumable` comes to where nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = spec_writer(folder, float64_base, arithmetic)("quick", **RESUMABLE)
    with command_line() as bitlora:
        ended = bitlora("sweep", spec)
    assert ended.code == 0, ended.err
    return folder / "quick"


@pytest.fixture
def undisturbed(undisturbed_folder: Path) -> Any:
    """The same, as `faults.results` has it."""
    return results(undisturbed_folder)
