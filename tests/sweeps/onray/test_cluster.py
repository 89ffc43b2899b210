"""What a pack's worker asks for and how many packs there may be, on a cluster that is there and on one that can grow."""

from types import SimpleNamespace

import pytest

from sweeps.driver.resources import pack_limits, worker_resources
from sweeps.onray.cluster import Growth, offered
from sweeps.spec.errors import InputError
from sweeps.spec.keys.resources import ResourcesConfig

SPOT = {"CPU": 16.0, "GPU": 4.0, "memory": 1e9}
ON_DEMAND = {"CPU": 4.0, "GPU": 1.0}
FILE = {
    "max_workers": 8,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8, "GPU": 8}, "max_workers": 0},
        "spot": {"resources": {"CPU": 16, "GPU": 4, "memory": 1e9}, "max_workers": 4},
        "unused": {"resources": {"CPU": 64}, "max_workers": 0},
        "on-demand": {"resources": {"CPU": 4, "GPU": 1}},
    },
}


def test_what_a_cluster_file_offers():
    assert offered(FILE, 0) == Growth((SPOT,) * 4 + (ON_DEMAND,) * 8, 8)
    assert offered(FILE, 9) == offered(FILE, 0)
    assert offered(FILE | {"max_workers": 2}, 0) == Growth((SPOT,) * 2 + (ON_DEMAND,) * 2, 2)
    assert offered(FILE | {"max_workers": 0}, 0) == Growth()
    # Fixed hosts: what they have is known when they have joined.
    hosts = {"max_workers": 2, "available_node_types": {"local.cluster.node": {"resources": {}}}}
    assert [offered(hosts, joined) for joined in range(3)] == [None, None, Growth()]


def asks(machines, growth, **resources):
    """What a worker asks for, and the limits of packs. `growth`: machines that can be started, each once."""
    if isinstance(growth, list):
        growth = Growth(tuple(growth), len(growth))
    spec = SimpleNamespace(resources=ResourcesConfig(**resources))
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}
    nodes = [dead, *({"Alive": True, "Resources": machine} for machine in machines)]
    worker = worker_resources(spec, nodes, growth)
    return worker, pack_limits(spec, nodes, growth, worker)


HEAD = {"CPU": 2.0, "node:__internal_head__": 1.0}
BARE = {"node:__internal_head__": 1.0}
"""A head that nothing trains on, with `num-cpus: 0`."""
BOX = {"CPU": 64.0, "GPU": 8.0, "node:__internal_head__": 1.0}
"""A machine with 8 GPUs, and its own Ray."""
SMALL = {"CPU": 8.0, "GPU": 1.0}

KNOWN = {
    "a laptop": ([HEAD], [], {}, {"CPU": 2}, (0, 1)),
    "CPUs, packs beside each other": ([{"CPU": 8.0}], [], {"packs": 3}, {"CPU": 2}, (0, 3)),
    "CPUs of two machines": ([{"CPU": 8.0}, {"CPU": 8.0}, HEAD], [], {"packs": 2}, {"CPU": 8}, (0, 2)),
    "CPUs of many machines": ([{"CPU": 8.0}] * 5, [], {}, {"CPU": 8}, (0, 1)),
    "CPUs that can be started": ([HEAD], [{"CPU": 16.0}], {"packs": 4}, {"CPU": 16}, (0, 4)),
    "between two numbers": ([HEAD], [], {"packs": {"min": 1, "max": 2}}, {"CPU": 1}, (1, 2)),
    "8 GPUs": ([BOX], [], {}, {"GPU": 1, "CPU": 4}, (0, 8)),
    "more GPUs than a head can start packs for": ([HEAD] + [BOX] * 200, [], {}, {"GPU": 1, "CPU": 4}, (0, 990)),
    "8 GPUs, halved": ([BOX], [], {"gpus_per_worker": 0.5}, {"GPU": 0.5, "CPU": 4}, (0, 16)),
    "8 GPUs, three to a pack": ([BOX], [], {"workers_per_pack": 3}, {"GPU": 1, "CPU": 4}, (0, 2)),
    "8 GPUs, more to a pack": ([BOX], [], {"workers_per_pack": 9}, {"GPU": 1, "CPU": 4}, (0, 1)),
    "8 GPUs, few cores": ([BOX | {"CPU": 4.0}], [], {}, {"GPU": 1, "CPU": 1}, (0, 4)),
    "8 GPUs, not to be used": ([BOX], [], {"gpus_per_worker": 0}, {"CPU": 64}, (0, 1)),
    "GPUs, a number of packs": ([BOX], [], {"packs": 2}, {"GPU": 1, "CPU": 4}, (0, 2)),
    "unlike machines": ([HEAD, SMALL, {"CPU": 2.0, "GPU": 2.0}, {"CPU": 9.0}], [], {}, {"GPU": 1, "CPU": 1}, (0, 3)),
    "a head without GPUs": ([BARE], [SMALL] * 4, {}, {"GPU": 1, "CPU": 4}, (0, 4)),
    "a head with GPUs, that grows": ([BOX], [SMALL] * 4, {}, {"GPU": 1, "CPU": 4}, (0, 12)),
    "some of those that can be are up": ([BARE, SMALL, SMALL], [SMALL] * 4, {}, {"GPU": 1, "CPU": 4}, (0, 4)),
    "unlike machines to start": ([HEAD], [SMALL, {"CPU": 2.0, "GPU": 1.0}], {}, {"GPU": 1, "CPU": 2}, (0, 2)),
    "fewer in all than of the types": ([BARE], offered(FILE, 0), {}, {"GPU": 1, "CPU": 4}, (0, 20)),
    "GPUs that can be, not to be used": ([HEAD], [SMALL], {"gpus_per_worker": 0}, {"CPU": 8}, (0, 1)),
}
UNKNOWN = {
    "KubeRay from zero, GPUs": ([BARE], None, {"gpus_per_worker": 1, "packs": 4}, {"GPU": 1, "CPU": 1}, (0, 4)),
    "KubeRay from zero, no number": ([BARE], None, {"gpus_per_worker": 1}, {"GPU": 1, "CPU": 1}, (0, 1)),
    "KubeRay from zero, CPUs": ([BARE], None, {"gpus_per_worker": 0}, {"CPU": 1}, (0, 1)),
    "KubeRay, a GPU is up": ([BARE, SMALL], None, {}, {"GPU": 1, "CPU": 4}, (0, 1)),
}


@pytest.mark.parametrize(
    ("machines", "growth", "resources", "worker", "packs"),
    [pytest.param(*case, id=name) for name, case in {**KNOWN, **UNKNOWN}.items()],
)
def test_what_a_worker_asks_for_and_how_many_packs_there_may_be(machines, growth, resources, worker, packs):
    assert asks(machines, growth, **resources) == (worker, packs)


@pytest.mark.parametrize(
    ("machines", "growth", "resources", "said"),
    [
        ([HEAD], [], {"gpus_per_worker": 1}, "a worker asks for 1 GPU, and no machine has more than 0; give 0"),
        (
            [HEAD],
            [{"GPU": 4.0}],
            {"gpus_per_worker": 8},
            "a worker asks for 8 GPU, and no machine that the cluster has or can start has more than 4; give 4",
        ),
        # KubeRay from zero: were it left to what is up, it would train on a core of a GPU machine.
        (
            [BARE],
            None,
            {},
            "no machine that is up has a GPU, and what else this cluster can start is not known here; give 1 to train on "
            "GPUs, or 0 to train on CPUs",
        ),
        (
            [HEAD, {"CPU": 32.0}],
            None,
            {"packs": 4},
            "no machine that is up has a GPU, and what else this cluster can start is not known here; give 1 to train on "
            "GPUs, or 0 to train on CPUs",
        ),
    ],
)
def test_what_no_machine_can_give_or_nobody_can_tell_is_refused(machines, growth, resources, said):
    with pytest.raises(InputError) as refused:
        asks(machines, growth, **resources)
    assert refused.value.lines == [f"resources.gpus_per_worker: {said}"]
