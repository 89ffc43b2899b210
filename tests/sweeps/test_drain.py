"""A machine that is to be taken away: what each cloud says, and that its Ray node is drained, once, with the deadline."""

import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from faults import wait_for
from metadata import Metadata

from bitlora import timeouts
from sweeps import drain as program
from sweeps.drain import SERVICE, Service, leave, watch
from sweeps.onray.machine import DrainError, LocalNode

IN_90_S = 90.0


class Asked(list):
    refusals = 0


class Raylet:
    """A process that runs until it is told to end."""

    def __init__(self):
        self.runs = True

    def is_running(self):
        return self.runs

    def status(self):
        return "running"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("NOTICE_POLL_S", "DRAINED_POLL_S"):
        monkeypatch.setattr(timeouts, name, 0.02)
    monkeypatch.setattr(timeouts, "NOTICE_ANSWER_S", 0.2)


@pytest.fixture
def drained(monkeypatch):
    """What Ray is asked for: node, seconds until the deadline, why. The first `refusals` times it does not answer."""
    asked = Asked()

    def drain(node, deadline, why):
        if asked.refusals:
            asked.refusals -= 1
            raise DrainError("the control service at 10.0.0.1:6379: it is away")
        asked.append((node.id, deadline - time.time(), why))

    monkeypatch.setattr(program, "drain", drain)
    return asked


class Watcher:
    """`watch` on a thread."""

    def __init__(self, url, *ids):
        self.raylets = [Raylet() for _ in ids]
        self.said = []
        nodes = [LocalNode(name, "10.0.0.1:6379", raylet) for name, raylet in zip(ids, self.raylets, strict=True)]
        self.thread = threading.Thread(target=watch, args=(nodes, Service(url), self.said.append), daemon=True)
        self.thread.start()

    def end(self):
        for raylet in self.raylets:
            raylet.runs = False
        self.thread.join(5)
        assert not self.thread.is_alive()


def polls(metadata, count):
    """Waits until so many more requests have come."""
    before = len(metadata.asked)
    wait_for(lambda: len(metadata.asked) >= before + count, "requests", 10)


def at(seconds, form="iso"):
    moment = datetime.fromtimestamp(time.time() + seconds, UTC)
    return format_datetime(moment, usegmt=True) if form == "mail" else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def event(kind="Preempt", machine="machine-3", when=None):
    return {"EventType": kind, "Resources": ["machine-1", machine], "EventStatus": "Scheduled", "NotBefore": when}


NOTICES = {
    "aws": ("aws", lambda: {"action": "terminate", "time": at(IN_90_S)}, 90, "AWS: spot: terminate"),
    "aws, hibernate": ("aws", lambda: {"action": "hibernate", "time": at(IN_90_S)}, 90, "AWS: spot: hibernate"),
    "aws, no time": ("aws", lambda: {"action": "stop", "time": "soon"}, 120, "AWS: spot: stop"),
    "google": ("google", lambda: {"preempted": "TRUE"}, 30, "Google Cloud: preempted"),
    "google, maintenance": (
        "google",
        lambda: {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"},
        60,
        "Google Cloud: its host is maintained",
    ),
    "azure": ("azure", lambda: [event(when=at(IN_90_S, "mail"))], 90, "Azure: event Preempt"),
    "azure, begun": ("azure", lambda: [event("Freeze"), event(when="")], 30, "Azure: event Preempt"),
}


@pytest.mark.parametrize(("cloud", "notice", "seconds", "why"), NOTICES.values(), ids=NOTICES.keys())
def test_a_notice_drains_the_node_once_with_the_deadline(cloud, notice, seconds, why, drained):
    with Metadata(cloud) as metadata:
        watcher = Watcher(metadata.url, "ab12")
        wait_for(lambda: watcher.said, "the cloud to be known", 10)
        polls(metadata, 4)
        assert drained == []
        metadata.notice = notice()
        watcher.thread.join(10)
        assert not watcher.thread.is_alive()
    ((node, left, said),) = drained
    assert (node, said) == ("ab12", why)
    assert left == pytest.approx(seconds, abs=3)
    assert len(watcher.said) == 2
    assert watcher.said[1].startswith(f"{why}; Ray node ab12 is drained, ")


NONE = {
    "aws": ("aws", None),
    "aws, another action": ("aws", {"action": "rebalance", "time": at(60)}),
    "google": ("google", None),
    "google, it moves": ("google", {"maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"}),
    "azure": ("azure", None),
    "azure, a neighbour": ("azure", [event(machine="machine-4")]),
    "azure, some seconds": ("azure", [event("Freeze")]),
    "azure, not a list of events": (
        "azure",
        [7, {"EventType": "Preempt", "Resources": None}, {"EventType": "Preempt"}],
    ),
}


@pytest.mark.parametrize(("cloud", "notice"), NONE.values(), ids=NONE.keys())
def test_what_is_no_notice_drains_nothing(cloud, notice, drained):
    """AWS's wish to have a machine rebalanced, too, which the server has all the while."""
    with Metadata(cloud) as metadata:
        metadata.notice = notice
        watcher = Watcher(metadata.url, "ab12")
        polls(metadata, 12)
        assert watcher.thread.is_alive()
        watcher.end()
    assert drained == []
    assert len(watcher.said) == 1
    assert not any("rebalance" in path for path in metadata.asked)


def test_a_token_that_has_expired_is_had_again(drained):
    with Metadata("aws") as metadata:
        watcher = Watcher(metadata.url, "ab12")
        polls(metadata, 4)
        assert metadata.tokens == 1
        metadata.tokens = 7  # the first is good no more
        polls(metadata, 4)
        assert metadata.tokens == 8
        metadata.notice = {"action": "terminate", "time": at(60)}
        watcher.thread.join(10)
    assert len(drained) == 1


@pytest.mark.parametrize("fault", [500, 503, 429, 401, "late", "away", "noise"])
@pytest.mark.parametrize("cloud", ["aws", "google", "azure"])
def test_a_service_that_fails_ends_nothing(cloud, fault, drained):
    """Before the cloud is known, and when it is; a notice that is there afterwards is heard."""
    with Metadata(cloud) as metadata:
        metadata.fault = fault
        watcher = Watcher(metadata.url, "ab12")
        polls(metadata, 2)
        metadata.fault = None
        wait_for(lambda: any(cloud in line.lower() for line in watcher.said), "the cloud to be known", 10)
        metadata.fault = fault
        polls(metadata, 2)
        assert drained == []
        assert watcher.thread.is_alive()
        metadata.fault = None
        metadata.notice = {
            "aws": {"action": "terminate", "time": at(60)},
            "google": {"preempted": "TRUE"},
            "azure": [event(when=at(60, "mail"))],
        }[cloud]
        watcher.thread.join(10)
        assert not watcher.thread.is_alive()
    assert len(drained) == 1


def test_a_service_that_vanishes_after_its_notice_is_not_needed_any_more(drained):
    """The control service, which does not answer at first, is asked again; what it has taken is not asked for again."""
    drained.refusals = 2
    with Metadata("aws") as metadata:
        metadata.notice = {"action": "terminate", "time": at(60)}
        watcher = Watcher(metadata.url, "ab12", "cd34")
        wait_for(lambda: len(watcher.said) > 1, "the notice", 10)
    watcher.thread.join(10)
    assert not watcher.thread.is_alive()
    assert sorted(node for node, *_ in drained) == ["ab12", "cd34"]
    first, *others = watcher.said
    assert first == "watching AWS for a notice; Ray nodes ab12, cd34"
    assert sum("is not drained: the control service at 10.0.0.1:6379: it is away" in line for line in others) == 2
    assert sum(" is drained, " in line for line in others) == 2


def test_a_watcher_ends_with_its_raylet(drained):
    with Metadata("aws") as metadata:
        watcher = Watcher(metadata.url, "ab12")
        polls(metadata, 2)
        watcher.end()
    assert drained == []


def test_a_proxy_is_not_asked(monkeypatch, drained):
    """It would answer for its own machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with Metadata("google") as metadata:
        metadata.notice = {"preempted": "TRUE"}
        Watcher(metadata.url, "ab12").thread.join(10)
    assert len(drained) == 1
    assert SERVICE == "http://169.254.169.254"


def test_leaving_now_waits_until_nothing_is_left(drained):
    raylet, said = Raylet(), []
    threading.Timer(0.3, lambda: setattr(raylet, "runs", False)).start()
    began = time.monotonic()
    assert leave([LocalNode("ab12", "10.0.0.1:6379", raylet)], 30, said.append) == 0
    assert 0.25 < time.monotonic() - began < 10
    ((node, left, _),) = drained
    assert (node, left) == ("ab12", pytest.approx(30, abs=1))


def test_leaving_now_waits_no_longer_than_it_may(drained):
    began = time.monotonic()
    assert leave([LocalNode("ab12", "10.0.0.1:6379", Raylet())], 0.3, [].append) == 0
    drained.refusals = 1000
    said = []
    assert leave([LocalNode("ab12", "10.0.0.1:6379", Raylet())], 0.3, said.append) == 1
    assert time.monotonic() - began < 10
    assert len(drained) == 1
    assert "is not drained" in said[0]


def test_where_no_ray_runs_there_is_nothing_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # nobody's
    assert program.main(["--now", "60"]) == 0
    assert program.main([]) == 1
    assert capsys.readouterr().out.count("no Ray node but a head's runs on this machine") == 2
