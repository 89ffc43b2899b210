"""Trackers are Ray Tune's own loggers; what they need and is not there is said before anything starts."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from faults import wait_for

from sweeps.driver.underway import trackers
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    assert trackers.missing(["tensorboard", "wandb"]) == [
        "trackers: wandb needs the package wandb, which is not installed; run: pip install wandb"
    ]
    assert trackers.missing([]) == []


@pytest.mark.cluster
@pytest.mark.slow
def test_every_tracker_has_every_evaluation(bitlora, write_spec, tmp_path):
    from tensorboardX.proto import event_pb2

    path = write_spec(search={"trials": 2, "sampler": "grid", "space": {"rank": [2, 4]}})
    path.write_text(json.dumps({**json.loads(path.read_text()), "trackers": ["tensorboard", "wandb", "mlflow"]}))
    bitlora.env |= {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    ended = bitlora("sweep", path, cwd=tmp_path)
    assert ended.code == 0, ended.err
    folder = tmp_path / "quick"
    expected = {}
    for trial in ("t0000", "t0001"):
        lines = (folder / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        expected[trial] = [(line["step"], line["eval_loss"]) for line in map(json.loads, lines)]

    for trial, evaluations in expected.items():
        (events,) = folder.glob(f"logs/tune-*/{trial}/events.out.tfevents.*")
        assert [(s, pytest.approx(v, rel=1e-6)) for s, v in scalars(events, event_pb2)] == evaluations
    with sqlite3.connect(tmp_path / "mlflow.db") as data:
        rows = data.execute(
            "select t.value, m.step, m.value from metrics m join tags t on m.run_uuid = t.run_uuid"
            " where m.key = 'eval_loss' and t.key = 'trial_name' order by m.step"
        ).fetchall()
    logged = {trial: [(step, value) for name, step, value in rows if name == trial] for trial in expected}
    assert logged == expected
    assert len(list(folder.glob("logs/tune-*/t*/wandb/offline-run-*/run-*.wandb"))) == 2


def scalars(path, event_pb2):
    """(step, eval loss) of an event file: length, its checksum, the event, its checksum."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "ray/tune/eval_loss"]
        at += 16 + length
    return found


def test_optuna_dashboard_opens_the_study(tmp_path):
    spec = Spec.model_validate({"name": "mine", "base": {"model": "a"}, "data": {"source": "b"}})
    one = OptunaSearcher(spec, tmp_path / "study.journal")
    one.suggest("tune0")
    one.finish("t0000", "completed", 2.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("optuna-dashboard")),
        str(tmp_path / "study.journal"),
        "--port",
        str(port),
    ]
    with subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            studies = wait_for(lambda: ask(f"http://127.0.0.1:{port}/api/studies"), "the dashboard", 60)
            (study,) = studies["study_summaries"]
            assert study["study_name"] == "mine"
            found = ask(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}")
            assert [(t["state"], t["values"]) for t in found["trials"]] == [("Complete", [2.5])]
        finally:
            server.terminate()


def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None
