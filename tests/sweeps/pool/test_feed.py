"""What the driver hears of its trials, from a pool whose answers are lost, late or refused. No Ray: calls are objects."""

import pytest
import ray

from bitlora.files.record import Metrics
from sweeps.pool.feed import PoolFeed
from sweeps.pool.messages import TrialResult
from sweeps.search.cloning.place import Place, Source

METRICS = Metrics(step=4, tokens=9, train_loss=2.0, eval_loss=1.5, learning_rate=0.1, seconds=3.0)


def result(trial, step=4, status="running", **more):
    return TrialResult(trial_id=trial, status=status, step=step, eval_loss=1.5, **more)


class Pool:
    """Calls are kept; an answer is put into each by hand."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def remote(*arguments):
            self.calls.append(call := Call(name, arguments))
            return call

        return type("Method", (), {"remote": staticmethod(remote)})

    def called(self, name):
        return [call.arguments for call in self.calls if call.name == name]

    def answer(self, name, answer):
        """Answer the last call of that name."""
        [call for call in self.calls if call.name == name][-1].answer = answer


class Call:
    answer = None

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments


@pytest.fixture
def pool(monkeypatch):
    def wait(calls, num_returns=1, timeout=None):
        return [call for call in calls if call.answer is not None][:num_returns], []

    def get(call):
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    return Pool()


def begin(feed, *trials, **more):
    for trial in trials:
        feed.begin({"trial_id": trial, "config": {"rank": 4}, **more})


def test_one_call_serves_all_trials(pool):
    feed = PoolFeed(pool)
    begin(feed, *(f"t{n}" for n in range(100)), reported=8)
    assert pool.called("attach")[7] == ("t7", {"rank": 4}, 8, None, None)
    assert [feed.next(0.01) for _ in range(3)] == [None] * 3
    pool.answer("results", [result("t1", metrics=METRICS), result("t0"), result("t1", 8, "completed")])
    came = [feed.next(0.01) for _ in range(4)]
    assert [(one[0], one[1]["step"], one[1]["done"]) for one in came[:3]] == [
        ("t1", 4, False), ("t0", 4, False), ("t1", 8, True)
    ]  # fmt: skip
    assert came[3] is None
    assert came[0][1] == {
        "trial_id": "t1", "status": "running", "reason": "", "fatal": False, "step": 4, "eval_loss": 1.5, "tokens": 9,
        "train_loss": 2.0, "learning_rate": 0.1, "seconds": 3.0, "timesteps_total": 4, "done": False,
    }  # fmt: skip
    assert pool.called("results") == [(0,), (3,)]


def test_a_wave_is_heard_of_before_its_first_result_is_handed_on(pool):
    heard = []
    feed = PoolFeed(pool, heard.append)
    begin(feed, "t0", "t1")
    feed.next(0.01)
    wave = {"t0": (4, 1.5), "t1": (4, 1.2)}
    pool.answer("results", [result("t0", wave=wave), result("t1", wave=wave)])
    trial, taken = feed.next(0.01)
    assert (trial, heard) == ("t0", [wave])
    assert "wave" not in taken  # loggers would draw it


def test_a_trial_proceeds_after_the_result_that_was_handed_on_last(pool):
    feed = PoolFeed(pool)
    begin(feed, "t0")
    feed.next(0.01)
    pool.answer("results", [result("t0", 4), result("t0", 8)])
    for count in (1, 2):
        feed.next(0.01)
        feed.proceed("t0")
        assert pool.called("proceed")[-1] == ("t0", count)


def test_what_did_not_arrive_is_asked_for_again(pool):
    feed = PoolFeed(pool)
    begin(feed, "t0")
    feed.next(0.01)
    pool.answer("attach", ray.exceptions.ActorUnavailableError("busy", None))
    pool.answer("results", ray.exceptions.ActorUnavailableError("busy", None))
    assert [feed.next(0.001) for _ in range(2)] == [None] * 2
    assert pool.called("attach") == 2 * [("t0", {"rank": 4}, None, None, None)]
    assert pool.called("results") == [(0,), (0,)]
    pool.answer("results", [result("t0")])
    assert feed.next(0.01)[0] == "t0"


def test_a_trial_that_the_pool_refuses_fails_alone(pool):
    feed = PoolFeed(pool)
    begin(feed, "t0")
    pool.answer("attach", ray.exceptions.RayTaskError("attach", "no such thing", ValueError()))
    begin(feed, "t1")
    trial_id, error = feed.next(0.01)
    assert (trial_id, type(error)) == ("t0", ray.exceptions.RayTaskError)
    assert feed.next(0.01) is None


@pytest.mark.parametrize("name", ["attach", "results"])
def test_a_pool_that_is_gone_is_said(pool, name):
    feed = PoolFeed(pool)
    begin(feed, "t0")
    feed.next(0.01)
    pool.answer(name, ray.exceptions.RayActorError())
    with pytest.raises(ray.exceptions.RayActorError):
        feed.next(0.01)


def test_a_member_of_a_population_begins_where_its_place_is(pool):
    """What it has become has reported the steps that it has behind it, whatever the member itself had."""
    place = Place(Source("t1", 16), 24, {"rank": 8})
    feed = PoolFeed(pool, placed=lambda trial_id: place)
    begin(feed, "t7", reported=8)
    assert pool.called("attach") == [("t7", {"rank": 8}, 16, place.source, 24)]


def test_it_is_said_how_a_trial_goes_on_until_the_pool_has_heard_it(pool, monkeypatch):
    place, tries = Place(Source("t1", 16), None, {"rank": 8}), []

    def get(call):
        tries.append(call.arguments)
        if len(tries) < 3:
            raise ray.exceptions.ActorUnavailableError("the network", None)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr("sweeps.pool.feed.time.sleep", lambda seconds: None)
    waited = []
    monkeypatch.setattr(ray, "wait", lambda calls: waited.append((len(tries), [call.arguments[0] for call in calls])))
    feed = PoolFeed(pool)
    begin(feed, "t6", "t7")
    feed.go_on("t7", place)
    assert tries == 3 * [("t7", {"rank": 8}, place.source, None)]
    assert waited == [(0, ["t7"])]  # the pool has it by then
