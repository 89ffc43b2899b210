"""What must be known of the Ray cluster, and Ray has no call for: what its autoscaler could start; and placement groups.

A pack's placement group has the pack's name. It is all the demand for machines that a pack makes, and it stays behind when
the pack's host dies, so the pool removes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from bitlora import timeouts

HEAD: Final = {"node:__internal_head__": 0.001}
"""Asked for by what must not sit on a machine that vanishes: the pool, the packs' hosts."""
KUBERAY: Final = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""In the environment of Ray's processes under KubeRay."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a cluster's autoscaler can start; without one, nothing."""

    machines: tuple[dict[str, float], ...] = ()
    """Resources, those of a type as often as there may be machines of it."""
    most: int = 0
    """At most so many of these at once."""


def pending_groups() -> set[str]:
    """The names of the placement groups for which there is no room."""
    return {info["name"] for info in placement_group_table().values() if info["state"] == "PENDING"}


def leaving_groups() -> set[str]:
    """The names of the placement groups on machines that are going away: a preemption notice, a drain."""
    draining = ray._private.state.state.get_draining_nodes()
    if not draining:
        return set()
    groups = placement_group_table().values()
    return {info["name"] for info in groups if draining.keys() & set(info["bundles_to_node_id"].values())}


def living_nodes() -> set[str]:
    """The ids of the machines that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def remove_group(name: str) -> None:
    """Remove the placement group of that name, where there is one."""
    for group, info in placement_group_table().items():
        if info["name"] == name and info["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def growth() -> Growth | None:
    """What the autoscaler of the cluster can start.

    Returns:
        None where that is not known here: under KubeRay, or with hosts whose resources only show when they join, while they
        have not.
    """
    look = ray.remote(num_cpus=0, resources=HEAD)(_on_the_head)
    joined = sum(node["Alive"] and not node["Resources"].keys() & HEAD.keys() for node in ray.nodes())
    try:
        found: Growth | None = ray.get(
            look.remote(ray.get_runtime_context().gcs_address, joined), timeout=timeouts.NODE_TYPES_S
        )
    except ray.exceptions.RayError:
        return None
    return found


def _on_the_head(gcs_address: str, joined: int) -> Growth | None:
    """Read the file that the cluster's autoscaler was started with; it is named in its process's command line alone."""
    import psutil
    from ruamel.yaml import YAML

    if KUBERAY in os.environ:
        return None
    for process in psutil.process_iter(["cmdline"]):
        options = dict(part.partition("=")[::2] for part in process.info["cmdline"] or [])
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            config = YAML(typ="safe").load(Path(options["--autoscaling-config"]).expanduser().read_text())
            return offered(config, joined)
    return Growth()


def offered(config: dict[str, Any], joined: int) -> Growth | None:
    """What a cluster file lets the autoscaler start; None where it does not say what such machines have.

    Args:
        joined: machines that are up, beside the head. Where that is all there may be, there is nothing to be known.
    """
    types = config.get("available_node_types") or {}
    most = config.get("max_workers", 0)
    counts = {
        name: min(most, kind.get("max_workers", most))
        for name, kind in types.items()
        if name != config.get("head_node_type") or len(types) == 1
    }
    growing = [types[name] for name, count in counts.items() for _ in range(count)]
    if not all(kind.get("resources") for kind in growing):
        return None if joined < min(most, len(growing)) else Growth()
    machines = ({name: float(amount) for name, amount in kind["resources"].items()} for kind in growing)
    return Growth(tuple(machines), min(most, len(growing)))
