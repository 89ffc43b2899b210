"""A pack's way to the sweep's folder, where that cannot be written."""

from __future__ import annotations

import json
import math
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import ray

from bitlora.config.sections import BaseConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import EvalResult
from bitlora.files import record
from bitlora.files.origin import Origin
from sweeps.pack import first_link as link
from sweeps.pack.bare import BareScores
from sweeps.pack.measuring.measuring import Scored
from sweeps.pool.messages import Attach, Stop


class Pool:
    """Keeps what it is told."""

    def __init__(self):
        self.failures = []
        self.pack_failed = SimpleNamespace(remote=lambda *args, **more: self.failures.append((args, more)))
        self.commands = SimpleNamespace(remote=None)
        self.report = SimpleNamespace(remote=lambda *args: None)


def once(*commands):
    """A pool's `commands`: these, then what must not be asked for."""
    given = iter([list(commands)])

    def get(_):
        try:
            return next(given)
        except StopIteration:
            raise ray.exceptions.RayTaskError("commands", "KeyError", KeyError("a bug")) from None

    return get


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """Starts a link to a pool that gives these commands, over a storage that cannot be pulled from."""

    def pull(*names):
        raise ValueError("not what a storage raises")

    storage = SimpleNamespace(folder=tmp_path, push=lambda *names: None, pull=pull)
    pool = Pool()
    pool.commands = SimpleNamespace(remote=lambda *args: None)

    def start(*commands):
        monkeypatch.setattr(ray, "get", once(*commands))
        return link.FirstLink("p0", pool, SimpleNamespace(storage=storage), "base", Origin(dtype="float32"))

    return start


def test_a_pool_that_cannot_answer_ends_the_pack(listening):
    """Its trials go on in another; a pack that hears nothing would keep them for ever."""
    first = listening()
    assert first.poll(5.0) == [Stop()]
    first.close()


def test_a_trial_whose_files_cannot_be_fetched_comes_in_and_begins_again(listening):
    attach = Attach("t0", {}, 0, resumes=True)
    first = listening(attach)
    arrived = []
    while len(arrived) < 2:
        arrived += first.poll(5.0) or pytest.fail(f"only {arrived} came in")
    assert attach in arrived
    first.close()


def test_an_ending_that_the_pool_cannot_take_stops_the_pack(listening):
    first = listening(Stop())
    assert first.poll(5.0) == [Stop()]
    first.ended("t0", "diverged", 3, "not finite")
    assert first.poll(5.0) == [Stop()]
    first.close()
    [((_, why), _)] = first._pool.failures
    assert "KeyError" in why


def test_a_pack_that_ends_tells_of_each_file_that_it_still_writes(listening):
    first = listening(Stop())
    told = []
    first._pool.pack_wrote = SimpleNamespace(remote=told.append)
    let = threading.Event()
    first._write(lambda: None)
    first._write(let.wait)
    first._write(lambda: None)
    ending = threading.Thread(target=first.close)
    ending.start()
    while not first._closing:
        ending.join(0.01)
    let.set()
    ending.join(10)
    assert told == ["p0"] * 2


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


# ---- the base without an adapter


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    """A link to a pool whose packs are given the base to score, over a store; and the names that were put there."""
    monkeypatch.setattr(link.FirstLink, "_listen", lambda self: None)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    pool, pushed = Pool(), []
    pool.scores_base = SimpleNamespace(remote=lambda name: True)
    storage = SimpleNamespace(
        folder=tmp_path, push=lambda *names: pushed.extend(names), exists=lambda name: (tmp_path / name).exists()
    )
    tokens = np.arange(24, dtype=np.int32)
    rows = Rows(tokens, tokens % 8 > 3, np.arange(0, 25, 8), ("a", "b", "c"), np.array([9, 8, 7]))
    base = BaseConfig(model="m", quantization="nf4", revision="abc")
    settings = SimpleNamespace(storage=storage, dataset=Dataset(rows, rows, rows.take([0, 1]), None), base=base)
    origin = Origin(dtype="float32", device="a CPU", versions={"torch": "2"})
    return link.FirstLink("p0", pool, settings, "base", origin), storage, pushed


def test_what_the_base_scores_is_written_as_a_trials_scores_are_and_its_record_last(scoring, tmp_path):
    first, _, pushed = scoring
    assert first.wants_base()
    first.base_scored(
        BareScores(Scored(EvalResult([4.0, 8.0, 6.0], [4, 4, 4])), Scored(EvalResult([2.0, 3.0], [4, 4])))
    )
    first.close()
    assert pushed == ["base/eval.parquet", "base/test.parquet", "base/record.json", "logs/p0.jsonl"]
    table = pd.read_parquet(tmp_path / "base" / "eval.parquet")
    assert table.columns.tolist() == ["example_id", "loss", "tokens", "bytes", "group"]
    assert (table["loss"].tolist(), table["bytes"].tolist()) == ([4.0, 8.0, 6.0], [9, 8, 7])
    assert record.origin_of(tmp_path / "base" / "test.parquet").device == "a CPU"
    assert json.loads((tmp_path / "base" / "record.json").read_text()) == {
        "eval_loss": 1.5,
        "test_loss": 0.625,
        "tokens": 12,
        "base": {"model": "m", "quantization": "nf4", "revision": "abc", "dtype": "float32", "device": "a CPU"},
        "versions": {"torch": "2"},
    }
    assert not first.wants_base()  # it is known now, and so it is to a sweep that goes on


def test_a_store_that_does_not_answer_costs_the_base_its_score_and_nothing_else(scoring, tmp_path):
    first, storage, _ = scoring

    def silent(name):
        raise OSError("no answer")

    storage.exists = silent
    assert not first.wants_base()
    first.close()
    assert "the base is not scored: no answer" in (tmp_path / "logs" / "p0.jsonl").read_text()
    assert first._pool.failures == []


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (BareScores(Scored(EvalResult([1.0], [1])), None), ""),
        (BareScores(Scored(EvalResult([0.0], [1], "no room")), None), "no room"),
        (BareScores(Scored(EvalResult([math.nan], [1])), None), "its loss is not finite"),
        (BareScores(Scored(EvalResult([1.0], [1])), Scored(EvalResult([math.inf], [1]))), "its loss is not finite"),
        (BareScores(Scored(EvalResult([1.0], [1])), Scored(EvalResult([math.nan], [1], "no room"))), "no room"),
    ],
)
def test_scores_of_the_base_that_cannot_be_used_say_why(scores, why):
    assert scores.unusable == why
