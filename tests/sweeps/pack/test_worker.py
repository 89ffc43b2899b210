"""What a pack's worker decides by itself: where it computes, in what, and what marks its checkpoints and scores."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adapters import trial

from bitlora.base import load
from bitlora.config.sections import BaseConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.gauge import Budget
from bitlora.files.origin import cpu_name, versions
from bitlora.forward.inject import load_base
from sweeps.pack import worker
from sweeps.pack.host import lacking
from sweeps.pack.settings import PackSettings
from sweeps.pack.worker import agreed_dtype, device_name, identity, origin, pack_device
from sweeps.pool.messages import Stop
from sweeps.pool.pool import Pool

CPU = torch.device("cpu")


# ---- where


def test_a_reserved_gpu_that_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("BITLORA_FAKE_GPUS", raising=False)
    assert pack_device({"CPU": 2.0}) == CPU
    with pytest.raises(RuntimeError, match=r"a GPU is reserved but PyTorch .* cannot use one: it .*gpus_per_worker: 0"):
        pack_device({"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setenv("BITLORA_FAKE_GPUS", "1")
    assert pack_device({"CPU": 2.0, "GPU": 1.0}) == CPU


def test_a_worker_computes_on_its_own_gpu(monkeypatch, tiny_base):
    """The third of a machine's workers: weights, too, are loaded onto the GPU that Ray Train says is its own."""
    monkeypatch.delenv("BITLORA_FAKE_GPUS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cuda:2"))
    device = pack_device({"GPU": 0.5})
    assert device == torch.device("cuda:2")

    asked: dict[str, Any] = {}

    def from_pretrained(place, **options):
        asked.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    load.load_model(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, device)
    assert asked["device_map"] == {"": "cuda:2"}


# ---- with what


def test_a_machine_that_lacks_a_package_says_so(monkeypatch):
    """And not only that a worker died: one whose packages are others than the driver's, and one that lacks this one."""
    told = []
    pool = SimpleNamespace(
        pack_started=SimpleNamespace(remote=lambda *_: None),
        pack_failed=SimpleNamespace(remote=lambda *args: told.append(args)),
    )
    monkeypatch.setattr("ray.get_actor", lambda _: pool)
    monkeypatch.setattr("ray.get", lambda answer: answer)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setitem(sys.modules, "sweeps.pack.loop", None)
    with pytest.raises(ImportError):
        worker.worker_loop({"pack": "p0"})
    [(name, why)] = told
    assert name == "p0"
    assert why.startswith(f"{platform.node()} cannot run what the driver sent: import of sweeps.pack.loop halted; ")
    assert why.endswith("the machines of a sweep need the same packages in the same versions")

    trace = (
        "Training failed due to worker errors:\n[Rank 0]\nTraceback\nModuleNotFoundError: No module named 'sweeps'\n"
    )
    said = ": ModuleNotFoundError: No module named 'sweeps'; each machine needs the packages that the driver has"
    assert lacking(RuntimeError(trace)) == said
    assert lacking(RuntimeError("The actor died unexpectedly")) == ""


# ---- in what


def agreed(monkeypatch, *machines, dtype="auto", begun_in=None):
    """What workers on machines that would take these come to, one after the other, with one pool."""
    pool = Pool("settings", None, 2, (0, 1))
    settings: Any = SimpleNamespace(dtype=dtype, begun_in=begun_in)
    found = []
    for number, own in enumerate(machines):
        monkeypatch.setattr(load, "resolve_dtype", lambda asked, device, own=own: getattr(torch, own))
        settle = lambda taken, name=f"pack-{number}": asyncio.run(pool.settle_dtype(name, taken))  # noqa: E731
        found.append(str(agreed_dtype(settings, CPU, settle)).removeprefix("torch."))
    return found


def test_auto_is_what_the_first_pack_takes(monkeypatch):
    assert agreed(monkeypatch, "float32", "bfloat16") == ["float32", "float32"]
    assert agreed(monkeypatch, "bfloat16", "bfloat16") == ["bfloat16", "bfloat16"]
    # and in a sweep that goes on, what it was
    assert agreed(monkeypatch, "bfloat16", "float32", begun_in="float32") == ["float32", "float32"]


@pytest.mark.parametrize("begun_in", [None, "bfloat16"])
def test_a_machine_that_cannot_do_what_the_others_do_is_refused(monkeypatch, begun_in):
    machines = ["float32"] if begun_in else ["bfloat16", "float32"]
    said = rf"auto is bfloat16 in this sweep.* {platform.node()} \(.+\) does not multiply it: give train.dtype: float32"
    with pytest.raises(RuntimeError, match=said):
        agreed(monkeypatch, *machines, begun_in=begun_in)


def test_what_the_spec_says_is_left_alone(monkeypatch):
    assert agreed(monkeypatch, "bfloat16", "float32", dtype="given", begun_in="float64") == ["bfloat16", "float32"]


# ---- marked with what


def test_scores_say_what_computed_them_and_checkpoints_whose_they_are(monkeypatch, tiny_base):
    config = BaseConfig(model=str(tiny_base), quantization="none", targets=["v_proj"])
    base = load_base(config, torch.float32, CPU)
    found = origin(base)
    assert (found.dtype, found.device, found.host) == ("float32", cpu_name(), platform.node())
    assert found.versions == versions()
    assert found.versions["torch"] == torch.__version__
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_name(torch.device("cuda:3")) == "card 3"

    own = identity(base, config)
    assert own == identity(load_base(config, torch.float32, CPU), config)
    assert own != identity(base, config.model_copy(update={"revision": "another"}))
    assert own != identity(load_base(config, torch.float64, CPU), config)
    assert worker.identity(base, config.model_copy(update={"quantization": "nf4"})) != own


# ---- all of it, with a pool that is played


class PlayedPool:
    """Answers what a worker asks, and keeps what it is told."""

    def __init__(self, settings, known=None):
        self.settings_, self.known, self.told = settings, known, []

    def __getattr__(self, name):
        answers = {"settings": self.settings_, "known_memory": self.known, "evaluated": True}

        def remote(*arguments, **more):
            self.told.append((name, *arguments))
            if name == "commands":
                return [Stop()]
            return arguments[1] if name == "settle_dtype" else answers.get(name)

        return SimpleNamespace(remote=remote)

    def said(self, name):
        return [call[1:] for call in self.told if call[0] == name]


@pytest.fixture
def played(monkeypatch, tmp_path, tiny_base):
    """Runs a pack's worker with a pool that knows so much of memory, and may hold so many bytes."""
    import ray.train

    from bitlora.files.storage import Storage

    rows = Rows(np.arange(24, dtype=np.int32), np.arange(24) % 8 > 3, np.arange(0, 25, 8), ("a", "b", "c"), np.ones(3))
    storage = Storage("here", tmp_path)

    def run(known=None, bytes_=10**15, slots=3, given=False):
        settings = PackSettings(
            base=BaseConfig(model=str(tiny_base), quantization="none"),
            dtype="float32",
            checkpointing=False,
            dataset=Dataset(rows, rows, rows, None),
            slots=slots,
            slots_given=given,
            widest=trial("none", rank=4, batch_size=2),
            measured={},
            most_workers=1,
            storage=storage,
            token=storage.place_token(),
            checkpoint_every=None,
            workers=1,
            resources={"CPU": 1.0},
        )
        pool = PlayedPool(settings, known)
        monkeypatch.setattr(ray, "get_actor", lambda name: pool)
        monkeypatch.setattr(ray, "get", lambda found: found)
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n1", "Resources": {"CPU": 2.0}}])
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n1"))
        monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
        monkeypatch.setattr("sweeps.pack.memory.budget", lambda device, sharing: Budget(bytes_, "the moon"))
        worker.worker_loop({"pack": "p1"})
        log = [json.loads(line) for line in (tmp_path / "logs" / "p1.jsonl").read_text().splitlines()]
        (tmp_path / "logs" / "p1.jsonl").unlink()
        return pool, [line["event"] for line in log]

    return run


def test_a_worker_measures_what_the_pool_does_not_know_and_says_how_many_slots_it_has(played):
    pool, [line] = played()
    [(key, found)] = pool.said("keep_memory")
    assert cpu_name() in key
    assert found["row"] == 8
    assert "3 slots and whole steps of" in line
    assert pool.said("pack_ready") == [("p1", 3, [])]  # where all fits, nobody needs to hear of it
    # as JSON keeps it, it is known to the next pack
    again, [line] = played(known=json.loads(json.dumps(found)))
    assert not again.said("keep_memory")
    assert again.said("known_memory") == [("p1", key)]
    assert "as measured before" in line


NEEDS = {"base": 1000.0, "slot": 100.0, "token": 1.0, "eval_token": 0.5, "row": 8}


def test_a_worker_with_less_memory_has_fewer_slots_and_a_person_hears_of_it(played):
    pool, lines = played(NEEDS, 1000 + 2 * 108)
    assert pool.said("pack_ready") == [("p1", 2, lines)]
    pool, lines = played(NEEDS, 1000 + 2 * 108, given=True)
    assert pool.said("pack_ready") == [("p1", 3, lines)]
    assert "3 slots with a row each need" in lines[1]


def test_a_worker_shares_with_those_that_reserve_the_rest(monkeypatch):
    gpu = torch.device("cuda")
    assert worker.sharing(SimpleNamespace(resources={"GPU": 0.25}), gpu) == 4
    assert worker.sharing(SimpleNamespace(resources={"GPU": 1.0}), gpu) == 1
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "n1", "Resources": {"CPU": 9.0}}])
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n1"))
    assert worker.sharing(SimpleNamespace(resources={"CPU": 4.0}, most_workers=8), CPU) == 2
    assert worker.sharing(SimpleNamespace(resources={"CPU": 2.0}, most_workers=3), CPU) == 3
    assert worker.sharing(SimpleNamespace(resources={"CPU": 9.0}, most_workers=8), CPU) == 1
