"""What the constructed records of the report's tests are made of, and the page of a report alone."""

import json

from bitlora.files.baseline import Baseline, write_baseline
from bitlora.files.record import EVAL, TEST, write_scores
from reports.load.sweep import load_sweep
from reports.pages.comparison import comparison
from reports.report import report
from reports.writers.markdown import markdown


def spread(centre, apart, examples=40):
    """The mean losses of examples around `centre`, every other one `apart` above it and the rest below."""
    return [centre + (apart if index % 2 else -apart) for index in range(examples)]


def write_base(folder, evals, tests=None, metrics=None):
    """What the base scored without an adapter, of examples of ten tokens: their mean losses on both splits; and what
    metrics come to."""
    for name, means in ((EVAL, evals), (TEST, tests)):
        if means is not None:
            ids = [f"{name}{index}" for index in range(len(means))]
            write_scores(folder / "base" / name, ids, [10 * m for m in means], [10] * len(means), [40] * len(means))
    bare = Baseline(
        eval_loss=sum(evals) / len(evals),
        test_loss=sum(tests) / len(tests) if tests is not None else None,
        tokens=10 * len(evals),
        base={"model": "tiny", "quantization": "nf4"},
        versions={"torch": "2.13.0"},
        metrics=metrics,
    )
    write_baseline(folder / "base", bare)


def add_extended(add, name, loss, **config):
    """A trial that a person gave 64 steps instead of 32, and that has completed."""
    stages = [{"until": 32, "trial": None, "steps": 32, "learning_rate": 5e-4}]
    path = add(name, eval_loss=loss, steps=64, record={"schedule": stages}, **config) / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"config": record["config"] | {"steps": 64}}))


def write_run(folder):
    """A run of the sweep, as runs.jsonl tells of it: on a cluster, of a checkout that was changed."""
    run = {
        "began": "2026-01-02T03:04:05+00:00",
        "seconds": 480.5,
        "worker_seconds": 440.0,
        "worker": {"CPU": 4.0, "GPU": 1.0},
        "machines": {"nodes": 2, "cpus": 16, "memory_gb": 64.0, "gpus": {"H100": 2}, "cpu": "A CPU", "system": "Linux"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": True},
    }
    (folder / "runs.jsonl").write_text(json.dumps(run) + "\n")


def page_of(*folders):
    """The text of a sweep's report.md, or of that of several; their figures, which take seconds, are not drawn."""
    sweeps = [load_sweep(folder) for folder in folders]
    return markdown(report(sweeps[0]).document if len(sweeps) == 1 else comparison(sweeps)[0])


def begin_at(trial, loss, **metrics):
    """A line of step 0 before the others in a trial's metrics.jsonl, as one has that began with another's weights."""
    path = trial / "metrics.jsonl"
    line = {"step": 0, "tokens": 0, "train_loss": None, "eval_loss": loss, "learning_rate": 0.0, "seconds": 0.0}
    path.write_text(json.dumps(line | ({"metrics": metrics} if metrics else {})) + "\n" + path.read_text())
