"""The token of a Ray of this machine's own: made once, for its owner alone; and whoever has none is kept out."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sweeps.onray.connection import TOKEN, _have_token, own_cpus


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, in an environment with nothing else in it."""
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path / "home")})
    return tmp_path / "home"


def test_a_token_is_made_once_and_for_its_owner_alone(home: Path) -> None:
    _have_token()
    token = (home / TOKEN).read_text()
    assert len(bytes.fromhex(token)) == 32
    assert stat.S_IMODE((home / TOKEN).stat().st_mode) == 0o600
    assert stat.S_IMODE((home / TOKEN).parent.stat().st_mode) == 0o700
    _have_token()
    assert (home / TOKEN).read_text() == token
    assert [path.name for path in (home / TOKEN).parent.iterdir()] == ["auth_token"]
    assert not [name for name in os.environ if name.startswith("RAY_")]


def test_of_sweeps_that_begin_at_once_all_have_the_first_ones(home: Path) -> None:
    seen, together = [], threading.Barrier(8)

    def begin() -> None:
        together.wait()
        _have_token()
        seen.append((home / TOKEN).read_text())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_without_a_home_to_keep_it_in_it_goes_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/proc/nowhere"})
    _have_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("given", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_what_the_user_has_set_stays(home: Path, given: str) -> None:
    os.environ[given] = "disabled"
    _have_token()
    assert os.environ[given] == "disabled"
    assert not home.exists()


OWN = """
import json, os, ray, subprocess, sys
from sweeps.onray.connection import connect
STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('in')"
with connect(None):
    address = ray.get_runtime_context().gcs_address
    answer = ray.get(ray.remote(num_cpus=1)(lambda: os.environ.get("RAY_AUTH_MODE")).remote())
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    env |= {"HOME": "/proc/nowhere", "RAY_AUTH_MODE": "disabled", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    try:
        options = {"capture_output": True, "text": True, "timeout": 20}
        stranger = subprocess.run([sys.executable, "-c", STRANGER, address], env=env, **options)
        entered = "in" in stranger.stdout
    except subprocess.TimeoutExpired:
        entered = False
print(json.dumps({"answer": answer, "entered": entered}))
"""


@pytest.mark.cluster
@pytest.mark.parametrize("home", ["home", "/proc/nowhere"])
def test_an_own_ray_works_for_its_owner_and_nobody_else(home: str, tmp_path: Path) -> None:
    """Unattended, in a home that is empty, and without one."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"HOME": str(tmp_path / home), "PYTHONPATH": str(Path(__file__).parents[3])}
    options = {"capture_output": True, "text": True, "env": env, "timeout": 180}
    ended = subprocess.run([sys.executable, "-c", OWN], stdin=subprocess.DEVNULL, **options)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"answer": "token", "entered": False}
    assert "auth" not in ended.stderr.lower()
    assert (tmp_path / home / TOKEN).exists() == (home == "home")


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9000000 100000"}, 16),
        ({"pods/a/cpu.max": "max 100000", "pods/cpu.max": "300000 100000", "pods/b/cpu.max": "100000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_a_quota_of_the_control_group_is_all_there_is(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    limits = tmp_path / "cgroup"
    for name, text in files.items():
        (limits / name).parent.mkdir(parents=True, exist_ok=True)
        (limits / name).write_text(f"{text}\n")
    groups = tmp_path / "groups"
    groups.write_text("0::/pods/a\n")
    assert own_cpus(limits, groups) == cpus
    assert own_cpus(limits, tmp_path / "none") == (cpus if "pods/cpu.max" not in files else 16)
