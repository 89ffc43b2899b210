"""Sweep folders made of records, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitlora.files.record import EVAL, TEST, Metrics, Record, append_metrics, write_record, write_scores
from bitlora.files.writing import write_json

CONFIG = {
    "quantizer": "none",
    "activations": "full",
    "rank": 16,
    "alpha": 16.0,
    "dropout": 0.0,
    "learning_rate": 5e-4,
    "batch_size": 4,
    "steps": 32,
    "seed": 0,
}
SPEC = """\
name: quickstart
base: {model: tiny, quantization: nf4}
data: {source: pydoc}
search:
  trials: 8
  sampler: tpe
  space:
    quantizer: [none, binary, ternary]
    rank: [8, 16, 32]
    learning_rate: {low: 1e-4, high: 5e-3, log: true}
scheduler: {name: asha, grace: 8, reduction: 2}
"""

AddTrial = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty sweep's folder, by its path relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    path = Path("runs/quickstart")
    (path / "trials").mkdir(parents=True)
    (path / "sweep.yaml").write_text(SPEC, encoding="utf-8")
    return path


@pytest.fixture
def add(folder: Path) -> AddTrial:
    """Adds a trial to `folder`: its id, status, eval loss and steps, what else its record says, the mean loss of each
    example of the eval split and of the test split, its config."""

    def add_trial(
        trial_id: str,
        status: str = "completed",
        eval_loss: float | None = None,
        steps: int = 32,
        record: dict[str, Any] | None = None,
        scores: list[float] | None = None,
        test: list[float] | None = None,
        **config: Any,
    ) -> Path:
        trial = folder / "trials" / trial_id
        trial.mkdir()
        chosen = CONFIG | config
        write_json(trial / "config.json", chosen)
        if eval_loss is not None:
            metrics = Metrics(
                step=steps, tokens=100 * steps, train_loss=3.0, eval_loss=eval_loss, learning_rate=0.0, seconds=1.0,
                rows=(record or {}).get("eval_rows"),
            )  # fmt: skip
            append_metrics(trial, metrics)
        for name, means in ((EVAL, scores), (TEST, test)):
            if means is not None:  # of examples of ten tokens each; the loss is then theirs
                ids = [f"{name}{index}" for index in range(len(means))]
                write_scores(trial / name, ids, [10 * m for m in means], [10] * len(means), [40] * len(means))
        values = {
            "trial_id": trial_id,
            "status": status,
            "reason": "" if status == "completed" else f"{status} for a reason",
            "config": chosen,
            "eval_loss": eval_loss,
            "steps": steps,
            "tokens": 100 * steps,
            "seconds": 1.0,
            "adapter_params": 76_320 * chosen["rank"],
            "adapter_bytes": 2 * 76_320 * chosen["rank"] if chosen["quantizer"] == "none" else 9_540 * chosen["rank"],
            "base": {"model": "tiny", "quantization": "nf4", "params": 134515008},
            "data": {"source": "pydoc", "train_rows": 2585, "eval_rows": 48},
            "versions": {"torch": "2.13.0"},
            "test_loss": sum(test) / len(test) if test is not None else None,
        }
        write_record(trial, Record(**(values | (record or {}))))
        return trial

    return add_trial
