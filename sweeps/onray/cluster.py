"""What must be known of the Ray cluster, and Ray has no call for: what its autoscaler could start; and placement groups.

A pack's placement group has the pack's name. It is all the demand for machines that a pack makes, and it stays behind when
the pack's host dies, so the pool removes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from bitlora import timeouts

HEAD: Final = {"node:__internal_head__": 0.001}
"""Asked for by what must not sit on a machine that vanishes: trials, the pool, the packs' hosts."""
KUBERAY: Final = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""In the environment of Ray's processes under KubeRay."""
NodeTypes = list[dict[str, float]]
"""The resources of a machine of each type that the autoscaler can start."""


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


def node_types() -> NodeTypes | None:
    """What the autoscaler of the cluster can start.

    Returns:
        An empty list where there is no autoscaler; None where its node types are not known here: under KubeRay, or with
        hosts whose resources only show when they join.
    """
    look = ray.remote(num_cpus=0, resources=HEAD)(_on_the_head)
    try:
        found: NodeTypes | None = ray.get(
            look.remote(ray.get_runtime_context().gcs_address), timeout=timeouts.NODE_TYPES_S
        )
    except ray.exceptions.RayError:
        return None
    return found


def _on_the_head(gcs_address: str) -> NodeTypes | None:
    """Read the file that the cluster's autoscaler was started with; it is named in its process's command line alone."""
    import psutil
    from ruamel.yaml import YAML

    if KUBERAY in os.environ:
        return None
    for process in psutil.process_iter(["cmdline"]):
        options = dict(part.partition("=")[::2] for part in process.info["cmdline"] or [])
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            return offered(YAML(typ="safe").load(Path(options["--autoscaling-config"]).expanduser().read_text()))
    return []


def offered(config: dict[str, Any]) -> NodeTypes | None:
    """The node types that a cluster file lets the autoscaler start; None where it does not say what they have."""
    types = config.get("available_node_types") or {}
    most = config.get("max_workers", 0)
    growing = [
        kind
        for name, kind in types.items()
        if min(most, kind.get("max_workers", most)) > 0 and (name != config.get("head_node_type") or len(types) == 1)
    ]
    if not all(kind.get("resources") for kind in growing):
        return None
    return [{name: float(amount) for name, amount in kind["resources"].items()} for kind in growing]
