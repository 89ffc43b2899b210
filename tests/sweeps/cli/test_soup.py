"""`bitlora soup`: tied finalists averaged, seed by seed, and scored beside them."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_sweep import small_sweep
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from reports.load.sweep import load_sweep
from reports.statistics.findings import findings
from sweeps.cli.app import app
from sweeps.cli.trial_folder import open_trial

SEARCHED = {
    "t0000": {"alpha": 8.0},
    "t0001": {"alpha": 16.0, "learning_rate": 1e-2},
    "t0002": {"rank": 2, "learning_rate": 1e-5},
}
SEEDS = (11, 12)
MORE = {"data": {"eval_fraction": 0.5}, "confirm": {"top": 3, "seeds": 2}}


def trials():
    found = {name: {**own, "seed": 0} for name, own in SEARCHED.items()}
    for seed in SEEDS:
        for name, own in SEARCHED.items():
            found[f"c{name[-1]}-{seed}"] = {**own, "seed": seed, "confirms": name}
    return found


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory, tiny_base, arithmetic):
    folder = small_sweep(tmp_path_factory.mktemp("soup") / "small", tiny_base, arithmetic, trials(), **MORE)
    (folder / "exit_code").write_text("0\n")
    return folder


@pytest.fixture
def sweep(confirmed, tmp_path):
    return shutil.copytree(confirmed, tmp_path / "small")


def bitlora(*args):
    ended = CliRunner().invoke(app, [str(arg) for arg in args])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def test_the_tied_ones_of_one_shape_are_averaged_and_scored_beside_each_other(sweep, monkeypatch):
    """Who is tied is made sure of by an interval that holds all; the numbers are recomputed over stock PEFT."""
    monkeypatch.setattr("reports.statistics.verdict.Rival.tied", property(lambda self: True))
    best = str(findings(load_sweep(sweep)).verdict.best[0]["name"])
    ended = bitlora("soup", sweep, "--top", 3)
    assert best != "t0002"  # of another rank than both others; else choose others
    assert ended.exit_code == 0, ended.stderr
    assert re.search(r"^The soup (is|has) ", ended.stdout, re.MULTILINE)
    record = json.loads((sweep / "soup" / "record.json").read_text())
    assert {*record["of"]} == {"t0000", "t0001"}
    for seed in SEEDS:
        tensors = {name: load_file(sweep / "trials" / f"c{name[-1]}-{seed}" / "adapter" / "adapter_model.safetensors")
                   for name in record["of"]}  # fmt: skip
        first = next(iter(record["of"]))
        made = load_file(sweep / "soup" / str(seed) / "adapter" / "adapter_model.safetensors")
        for key, value in made.items():
            parts = []
            for name, own in tensors.items():
                times = SEARCHED[name]["alpha"] / SEARCHED[first]["alpha"] if "lora_B" in key else 1.0
                parts.append(own[key].double() * times)
            assert (value.double() - sum(parts) / 2).abs().max() < 1e-7
        for name, of in record["of"].items():
            found = pd.read_parquet(sweep / "soup" / str(seed) / of[str(seed)] / "test.parquet")
            trained = pd.read_parquet(sweep / "trials" / of[str(seed)] / "test.parquet")
            pd.testing.assert_series_equal(found["loss"], trained["loss"], rtol=1e-4)
            assert name == json.loads((sweep / "trials" / of[str(seed)] / "config.json").read_text())["confirms"]

    seed = SEEDS[0]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(record["base"]["model"]), str(sweep / "soup" / str(seed) / "adapter")
    )
    with open_trial(str(sweep / "trials" / f"c0-{seed}")) as trial:
        rows = trial.test_rows()
    scores = pd.read_parquet(sweep / "soup" / str(seed) / "test.parquet").set_index("example_id")
    for at in range(3):
        cut = slice(int(rows.offsets[at]), int(rows.offsets[at + 1]))
        tokens, learn = torch.from_numpy(rows.tokens[cut]).long(), torch.from_numpy(rows.learn[cut])
        with torch.no_grad():
            odds = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        loss = -float(odds[torch.arange(len(tokens) - 1), tokens[1:]][learn[1:]].sum())
        assert loss == pytest.approx(scores.loc[rows.example_ids[at], "loss"], rel=1e-4)
    report = (sweep / "report" / "report.md").read_text()
    assert "## A soup of the finalists\n\nThe average of t000" in report


def test_what_cannot_be_averaged_is_said_in_a_line_and_nothing_is_written(sweep):
    def refused(message):
        ended = bitlora("soup", sweep)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert re.fullmatch(f"{message}\n", ended.stderr), ended.stderr
        assert not (sweep / "soup").exists()

    (sweep / "exit_code").rename(sweep / "exit")
    refused(".*small: holds no sweep that has ended .*")
    (sweep / "exit").rename(sweep / "exit_code")
    for folder in (sweep / "trials").glob("c[12]-*"):
        shutil.rmtree(folder)
    refused(".*small: nothing is tied with t0000 and of its shape, so there is nothing to average it with")
    for folder in (sweep / "trials").glob("c0-*"):
        shutil.rmtree(folder)
    refused(".*small: nothing was confirmed, so there are no rows to score a soup on; see confirm in the spec")
