"""What limits a process's memory, from the files in which the kernel says so."""

import resource
import subprocess
import sys

import psutil
import pytest
import torch

from bitlora.engine import gauge

GB = 2**30


@pytest.fixture
def groups(tmp_path):
    """Writes /sys/fs/cgroup as the kernel has it: folder -> its files; and the process's own groups."""

    def write(own, **folders):
        (tmp_path / "own").write_text(own)
        for folder, (limit, used, cached) in folders.items():
            one = folder.startswith("memory")
            path = tmp_path / "mounts" / folder.replace("__", "/")
            path.mkdir(parents=True, exist_ok=True)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if one else ("memory.max", "memory.current")
            for name, value in zip(names, (limit, used), strict=True):
                (path / name).write_text(f"{value}\n")
            (path / "memory.stat").write_text(f"anon 5\n{'total_' * one}inactive_file {cached}\n")

        def rooms(own_bytes=0, sharing=1.0):
            return [room for room, _ in gauge._cgroups(own_bytes, sharing, tmp_path / "mounts", tmp_path / "own")]

        return rooms

    return write


def test_a_limit_of_either_version_leaves_what_is_not_used_or_only_cached(groups):
    rooms = groups(
        "4:memory:/job/step\n2:cpu:/\n0::/pod\n",
        memory__job__step=(2 * GB, GB, GB // 2),
        memory__job=(3 * GB, 2 * GB, 0),
        memory=(2**63 - 4096, 5 * GB, 0),  # no limit
        pod=("max", GB, 0),
    )
    assert rooms() == [1.5 * GB, GB]
    assert rooms(own_bytes=GB // 2, sharing=2) == [GB // 2, GB]
    assert groups("0::/pod/worker\n", pod=(GB, GB // 4, 0))() == [0.75 * GB]


def test_in_a_container_the_root_of_the_mount_is_the_group(groups):
    assert groups("0::/host/only\n", **{"": (GB, GB // 2, 0)})() == [GB // 2]


def test_a_machine_without_limits_has_what_is_free_less_the_reserve():
    may = gauge.budget(torch.device("cpu"))
    assert may.bytes <= psutil.virtual_memory().total
    shared = gauge.budget(torch.device("cpu"), 4)
    assert shared.bytes <= psutil.virtual_memory().total / 4
    assert "shared by 4" in shared.limit


def test_an_address_space_is_the_limit_where_it_is_the_smallest():
    program = (
        "import resource, torch, psutil\n"
        "from bitlora.engine import gauge\n"
        "limit = psutil.Process().memory_info().vms + 100 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "may = gauge.budget(torch.device('cpu'))\n"
        "print(may.bytes - gauge.held(torch.device('cpu')), may.limit)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    room, _, limit = found.stdout.partition(" ")
    assert 80 * 2**20 < int(room) <= 91 * 2**20
    assert "ulimit -v" in limit
    assert (
        resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
        or "ulimit" in gauge.budget(torch.device("cpu")).limit
    )


def test_a_gpu_is_shared_by_what_is_reserved_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 8 * GB)
    gpu = torch.device("cuda")
    assert gauge.budget(gpu).bytes == 5 * GB + int(63 * GB * 0.9)  # free on it, or held by the allocator and not used
    assert gauge.budget(gpu, 2).bytes == 5 * GB + int(35 * GB * 0.9)


def test_without_the_kernel_s_peak_a_thread_looks(monkeypatch):
    monkeypatch.setattr(gauge, "_high_water", lambda: None)
    _, small = gauge.peak_during(lambda: None, torch.device("cpu"))
    _, large = gauge.peak_during(lambda: [torch.ones(2**22) for _ in range(12)], torch.device("cpu"))
    assert large - small > 0.7 * 12 * 2**24
