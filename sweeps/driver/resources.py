"""What a pack asks the cluster for, and how many packs there may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from sweeps.onray.cluster import HEAD, Growth
from sweeps.spec.errors import InputError
from sweeps.spec.keys.resources import MOST_PACKS, PacksConfig
from sweeps.spec.spec import Spec

SLOTS: Final = {"cpu": 4, "gpu": 8}
"""The most that `slots: auto` gives, where memory has room for them: on a CPU arithmetic is the limit then."""
GPU_WORKER_CPUS: Final = 4


def worker_resources(spec: Spec, nodes: list[dict[str, Any]], growth: Growth | None) -> dict[str, float]:
    """What one worker of a pack asks for: a GPU where the cluster has or can get some, else a machine's CPUs.

    Args:
        nodes: `ray.nodes()`.
        growth: what the cluster's autoscaler can start; None: that is not known.

    Raises:
        InputError: no machine has as many GPUs as the spec asks for, nor can one be got that has; or the spec leaves open
            whether it trains on GPUs, and nothing here can tell.
    """
    more = list(growth.machines) if growth is not None else []
    machines = [node["Resources"] for node in nodes if node["Alive"]] + more
    gpus = _gpus(spec, max(machine.get("GPU", 0.0) for machine in machines), growth)
    if gpus:
        shares = [int(m.get("CPU", 0) * gpus / m["GPU"]) for m in machines if m.get("GPU", 0) >= gpus]
        return {"GPU": gpus, "CPU": float(max(1, min([GPU_WORKER_CPUS, *shares]) if shares else 1))}
    cpus = int(max(machine.get("CPU", 1) for machine in more or machines))
    if growth is not None and not more:  # packs that have to share a machine share its CPUs
        largest = sum(machine.get("CPU", 0) >= cpus for machine in machines)
        most = pack_limits(spec, nodes, growth, {})[1]
        cpus //= math.ceil(most * spec.resources.workers_per_pack / max(1, largest))
    return {"CPU": float(max(1, cpus))}


def _gpus(spec: Spec, most: float, growth: Growth | None) -> float:
    """GPUs of a worker, where a machine has at most `most` of them."""
    gpus = spec.resources.gpus_per_worker
    if gpus == "auto" and growth is None and most < 1:
        raise InputError(
            [
                "resources.gpus_per_worker: no machine that is up has a GPU, and what else this cluster can start is not "
                "known here; give 1 to train on GPUs, or 0 to train on CPUs"
            ]
        )
    if gpus == "auto":
        gpus = 1 if most >= 1 else 0
    if gpus > most and growth is not None:
        what = "no machine that the cluster has or can start" if growth.machines else "no machine"
        raise InputError(
            [
                f"resources.gpus_per_worker: a worker asks for {gpus:g} GPU, and {what} has more than {most:g}; "
                f"give {most:g}"
            ]
        )
    return float(gpus)


def pack_limits(
    spec: Spec, nodes: list[dict[str, Any]], growth: Growth | None, worker: dict[str, float]
) -> tuple[int, int]:
    """The fewest and the most packs; a number alone is the most.

    Args:
        nodes, growth: as for `worker_resources`.
        worker: what one worker asks for. `packs: auto` is all that fit where it asks for a GPU, else one.
    """
    packs = spec.resources.packs
    if isinstance(packs, PacksConfig):
        return packs.min, packs.max
    if packs != "auto":
        return 0, packs
    fitting = _fitting(worker, nodes, growth or Growth()) if worker.get("GPU") else 0
    return 0, min(MOST_PACKS, max(1, fitting // spec.resources.workers_per_pack))


def _fitting(worker: dict[str, float], nodes: list[dict[str, Any]], growth: Growth) -> int:
    """How many workers fit on the cluster at its largest. Of the machines beside the head, those that are up may be some of
    those that can be started, so the larger of the two counts."""

    def fit(machines: Iterable[dict[str, float]], most: int | None = None) -> int:
        counts = [int(min(machine.get(name, 0) / asked for name, asked in worker.items())) for machine in machines]
        return sum(sorted(counts, reverse=True)[:most])

    up = [node["Resources"] for node in nodes if node["Alive"]]
    head = [machine for machine in up if machine.keys() & HEAD.keys()]
    others = [machine for machine in up if not machine.keys() & HEAD.keys()]
    return fit(head) + max(fit(others), fit(growth.machines, growth.most))
