"""A sweep's folder has one driver: on a disk by a lock, in object storage by a lease."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3

from bitlora import timeouts
from bitlora.files.lease import LEASE
from bitlora.files.opening import open_storage
from bitlora.files.storage import Storage
from sweeps.driver.session import alone, hold_gpus
from sweeps.spec.errors import InputError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[s3.S3Server, str]]:
    monkeypatch.setattr(timeouts, "LEASE_RENEW_S", 0.3)
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server, f"s3://{server.make_bucket('b-two')}/quick"


def drive(storage: Storage) -> None:
    with alone(storage, print, lambda: False) as lost:
        assert lost() == ""


def test_a_second_driver_of_a_bucket_is_refused_by_name(place: tuple[s3.S3Server, str]) -> None:
    _, out = place
    with open_storage(out) as one, open_storage(out) as two:
        with (
            alone(one, print, lambda: False),
            pytest.raises(
                InputError, match=rf"^{out}: the driver of .* on {re.escape(socket.gethostname())} \(process"
            ),
        ):
            drive(two)
        drive(two)
        assert two.names() == []


def test_a_driver_whose_lease_is_taken_is_told_by_whom(place: tuple[s3.S3Server, str]) -> None:
    server, out = place
    with open_storage(out) as storage, alone(storage, print, lambda: False) as lost:
        other = {**json.loads(server.get(f"{out}/{LEASE}")), "token": "another", "host": "far-away"}
        end = time.monotonic() + 10
        while not lost() and time.monotonic() < end:
            server.put(f"{out}/{LEASE}", json.dumps(other).encode())
            time.sleep(0.1)
        assert re.match(rf"{out}: the driver of .* on far-away .* took this sweep over; this one stops", lost())
    assert b"far-away" in server.get(f"{out}/{LEASE}")


def test_a_second_driver_on_a_disk_is_refused(tmp_path: Path) -> None:
    with (
        alone(open_storage(str(tmp_path)), print, lambda: False),
        pytest.raises(InputError, match="another run of this sweep is under way; wait for it, or end it"),
    ):
        drive(open_storage(str(tmp_path)))
    drive(open_storage(str(tmp_path)))


def test_two_sweeps_that_have_the_same_gpu_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first: list[str] = []
    second: list[str] = []
    with hold_gpus(2, "runs/one", first.append, tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
        with hold_gpus(2, "runs/two", second.append, tmp_path):
            pass
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5a/b")
        with hold_gpus(2, "runs/three", first.append, tmp_path):
            pass
    assert first == []
    [line] = second
    assert line.startswith(f"GPU 1: the sweep in runs/one (process {os.getpid()}) has it too, and neither knows")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with hold_gpus(3, "runs/four", first.append, tmp_path), hold_gpus(0, "runs/five", first.append, tmp_path):
        pass
    assert first == []
    (tmp_path / "bitlora-gpu-0.lock").unlink()
    (tmp_path / "bitlora-gpu-0.lock").mkdir()  # no lock can be had: nobody is told
    with hold_gpus(1, "runs/six", first.append, tmp_path):
        pass
    assert first == []
