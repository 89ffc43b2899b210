"""The command line in a process of its own, the specs that it is given, and a tokenizer for small bases."""

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


SpecWriter = Callable[..., Path]
SPACE = {"rank": [2, 4, 8], "learning_rate": {"low": 9e-4, "high": 1e-3, "log": True}}
"""Ranks by chance, and rates so that no two trials are the same."""


def spec_writer(folder: Path, tiny_base: Path, arithmetic: Path) -> SpecWriter:
    def write(name: str = "quick", **sections: dict[str, Any]) -> Path:
        spec: dict[str, Any] = {
            "name": name,
            "out": str(folder / name),
            "base": {"model": str(tiny_base), "quantization": "none"},
            "data": {"source": str(arithmetic), "max_length": 64, "eval_rows": 12},
            "adapter": {"rank": 4, "alpha": 8},
            "train": {"steps": 8, "eval_every": 4, "batch_size": 2, "learning_rate": 1e-3, "dtype": "float32"},
            "search": {"trials": 4, "sampler": "random", "startup": 2, "space": SPACE, "first": []},
            "scheduler": {"name": "none", "grace": 4},
            "resources": {"slots": 2},
        }
        for key, value in sections.items():
            spec[key] = {**spec.get(key, {}), **value}
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(spec))  # JSON is YAML
        return path

    return write
