"""What tests share: a small base with a tokenizer, instruction data, and the command line in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import CommandLine, SpecWriter, command_line, save_tokenizer, spec_writer
from faults import EVERY, PACE_S, STEPS, changed_by, results


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


@pytest.fixture
def bitlora() -> Iterator[CommandLine]:
    with command_line() as command:
        yield command


@pytest.fixture
def write_spec(tmp_path: Path, tiny_base: Path, arithmetic: Path) -> SpecWriter:
    """Writes a spec of a quick sweep; sections given replace keys of it."""
    return spec_writer(tmp_path, tiny_base, arithmetic)


RESUMABLE: dict[str, Any] = {
    "train": {"steps": STEPS, "eval_every": EVERY, "batch_size": 4, "dtype": "float64"},
    "adapter": {"dropout": 0.1},
    "search": {
        "trials": 4,
        "sampler": "grid",
        "space": {"rank": [2, 4], "quantizer": ["none", "ternary"]},
    },
}
"""In float64, without a scheduler and over a grid, so that two runs are equal; `pace` lets one be in the middle of it."""


@pytest.fixture
def pace(bitlora: CommandLine, tmp_path: Path) -> Path:
    """While this file is there, the steps of sweeps take PACE_S: no machine is too fast for what is to be done to them."""
    file = tmp_path / "pace"
    file.touch()
    changed_by(bitlora.env, BITLORA_PACE=f"{PACE_S}:{file}")
    return file


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
