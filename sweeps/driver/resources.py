"""What a pack asks the cluster for, and how many packs there may be."""

from __future__ import annotations

import math
from typing import Any, Final

from sweeps.onray.cluster import NodeTypes
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec

SLOTS: Final = {"cpu": 4, "gpu": 8}
"""What `slots: auto` means until it is measured."""
GPU_WORKER_CPUS: Final = 4


def worker_resources(spec: Spec, nodes: list[dict[str, Any]], growth: NodeTypes | None) -> dict[str, float]:
    """What one worker of a pack asks for: a GPU where the cluster has or can get some, else a machine's CPUs.

    Args:
        nodes: `ray.nodes()`.
        growth: what machines the cluster's autoscaler can start; None: that is not known.

    Raises:
        InputError: no machine has as many GPUs as the spec asks for, nor can one be got that has.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]] + (growth or [])
    gpus = spec.resources.gpus_per_worker
    most = max(machine.get("GPU", 0.0) for machine in machines)
    if gpus == "auto":
        gpus = 1 if most >= 1 else 0
    if gpus > most and growth is not None:
        what = "no machine that the cluster has or can start" if growth else "no machine"
        raise InputError(
            [
                f"resources.gpus_per_worker: a worker asks for {gpus:g} GPU, and {what} has more than {most:g}; "
                f"give {most:g}"
            ]
        )
    if gpus:
        shares = [int(m.get("CPU", 0) * gpus / m["GPU"]) for m in machines if m.get("GPU", 0) >= gpus]
        return {"GPU": float(gpus), "CPU": float(max(1, min([GPU_WORKER_CPUS, *shares]) if shares else 1))}
    cpus = int(max(machine.get("CPU", 1) for machine in growth or machines))
    if growth == []:  # packs that have to share a machine share its CPUs
        largest = sum(machine.get("CPU", 0) >= cpus for machine in machines)
        cpus //= math.ceil(pack_limits(spec)[1] * spec.resources.workers_per_pack / max(1, largest))
    return {"CPU": float(max(1, cpus))}


def pack_limits(spec: Spec) -> tuple[int, int]:
    """The fewest and the most packs; a number alone is the most."""
    packs = spec.resources.packs
    return (0, packs) if isinstance(packs, int) else (packs.min, packs.max)
