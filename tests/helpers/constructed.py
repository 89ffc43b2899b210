"""What the constructed records of the report's tests are made of."""

import json


def spread(centre, apart, examples=40):
    """The mean losses of examples around `centre`, every other one `apart` above it and the rest below."""
    return [centre + (apart if index % 2 else -apart) for index in range(examples)]


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
