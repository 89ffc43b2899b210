"""A machine that is reached by ssh: this one, over loopback, with a home of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def processes(temp: Path) -> list[psutil.Process]:
    """Every process that names the folder `temp` in its command line, and their children."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(temp) in word for word in process.cmdline()):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def end(found: list[psutil.Process]) -> None:
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)


@dataclass
class Machine:
    """What is there when the user sits down: an ssh server, a key, and `ray` on this side."""

    temp: Path
    config: Path
    """cluster-local.yaml with the values of this machine."""
    jobs: str
    """The address of the job server there."""
    env: dict[str, str]
    """Of this side."""

    def processes(self) -> list[psutil.Process]:
        """Of the cluster's Ray: the folder of its files is in their command lines."""
        return processes(self.temp / "r")

    def run(self, *command: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """A command on this side, in the repository's folder."""
        return subprocess.run(
            list(map(str, command)),
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )


def substituted(temp: Path, dashboard: int) -> dict[str, object]:
    """cluster-local.yaml, with what it says to change, ports of the test's own, and the installation left out: the
    environment that runs the tests stands in for it."""
    text = (ROOT / "cluster-local.yaml").read_text()
    others = f"--dashboard-agent-listen-port={free_port()} --ray-client-server-port={free_port()}"
    text = text.replace("--port=6379", f"--port={free_port()} {others}")
    text = text.replace("--dashboard-port=8265", f"--dashboard-port={dashboard}")
    config = yaml.safe_load(text)
    config["cluster_name"] = temp.name
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": os.environ.get("USER", "root"), "ssh_private_key": f"{temp}/key"}
    config["setup_commands"] = [c for c in config["setup_commands"] if "pip install" not in c and "-m venv" not in c]
    return config


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    found = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("sshd", "ssh", "rsync")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install openssh-server rsync")
    # Short: Ray puts sockets below it, whose paths may have 107 characters.
    temp = Path(tempfile.mkdtemp(prefix="bu-", dir="/tmp"))
    port, dashboard = free_port(), free_port()
    home, user, temps = temp / "home", temp / "user", temp / "c"
    for folder in (home, user / ".ray", temps, temp / "bin", temp / "r"):
        folder.mkdir(parents=True)
    for name in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", temp / name], check=True)
    (user / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (home / "bitlora-venv").symlink_to(VENV)
    # `ray stop` ends every Ray of a machine, and this one may have others: only this cluster's here.
    stop = f"{sys.executable} {Path(__file__)} {temp / 'r'}"
    (home / ".bashrc").write_text(
        f"export RAY_TMPDIR={temp / 'r'} HF_HUB_OFFLINE=1\n"
        f'ray() {{ if [ "$1" = stop ]; then {shlex.join(shlex.split(stop))}; else command ray "$@"; fi; }}\n'
    )
    (temp / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {temp}/host\nAuthorizedKeysFile {temp}/key.pub\nPidFile none\n"
        f"StrictModes no\nPasswordAuthentication no\nSetEnv HOME={home}\n"
    )
    # What stands in ~/.ssh/config where a machine has another port; ssh does not look for it in $HOME.
    (temp / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {found["ssh"]} -p {port} "$@"\n')
    (temp / "bin" / "ssh").chmod(0o755)
    (temp / "cluster.yaml").write_text(yaml.safe_dump(substituted(temp, dashboard)))
    with contextlib.suppress(OSError):
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it; a service's start would make it
    with (temp / "sshd.log").open("w") as log:
        server = subprocess.Popen([str(found["sshd"]), "-D", "-e", "-f", temp / "sshd_config"], stderr=log)
    env = {
        **os.environ,
        "PATH": f"{temp}/bin:{VENV}/bin:{os.environ['PATH']}",
        "HOME": str(user),
        "TMPDIR": str(temps),
        "RAY_TMPDIR": str(temps),
        "RAY_AUTH_MODE": "token",
        "COLUMNS": "200",
        "PYTHONUNBUFFERED": "1",  # Ray's own lines come when they are said, as in a terminal, and not after all of ssh's
    }
    try:
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, (temp / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.1)
        yield Machine(temp, temp / "cluster.yaml", f"http://127.0.0.1:{dashboard}", env)
    finally:
        end(processes(temp))
        server.wait(timeout=10)
        shutil.rmtree(temp, ignore_errors=True)


if __name__ == "__main__":  # the `ray stop` of the machine
    end(processes(Path(sys.argv[1])))
