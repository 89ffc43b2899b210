"""This machine's Ray nodes, found by their processes; and a control service that is away."""

import socket
import time

import psutil
import pytest

from sweeps.onray.machine import DrainError, LocalNode, drain, local_nodes


def raylet(number, *more, temp="/tmp/ray"):
    options = [f"--node_id={number * 28}", f"--temp_dir={temp}", "--gcs-address=10.0.0.1:6379"]
    # A raylet's command line has those of the processes that it starts in it.
    return ["/opt/ray/core/src/ray/raylet/raylet", "--python_worker_command=python --node_id=x --head", *options, *more]


@pytest.fixture
def machine(monkeypatch):
    class Process:
        def __init__(self, command):
            self.info = {"cmdline": command}

    commands = [
        ["python", "-m", "sweeps.drain", "--node=raylet"],
        None,
        raylet("aa", "--head"),
        raylet("bb"),
        raylet("cc", temp="/tmp/other"),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda _: [Process(command) for command in commands])
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


def test_all_nodes_of_a_machine_but_a_head(machine, monkeypatch):
    assert [(node.id, node.gcs_address) for node in local_nodes()] == [
        ("bb" * 28, "10.0.0.1:6379"),
        ("cc" * 28, "10.0.0.1:6379"),
    ]
    assert [node.id for node in local_nodes("cc" * 28)] == ["cc" * 28]
    assert local_nodes("aa" * 28) == []
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/other")
    assert [node.id for node in local_nodes()] == ["cc" * 28]
    assert [node.id for node in local_nodes("bb" * 28)] == ["bb" * 28]


def test_a_control_service_that_is_away_is_one_line_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(DrainError, match=f"the control service at {address}: ") as raised:
        drain(LocalNode("ab" * 28, address, psutil.Process()), time.time() + 60, "spot")
    assert time.monotonic() - began < 5
    assert len(str(raised.value).splitlines()) == 1


def test_a_process_that_has_ended_is_not_up():
    process = psutil.Popen(["sleep", "60"])
    node = LocalNode("ab", "", process)
    assert node.is_up()
    process.kill()
    process.wait()
    assert not node.is_up()
