"""A sweep's folder held against the contract, by a reader that shares no code with the product."""

import json
import math
from collections import Counter

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def records(folder):
    """trial id -> record."""
    found = {}
    for trial in sorted((folder / "trials").iterdir()):
        record = json.loads((trial / "record.json").read_text())
        assert record["trial_id"] == trial.name
        found[trial.name] = record
    return found


def study(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


STATE = {"completed": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL", "failed": "FAIL", "interrupted": "WAITING"}


def holds(folder):
    """Every promise about a sweep's folder; gives its records."""
    for name in ("sweep.yaml", "study.journal", "exit_code", "report/report.md", "report/trials.csv"):
        assert (folder / name).exists(), name
    assert not list(folder.rglob("*.part"))
    found = records(folder)
    states = {t.user_attrs["trial_id"]: t.state.name for t in study(folder).trials}
    assert states == {trial_id: STATE[record["status"]] for trial_id, record in found.items()}
    for trial_id, record in found.items():
        trial = folder / "trials" / trial_id
        if record["status"] != "completed":
            assert record["reason"], trial_id
        if record["status"] not in ("completed", "pruned"):
            continue
        frame = pd.read_parquet(trial / "eval.parquet")
        assert math.isclose(record["eval_loss"], frame["loss"].sum() / frame["tokens"].sum(), rel_tol=1e-12)
        lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
        assert (lines[-1]["step"], lines[-1]["eval_loss"]) == (record["steps"], record["eval_loss"])
        config = json.loads((trial / "config.json").read_text())
        assert (config.pop("stages", None), config) == (record.get("schedule"), record["config"])
        assert (trial / "adapter" / "adapter_config.json").exists()
        if record["status"] == "completed":
            assert record["steps"] == record["config"]["steps"]
    return found


def statuses(found):
    return Counter(record["status"] for record in found.values())
