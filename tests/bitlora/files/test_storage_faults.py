"""Object storage that is late, busy, unwilling, or not there: waited for, or said in one line within a bounded time."""

import socket
import threading
import time

import pytest
import s3

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.storage import StorageError


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_an_answer_that_comes_late_is_waited_for(server, out, opened, write):
    here = opened(out)
    write(here.folder, a=b"1")
    server.fault = s3.late(2)
    here.push("a")
    assert server.get(f"{out}/a") == b"1"
    assert len(server.paths("PUT")) == 1


def test_a_request_that_hangs_is_given_up_and_asked_again(server, out, opened, monkeypatch, write):
    monkeypatch.setattr(timeouts, "STORAGE_REQUEST_S", 1.0)  # with curl's 5 s: 6
    here = opened(out)
    write(here.folder, a=b"1")
    over = threading.Event()

    def hang(request):
        if len(server.requests) == 1:
            over.wait(60)

    server.fault = hang
    began = time.monotonic()
    here.push("a")
    took = time.monotonic() - began
    over.set()
    assert server.get(f"{out}/a") == b"1"
    assert len(server.paths("PUT")) == 2
    assert took < 30


def test_a_busy_server_is_asked_again(server, out, opened, write):
    here, there = opened(out), opened(out)
    write(here.folder, a=b"1", b=b"2")
    seen = set()

    def busy(request):  # whatever it is asked for the first time
        if (asked := (request.method, request.full_path)) not in seen:
            seen.add(asked)
            return s3.refusal(503, "SlowDown")
        return None

    server.fault = busy
    here.push("a", "b")
    there.pull("")
    assert [(there.folder / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert len(seen) >= 8


def test_a_server_that_stays_busy_is_given_up(server, out, opened, monkeypatch, write):
    here = opened(out)
    write(here.folder, a=b"1")
    monkeypatch.setattr(timeouts, "STORAGE_RETRY_S", 1.0)
    server.fault = lambda request: s3.refusal(503, "SlowDown")
    began = time.monotonic()
    with pytest.raises(StorageError, match=rf"^{out}: writing a failed: .*") as error:
        here.push("a")
    assert "\n" not in str(error.value)
    assert 0.2 < time.monotonic() - began < 3
    assert len(server.requests) >= 2


def test_a_server_that_was_away_is_found_again(out, server, opened, write):
    port = free_port()
    here = opened(f"{out}?endpoint_override=127.0.0.1:{port}&scheme=http")
    write(here.folder, a=b"1")
    pushing = threading.Thread(target=here.push, args=("a",))
    pushing.start()
    time.sleep(1)
    with s3.serve_s3(port):
        pushing.join(20)
    assert server.get(f"{out}/a") == b"1"


def test_a_storage_that_works_passes_and_is_left_as_it_was(server, out, opened):
    here = opened(out)
    here.check()
    assert here.names() == []
    assert {method for method, _ in server.requests} >= {"PUT", "GET", "DELETE"}


def refused(out, opened):
    """What `check` says, and how long it took."""
    began = time.monotonic()
    with pytest.raises(StorageError) as error:
        opened(out).check()
    text = str(error.value)
    assert text.startswith(f"{out}: ")
    assert "\n" not in text
    assert "hush-hush" not in text
    return text, time.monotonic() - began


def test_no_such_bucket(server, opened):
    text, took = refused("s3://never-made/sweep", opened)
    assert "there is no bucket 'never-made'; create it first" in text
    assert took < 5


def test_credentials_that_may_not(server, out, opened, monkeypatch):
    server.fault = lambda request: s3.refusal(403, "AccessDenied") if request.method == "PUT" else None
    assert "writing is denied" in refused(out, opened)[0]
    server.fault = lambda request: s3.refusal(403, "AccessDenied") if request.method == "DELETE" else None
    assert "removing is denied" in refused(out, opened)[0]
    server.fault = lambda request: s3.refusal(403, "InvalidAccessKeyId")
    assert "the credentials are not accepted" in refused(out, opened)[0]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    server.fault = lambda request: s3.refusal(403, "AccessDenied")
    text, took = refused(out, opened)
    assert "there are no credentials here; set AWS_ACCESS_KEY_ID" in text
    assert took < 10


def test_a_server_that_is_not_there(server, opened, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url := f"http://127.0.0.1:{free_port()}")
    text, took = refused("s3://bucket/sweep", opened)
    assert f"cannot be reached at {url}" in text
    assert "look at the network and AWS_ENDPOINT_URL" in text
    assert took < timeouts.STORAGE_CHECK_S
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    assert "cannot be reached at http://no-such-host.invalid:9000" in refused("s3://bucket/sweep", opened)[0]


def test_a_server_that_never_answers(server, opened, monkeypatch):
    monkeypatch.setattr(timeouts, "STORAGE_CHECK_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        text, took = refused("s3://bucket/sweep", opened)
        client = silent.accept()[0]
    client.close()
    assert "no answer within 2 s" in text
    assert took < 3


def test_what_cannot_be_a_storage_is_refused_before_anything_is_made(server, tmp_path):
    for out, found in {
        "s3://": "names no bucket",
        "s3://key:hush-hush@bucket/sweep": "s3://bucket/sweep: has credentials in it; give them as AWS_ACCESS_KEY_ID",
        "s3://bucket/sweep?regoin=eu-west-1": "unknown regoin after '?'; there are region, scheme, endpoint_override",
    }.items():
        with pytest.raises(StorageError) as error:
            open_storage(out, tmp_path / "scratch")
        assert found in str(error.value)
        assert "hush-hush" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_scheme_that_nothing_here_knows(opened):
    assert "nonsense" in refused("nonsense://bucket/sweep", opened)[0]
