"""A pack's way to the sweep's folder, where that cannot be written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bitlora.files.origin import Origin
from sweeps.pack import link
from sweeps.pool.messages import Stop


class Pool:
    """Keeps what it is told."""

    def __init__(self):
        self.failures = []
        self.pack_failed = SimpleNamespace(remote=lambda *args, **more: self.failures.append((args, more)))
        self.commands = SimpleNamespace(remote=None)


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A pool, and a pack's link to it whose log lies on a disk that is full."""
    monkeypatch.setattr(link.FirstLink, "_listen", lambda self: None)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "p0.jsonl").symlink_to("/dev/full")
    pool = Pool()
    storage = SimpleNamespace(folder=tmp_path, push=lambda *names: None)
    return pool, link.FirstLink("p0", pool, SimpleNamespace(storage=storage), "base", Origin(dtype="float32"))


def test_a_log_that_cannot_be_written_stops_the_pack_and_raises_in_no_step(full):
    """On the step's thread an error would be taken for the trials' own."""
    pool, first = full
    for _ in range(3):
        first.log_event("step", "t0")
    [((name, why), more)] = pool.failures
    assert (name, more) == ("p0", {"unwritable": True})
    assert why.startswith("could not write: ")
    assert "No space left" in why
    assert first.poll(0) == [Stop()]
    first.close()
