"""What a pack's worker asks for, on a cluster that is there and on one that can grow; and where it then computes."""

from types import SimpleNamespace

import pytest
import torch

from sweeps.driver.resources import worker_resources
from sweeps.onray.cluster import offered
from sweeps.pack.worker import pack_device
from sweeps.spec.errors import InputError
from sweeps.spec.spec import ResourcesConfig

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
    assert offered(FILE) == [{"CPU": 16.0, "GPU": 4.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 1.0}]
    assert offered(FILE | {"max_workers": 0}) == []
    # Fixed hosts: what they have is known when they have joined.
    assert offered({"max_workers": 2, "available_node_types": {"local.cluster.node": {"resources": {}}}}) is None


def asks(machines, growth, **resources):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines] + [
        {"Alive": False, "Resources": {"GPU": 9}}
    ]
    return worker_resources(SimpleNamespace(resources=ResourcesConfig(**resources)), nodes, growth)


HEAD = {"CPU": 2.0}


@pytest.mark.parametrize(
    ("machines", "growth", "resources", "right"),
    [
        ([HEAD], [], {}, {"CPU": 2}),
        ([{"CPU": 8.0}], [], {"packs": 3}, {"CPU": 2}),
        ([{"CPU": 8.0}, {"CPU": 8.0}, HEAD], [], {"packs": 2}, {"CPU": 8}),
        ([{"CPU": 8.0, "GPU": 4.0}], [], {"packs": 4}, {"GPU": 1, "CPU": 2}),
        ([{"CPU": 64.0, "GPU": 1.0}], [], {}, {"GPU": 1, "CPU": 4}),
        ([HEAD], [{"CPU": 8.0, "GPU": 1.0}], {}, {"GPU": 1, "CPU": 4}),
        ([HEAD], [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}], {}, {"GPU": 1, "CPU": 2}),
        ([HEAD], [{"CPU": 8.0, "GPU": 1.0}], {"gpus_per_worker": 0.5}, {"GPU": 0.5, "CPU": 4}),
        ([HEAD], [{"CPU": 8.0, "GPU": 1.0}], {"gpus_per_worker": 0}, {"CPU": 8}),
        ([HEAD], [{"CPU": 16.0}], {"packs": 4}, {"CPU": 16}),
        ([HEAD], None, {}, {"CPU": 2}),
        ([HEAD], None, {"gpus_per_worker": 1}, {"GPU": 1, "CPU": 1}),
    ],
)
def test_what_a_worker_asks_for(machines, growth, resources, right):
    assert asks(machines, growth, **resources) == right


@pytest.mark.parametrize(
    ("growth", "asked", "said"),
    [
        ([], 1, "a worker asks for 1 GPU, and no machine has more than 0; give 0"),
        (
            [{"GPU": 4.0}],
            8,
            "a worker asks for 8 GPU, and no machine that the cluster has or can start has more than 4; give 4",
        ),
    ],
)
def test_what_no_machine_can_give_is_refused(growth, asked, said):
    with pytest.raises(InputError) as refused:
        asks([HEAD], growth, gpus_per_worker=asked)
    assert refused.value.lines == [f"resources.gpus_per_worker: {said}"]


def test_a_reserved_gpu_that_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("BITLORA_FAKE_GPUS", raising=False)
    assert pack_device({"CPU": 2.0}) == torch.device("cpu")
    with pytest.raises(RuntimeError, match=r"a GPU is reserved but PyTorch .* cannot use one: it .*gpus_per_worker: 0"):
        pack_device({"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setenv("BITLORA_FAKE_GPUS", "1")
    assert pack_device({"CPU": 2.0, "GPU": 1.0}) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("BITLORA_FAKE_GPUS")
    assert pack_device({"GPU": 0.5}) == torch.device("cuda")
