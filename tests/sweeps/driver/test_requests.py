"""What a person asks of a sweep: files that one side writes and the other answers, on a disk and in object storage."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3
from faults import wait_for
from typer.testing import CliRunner

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.storage import Storage
from sweeps.cli.app import app
from sweeps.driver.requests import DONE, REQUESTS, Inbox, SteeringRequest, answer_to, ask, withdraw


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "STEER_ANSWER_POLL_S", 0.02)


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A sweep's folder."""
    if request.param == "disk":
        yield str(tmp_path / "quick")
        return
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{server.make_bucket('requests')}/quick"


def came(inbox: Inbox) -> SteeringRequest:
    found: list[SteeringRequest] = []
    wait_for(lambda: found.extend(inbox.take()) or found, "a request", 20)
    return found[0]


def test_a_request_is_taken_once_and_answered_beside_it(place: str) -> None:
    asked = SteeringRequest(act="clone", trial="t0001", changes={"learning_rate": 3e-4}, warm_start=True)
    assert asked.what == "clone t0001 with its weights: learning_rate=0.0003"
    with open_storage(place) as there, open_storage(place) as here, Inbox(there, 0.02) as inbox:
        ask(here, asked)
        taken = came(inbox)
        assert taken == asked
        inbox.answer(taken, True, "t0004 is a clone of t0001")
        answer = answer_to(here, asked, 20)
        assert answer is not None
        assert (answer.done, answer.answer, answer.request) == (True, "t0004 is a clone of t0001", asked)
        wait_for(lambda: here.names(REQUESTS) == ["done"], "the request to be taken away", 20)
        assert inbox.take() == []


def test_what_came_too_late_is_refused(place: str) -> None:
    asked = SteeringRequest(act="stop", trial="t0001")
    with open_storage(place) as here, open_storage(place) as there:
        ask(here, asked)
        with Inbox(there, 60):
            pass
        answer = answer_to(here, asked, 20)
    assert answer is not None
    assert (answer.done, answer.answer) == (False, "the sweep ended before it was done")


def test_one_whose_driver_died_after_the_answer_is_not_done_again(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), tmp_path)
    asked = SteeringRequest(act="add", trials=3)
    with Inbox(storage, 0.02) as inbox:
        ask(storage, asked)
        inbox.answer(came(inbox), True, "3 more trials")
    ask(storage, asked)  # as it would still lie there
    with Inbox(storage, 0.02) as inbox:
        wait_for(lambda: storage.names(REQUESTS) == ["done"], "it to be taken away", 20)
        assert inbox.take() == []


@pytest.mark.parametrize("content", ["{", '{"act": "stop", "trials": 0}', '{"act": "destroy"}', "[]"])
def test_what_is_no_request_is_put_aside(tmp_path: Path, content: str) -> None:
    storage = Storage(str(tmp_path), tmp_path)
    (tmp_path / REQUESTS).mkdir()
    (tmp_path / REQUESTS / "20260101-ffffffff.json").write_text(content)
    with Inbox(storage, 0.02) as inbox:
        wait_for(lambda: storage.names(REQUESTS) == ["done"], "it to be put aside", 20)
        assert inbox.take() == []
    assert "not a request" in (tmp_path / DONE / "20260101-ffffffff.json").read_text()


def test_nobody_answers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), tmp_path)
    asked = SteeringRequest(act="end")
    ask(storage, asked)
    assert answer_to(storage, asked, 0.05) is None
    withdraw(storage, asked)
    assert storage.names(REQUESTS) == []


# ---- the commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text("name: quick\n")
    return tmp_path


def bitlora(*words: str) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app, list(words))
    return ended.exit_code, ended.stdout, ended.stderr


def test_what_is_asked_for_and_what_is_said(folder: Path) -> None:
    storage, seen = Storage(str(folder), folder), []

    def drive() -> None:
        with Inbox(storage, 0.02) as inbox:
            for number in range(2):
                request = came(inbox)
                seen.append(request)
                inbox.answer(request, number == 0, "yes" if number == 0 else "t0009: this sweep has no such trial")

    driver = threading.Thread(target=drive)
    driver.start()
    changes = ("--set", "learning_rate=3e-4", "--set", "quantizer=binary")
    assert bitlora("trial", "clone", str(folder), "t0001", *changes, "--warm-start") == (0, "yes\n", "")
    refused = bitlora("trial", "extend", str(folder), "t0009", "--steps", "64")
    assert refused == (2, "", "t0009: this sweep has no such trial\n")
    driver.join()
    first, second = seen
    assert (first.act, first.trial, first.warm_start) == ("clone", "t0001", True)
    assert first.changes == {"learning_rate": 3e-4, "quantizer": "binary"}
    assert (second.act, second.trial, second.steps) == ("extend", "t0009", 64)
    assert "@" in first.by


def test_without_waiting_it_is_left_there(folder: Path) -> None:
    code, said, _ = bitlora("trial", "stop", str(folder), "t0001", "--no-wait")
    [name] = (path.name for path in (folder / REQUESTS).iterdir())
    assert (code, said) == (0, f"asked: stop t0001; the answer will be {folder}/requests/done/{name}\n")
    assert json.loads((folder / REQUESTS / name).read_text())["act"] == "stop"


def test_bad_input_is_a_line_and_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "STEER_ANSWER_S", 0.05)
    before = sorted(folder.rglob("*"))
    for words, said in (
        (("trial", "stop", f"{folder}/nowhere", "t0001"), "holds no sweep"),
        (("trial", "clone", str(folder), "t0001", "--set", "rank"), "--set rank: give KEY=VALUE"),
        (("trial", "clone", str(folder), "t0001", "--set", "train.rank=3"), "a key of a trial"),
        (("stop", str(folder)), "no driver answered within"),
    ):
        code, out, err = bitlora(*words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert said in err
    assert [path for path in sorted(folder.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]
    (folder / "exit_code").write_text("0\n")
    code, _, err = bitlora("trial", "stop", str(folder), "t0001")
    assert code == 2
    assert "does not run any more" in err
