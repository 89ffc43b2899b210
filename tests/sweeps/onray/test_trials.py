"""Ray Tune's own controller over trials that have no process: no Ray is started."""

import inspect

import pytest
import ray
from ray.train._internal import storage
from ray.tune import Callback, Stopper
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.trainable import trainable as trainable_module
from ray.tune.trainable.trainable import Trainable

from sweeps.onray.trials import NoStatistics, Trials, trials_from


class Proposes(Searcher):
    """`count` trials, one after the other; keeps what it hears."""

    def __init__(self, count):
        super().__init__(metric="eval_loss", mode="min")
        self.left, self.heard = count, []

    def suggest(self, trial_id):
        if not self.left:
            return Searcher.FINISHED
        self.left -= 1
        ours = f"t{len([h for h in self.heard if h[0] == 'suggest'])}"
        self.heard.append(("suggest", ours))
        return {"trial_id": ours, "config": {"rank": 4}}

    def on_trial_result(self, trial_id, result):
        self.heard.append(("result", result["config/trial_id"], result["step"]))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.heard.append(("error" if error else "complete", (result or {}).get("config/trial_id")))

    def save(self, checkpoint_path): ...
    def restore(self, checkpoint_path): ...


class Scripted:
    """A feed that gives each trial three results at once, or what `instead` has of it."""

    def __init__(self, instead=None):
        self.instead = instead or {}
        self.said, self.queue, self.broken = [], [], None

    def begin(self, config):
        trial_id = config["trial_id"]
        self.said.append(("begin", trial_id))
        steps = [{"step": n, "eval_loss": 1 / n, "status": "running", "done": n == 3} for n in (1, 2, 3)]
        self.queue += [(trial_id, one) for one in self.instead.get(trial_id, steps)]

    def proceed(self, trial_id):
        self.said.append(("proceed", trial_id))

    def next(self, timeout):
        if self.broken is not None and not self.queue:
            raise self.broken
        return self.queue.pop(0) if self.queue else None


class Stops(FIFOScheduler):
    """Stops `t1` at step 2."""

    def on_trial_result(self, tune_controller, trial, result):
        stop = trial.config["trial_id"] == "t1" and result["step"] == 2
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class Hears(Callback):
    def __init__(self):
        self.heard, self.results = [], []

    def on_trial_start(self, iteration, trials, trial, **info):
        self.heard.append(("start", trial.config["trial_id"]))

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self.results.append(result)
        self.heard.append((result["step"], trial.config["trial_id"]))

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.heard.append(("complete", trial.config["trial_id"]))

    def on_trial_error(self, iteration, trials, trial, **info):
        self.heard.append(("error", trial.config["trial_id"]))


class StopsAll(Stopper):
    asked = False

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        return self.asked


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Makes a search: its controller, what it heard, its searcher."""
    monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "session"))

    def make(feed, count=3, at_once=2, stopper=None, callbacks=()):
        with trials_from(feed) as trainable:
            searcher = Proposes(count)
            generator = SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent=at_once))
            experiment = Experiment("tune", trainable, num_samples=count, storage_path=str(tmp_path))
            generator.add_configurations([experiment])
            hears = Hears()
            controller = TuneController(
                search_alg=generator,
                scheduler=Stops(),
                callbacks=[hears, *callbacks],
                stopper=stopper,
                storage=experiment.storage,
                checkpoint_period=3600,
            )
            controller.update_max_pending_trials()
        return controller, hears, searcher

    return make


def run(controller, steps=200):
    for _ in range(steps):
        if controller.is_finished():
            break
        controller.step()
    assert controller.is_finished()
    controller.cleanup()
    assert controller._actor_manager.num_total_actors == 0


def test_searcher_scheduler_and_callbacks_hear_what_they_would_of_actors(search):
    feed = Scripted()
    controller, hears, searcher = search(feed)
    run(controller)
    by_trial = {t: [what for what, whose in hears.heard if whose == t] for t in ("t0", "t1", "t2")}
    assert by_trial == {
        "t0": ["start", 1, 2, 3, "complete"],
        "t1": ["start", 1, 2, "complete"],  # what came behind is nobody's
        "t2": ["start", 1, 2, 3, "complete"],
    }
    assert {t.status for t in controller.get_trials()} == {"TERMINATED"}
    # The result that ends a trial is its last one's to tell; a trial proceeds after each that did not stop it.
    assert [what for what in searcher.heard if what[1] == "t0"] == [
        ("suggest", "t0"), ("result", "t0", 1), ("result", "t0", 2), ("complete", "t0")
    ]  # fmt: skip
    assert feed.said.count(("proceed", "t0")) == 2
    assert feed.said.count(("proceed", "t1")) == 1
    assert [said for said in feed.said if said[0] == "begin"] == [("begin", f"t{n}") for n in range(3)]


def test_what_tune_counts_of_a_trial_is_let_go_with_it(search):
    feed = Scripted({"t2": [{"step": 1, "eval_loss": 1.0, "status": "running", "done": False}]})
    controller, _, _ = search(feed, callbacks=[NoStatistics()])
    for _ in range(20):
        controller.step()
    kept = {trial.config["trial_id"]: len(trial.run_metadata.metric_analysis) for trial in controller.get_trials()}
    assert kept["t0"] == kept["t1"] == 0 < kept["t2"]
    assert all(trial.last_result["step"] for trial in controller.get_trials())


def test_no_more_trials_at_once_than_are_allowed(search):
    feed = Scripted({f"t{n}": [] for n in range(9)})
    controller, hears, _ = search(feed, count=9, at_once=4)
    for _ in range(20):
        controller.step()
    assert hears.heard == [("start", f"t{n}") for n in range(4)]
    assert controller._actor_manager.num_live_actors == 4


def test_a_result_has_all_that_a_trainable_would_add_to_it(search, tmp_path, monkeypatch):
    monkeypatch.setattr(trainable_module, "DEFAULT_STORAGE_PATH", str(tmp_path))

    class Stock(Trainable):
        def step(self):
            return {"step": 1, "eval_loss": 1.0, "status": "running", "done": False}

    controller, hears, _ = search(Scripted(), count=1)
    run(controller)
    stock = Stock({"trial_id": "t0", "config": {"rank": 4}})
    for ours in hears.results:
        theirs = stock.train()
        added = ("experiment_tag",)  # by the controller
        assert ours.keys() - added == theirs.keys()
        same = ("training_iteration", "iterations_since_restore", "config", "pid", "hostname", "node_ip")
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        for key in ("timestamp", "date"):
            assert type(ours[key]) is type(theirs[key])
        assert 0 <= ours["time_this_iter_s"] <= ours["time_total_s"] == ours["time_since_restore"] < 60
    assert [result["training_iteration"] for result in hears.results] == [1, 2, 3]


def test_a_trial_that_could_not_begin_is_the_only_one_that_fails(search):
    feed = Scripted({"t0": [ray.exceptions.RayTaskError("attach", "it was\nrefused", ValueError())]})
    controller, hears, searcher = search(feed)
    run(controller)
    assert [what for what in hears.heard if what[1] == "t0"] == [("start", "t0"), ("error", "t0")]
    assert ("error", None) in searcher.heard
    assert {t.config["trial_id"]: t.status for t in controller.get_trials()} == {
        "t0": "ERROR", "t1": "TERMINATED", "t2": "TERMINATED"
    }  # fmt: skip


def test_when_the_feed_breaks_every_trial_ends_with_that(search):
    feed = Scripted({f"t{n}": [] for n in range(3)})
    feed.broken = ray.exceptions.RayActorError()
    controller, hears, _ = search(feed)
    run(controller)
    assert {t.status for t in controller.get_trials()} == {"ERROR"}
    assert [what for what in hears.heard if what[0] == "error"] == [("error", f"t{n}") for n in range(3)]


def test_a_search_that_is_stopped_ends_at_once(search):
    stopper = StopsAll()
    controller, hears, _ = search(Scripted({f"t{n}": [] for n in range(9)}), count=9, at_once=4, stopper=stopper)
    for _ in range(6):
        controller.step()
    stopper.asked = True
    run(controller, steps=2)
    assert not [what for what in hears.heard if what[0] in ("complete", "error")]


def test_the_manager_is_put_back(search):
    from ray.tune.execution import tune_controller

    stock = tune_controller.RayActorManager
    with trials_from(Scripted()):
        assert tune_controller.RayActorManager is not stock
    assert tune_controller.RayActorManager is stock


def test_whatever_else_is_asked_of_a_trial_is_refused():
    trials = Trials(Scripted())
    added = trials.add_actor(
        None, {"config": {"trial_id": "t0"}}, None, on_start=lambda _: None, on_stop=None, on_error=None
    )
    trials.next(timeout=1)
    with pytest.raises(NotImplementedError, match="`save`"):
        trials.schedule_actor_task(added, "save")
    assert inspect.signature(trials.schedule_actor_task).bind(added, "stop", _return_future=True)
