"""A lease on a sweep's folder in object storage: a second driver is told whose it is, a dead one's is taken over."""

import dataclasses
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest
import s3

from bitlora import timeouts
from bitlora.files import lease
from bitlora.files.lease import LEASE, HeldError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"RENEW": 0.5, "STALE": 3.0, "SETTLE": 0.1, "POLL": 0.1}.items():
        monkeypatch.setattr(timeouts, f"LEASE_{name}_S", seconds)


@pytest.fixture
def take():
    """Takes leases, and gives them back at the end."""
    taken = []

    def take_one(storage, said=None, asked=lambda: False):
        one = storage.lease()
        one.take((said if said is not None else []).append, asked)
        taken.append(one)
        return one

    yield take_one
    for one in taken:
        one.release()


@pytest.fixture
def elsewhere():
    """Leases as a driver of another machine would write them, and read those of this one."""

    def other(storage):
        one = storage.lease()
        one._me = dataclasses.replace(one._me, machine="another", host="far-away")
        return one

    return other


def held(server, out):
    return json.loads(server.get(f"{out}/{LEASE}"))


def test_one_has_it_and_a_second_is_told_whose_it_is(server, out, opened, take):
    one = take(opened(out))
    found = held(server, out)
    assert (found["host"], found["pid"], found["user"]) == (socket.gethostname(), os.getpid(), getpass.getuser())
    who = f"the driver of {getpass.getuser()} on {socket.gethostname()} (process {os.getpid()}, since {found['since']})"
    with pytest.raises(HeldError) as refused:
        take(opened(out))
    assert re.fullmatch(
        rf"{re.escape(f'{out}: {who}')} has this sweep, and renewed its lease \d s ago; wait for it, or end it",
        str(refused.value),
    )
    assert opened(out).names() == [LEASE]  # nothing else is left there
    one.release()
    assert opened(out).names() == []
    said = []
    take(opened(out), said)
    assert said == []


def test_it_is_renewed_for_as_long_as_it_is_held(server, out, opened, take):
    take(opened(out))
    before = held(server, out)
    time.sleep(1.5)
    after = held(server, out)
    assert after.pop("renewals") > before.pop("renewals")
    assert after == before


def test_that_of_a_process_that_was_killed_is_taken_over_at_once(server, out, opened, take):
    script = """
import os, sys
from pathlib import Path
from bitlora.files.opening import open_storage
open_storage(sys.argv[1], Path(sys.argv[2])).lease().take(print, bool)
os.kill(os.getpid(), 9)
"""
    here = opened(out)
    ended = subprocess.run([sys.executable, "-c", script, out, str(here.folder / "its")], check=False, timeout=60)
    assert ended.returncode == -9
    pid = held(server, out)["pid"]
    assert pid != os.getpid()
    said, began = [], time.monotonic()
    take(here, said)
    assert time.monotonic() - began < 2
    assert held(server, out)["pid"] == os.getpid()
    (line,) = said
    assert f"(process {pid}, since " in line
    assert re.search(r"is gone \(it last renewed its lease \d s ago\); this one takes over$", line)


def test_that_of_another_machine_is_refused_when_it_is_seen_to_live(out, opened, elsewhere, take):
    far = elsewhere(opened(out))
    far.take(print, bool)
    said = []
    with pytest.raises(HeldError, match=r"on far-away .* has this sweep, and renewed its lease"):
        take(opened(out), said)
    assert re.search(r"on far-away .* renewed its lease \d s ago; looking for \d s whether it lives$", said[0])
    far.release()


def test_that_of_another_machine_is_taken_over_when_it_is_not_renewed(
    server, out, opened, elsewhere, take, monkeypatch
):
    far = elsewhere(opened(out))
    monkeypatch.setattr(far, "_keep", lambda: None)
    far._thread = threading.Thread(target=far._keep)
    far.take(print, bool)
    said, began = [], time.monotonic()
    take(opened(out), said)
    assert 1 < time.monotonic() - began < 10
    assert len(said) == 2
    assert "far-away" in said[1]
    assert said[1].endswith("this one takes over")
    far.release()  # somebody else's by now
    assert held(server, out)["host"] == socket.gethostname()


def test_one_that_nobody_renewed_for_long_is_not_waited_for(server, out, opened, take):
    server.put(f"{out}/{LEASE}", b"{half")
    time.sleep(timeouts.LEASE_STALE_S + 2)  # the store counts whole seconds
    said, began = [], time.monotonic()
    take(opened(out), said)
    assert time.monotonic() - began < 2
    (line,) = said
    assert line.startswith(f"{out}: another driver is gone (it last renewed its lease ")


def test_a_ctrl_c_ends_the_wait(server, out, opened, take):
    server.put(f"{out}/{LEASE}", b"{half")
    with pytest.raises(KeyboardInterrupt):
        take(opened(out), asked=lambda: True)
    assert server.get(f"{out}/{LEASE}") == b"{half"


def test_of_two_that_begin_at_the_same_moment_one_has_it(server, out, opened, elsewhere):
    other, one = elsewhere(opened(out)), opened(out).lease()
    real = one._file.write

    def write(content):
        real(content)
        other._file.write(other._content())

    one._file = dataclasses.replace(one._file, write=write)
    with pytest.raises(HeldError, match=r"far-away .* began at the same moment; let it run"):
        one.take(print, bool)
    assert held(server, out)["host"] == "far-away"


def test_who_finds_it_taken_writes_nothing_more(server, out, opened, elsewhere, take, write):
    here, there = opened(out), opened(out)
    write(here.folder, a=b"1", b=b"1")
    here.push("a", "b")
    one = take(here)
    other = elsewhere(there)
    other._file.write(other._content())
    deadline = time.monotonic() + 10
    while not one.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert re.search(r"on far-away .* took this sweep over; this one stops, and writes nothing more there$", one.lost)
    write(here.folder, a=b"2", c=b"2")
    here.push("a", "c")
    here.push_soon("a")
    here.delete("b")
    here.flush()
    one.release()
    assert there.names() == [LEASE, "a", "b"]
    assert server.get(f"{out}/a") == b"1"
    assert held(server, out)["host"] == "far-away"


def test_a_store_that_is_away_for_a_while_costs_no_lease(server, out, opened, take):
    one = take(opened(out))
    before = held(server, out)["renewals"]
    server.fault = lambda request: s3.refusal(503, "SlowDown")
    time.sleep(2)
    server.fault = None
    time.sleep(2)
    assert held(server, out)["renewals"] > before
    assert not one.lost
    server.call("DELETE", f"{out}/{LEASE}".removeprefix("s3:/"))  # by hand
    time.sleep(1.5)
    assert held(server, out)["pid"] == os.getpid()


def test_a_folder_on_a_disk_has_none(opened, tmp_path):
    from bitlora.files.opening import open_storage

    assert open_storage(str(tmp_path)).lease() is None


def test_who_a_lease_is_of(monkeypatch):
    me = lease._me()
    assert me.lives is True
    assert dataclasses.replace(me, machine="another").lives is None
    gone = subprocess.Popen(["true"])
    time.sleep(0.2)
    assert dataclasses.replace(me, pid=gone.pid).lives is False  # ended, and not yet waited for
    gone.wait()
    assert dataclasses.replace(me, pid=gone.pid).lives is False
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("no name")))
    assert lease._me().user == str(os.getuid())
