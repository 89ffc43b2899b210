"""`bitlora export --to peft` for servers of adapters: the folder, and what its card says of them."""

import json
import re

import pytest
from small_sweep import small_sweep
from typer.testing import CliRunner

from sweeps.cli.app import app

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
