"""What a run of a sweep has to say of itself: where it ran, of which code, for how long. A line of runs.jsonl each."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bitlora import timeouts
from bitlora.files.origin import cpu_name
from bitlora.files.record import RUNS
from bitlora.files.writing import append_line

ACCELERATOR: Final = "accelerator_type:"
"""How Ray names a kind of GPU among a node's resources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One call of the command that ran the sweep, or went on with it."""

    began: str
    """UTC, ISO 8601."""
    seconds: float
    """From the start of Ray to the last record."""
    worker_seconds: float
    """Summed over the workers of all packs, each from its start to its end."""
    worker: dict[str, float]
    """What one worker had reserved: `CPU`, `GPU`."""
    machines: dict[str, Any]
    """`nodes`, `cpus`, `memory_gb`, `gpus` (kind -> number), and of the driver's machine `cpu` and `system`."""
    git: dict[str, Any] | None
    """Of the code that ran: `commit`, and whether files differed from it (`changed`). None: it is not a checkout."""
    search_ended: str = ""
    """Why fewer trials were asked for than the spec has: a budget that is spent, a grid of which not all fits."""
    prior: str = ""
    """What was known of learning rates before any trial, and how many trials had theirs from there; empty: nothing."""


def now() -> datetime:
    return datetime.now(UTC)


def machines(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The machines of a cluster. `nodes`: `ray.nodes()`."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus: Counter[str] = Counter()
    for node in alive:
        kinds = [name.removeprefix(ACCELERATOR) for name in node if name.startswith(ACCELERATOR)]
        if node.get("GPU"):
            gpus[kinds[0] if kinds else "GPU"] += int(node["GPU"])
    return {
        "nodes": len(alive),
        "cpus": int(sum(node.get("CPU", 0) for node in alive)),
        "memory_gb": round(_memory_gb(), 1),
        "gpus": dict(gpus),
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _memory_gb() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / 1e9


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any] | None:
    """The commit of the checkout that `folder` is in, and whether tracked files differ from it; None: it is in none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, timeout=timeouts.GIT_S, check=True)
        return found.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a checkout of something else may lie around an installed package
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def note(folder: Path, run: Run) -> None:
    """Add `run` to the sweep's runs.jsonl."""
    append_line(folder / RUNS, json.dumps(asdict(run), sort_keys=True))
