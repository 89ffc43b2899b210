"""A population in a pack, without Ray: killed at any moment it goes on to the numbers that it would have come to."""

import math

import pytest
from played_pack import TRIAL, Played, packs_over

from bitlora.config.trial import TrialConfig
from sweeps.pool.messages import Attach, Stop
from sweeps.search.cloning.population import Population, attribute, came, came_to, decided
from sweeps.spec.spec import Spec

STEPS = 16
SPEC = Spec.model_validate(
    {
        "name": "s",
        "base": {"model": "a"},
        "data": {"source": "b"},
        "search": {
            "trials": 4,
            "space": {
                "quantizer": ["none", "ternary"],
                "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                "dropout": [0.0, 0.1, 0.2],
            },
        },
        "scheduler": {"name": "pb2", "interval": 4},
    }
)
"""Of the two that there are the one that has more to keep: its first rung is as PBT's are."""
MEMBERS = {
    f"t{number:04d}": TRIAL.model_copy(update={**chosen, "steps": STEPS, "eval_every": 2, "warmup": 0.0, "seed": 3})
    for number, chosen in enumerate(
        [
            {"quantizer": "ternary", "learning_rate": 1e-4, "dropout": 0.1},
            {"quantizer": "none", "learning_rate": 3e-2, "dropout": 0.0},
            {"quantizer": "none", "learning_rate": 1e30, "dropout": 0.2},  # it diverges
            {"quantizer": "ternary", "learning_rate": 1e-2, "dropout": 0.0},
        ]
    )
}


class Stepping(Played):
    """Plays pool and driver: what they keep is in `disk`, which outlives it.

    Args:
        kills: after so many evaluations nothing more is heard or written.
    """

    def __init__(self, disk, kills=math.inf):
        super().__init__({"at first": []})
        self.disk, self.kills, self.released_here = disk, kills, set()
        self.population = Population(SPEC, STEPS, 4, decided(disk["study"]), came(disk["study"]))
        self.population.decides = self.decided
        for trial, config in MEMBERS.items():
            self.population.begin(trial, config.model_dump())
            for step, (loss, _) in disk["metrics"].get(trial, {}).items():
                self.population.enter(trial, step, loss)
        self.population.decide()
        self.inbox = [command for trial in MEMBERS if (command := self.command(trial)) is not None]

    def decided(self, rung, changes, by):
        self.disk["study"].update(came_to(rung, by) | attribute(rung, changes))

    def command(self, trial):
        """What the pool tells a pack of the trial; nothing where it waits at a rung, or has ended."""
        place, known = self.population.place(trial), self.disk["metrics"].get(trial, {})
        reported = max([0, *known, place.source.step if place.source else 0])
        if reported in (STEPS, place.until):
            self.released_here |= {trial} if reported == STEPS else set()
            return None
        return Attach(trial, place.config, reported, bool(reported), place.source, place.until)

    def restore(self, trial_id, config, reported):
        saved = self.disk["checkpoints"].get(trial_id)
        return saved if saved is not None and saved.config == config else None

    def save(self, trial_id, config, state, progress):
        super().save(trial_id, config, state, progress)
        if self.kills > 0:
            self.disk["checkpoints"][trial_id] = self.saved[trial_id][-1]

    def copy_of(self, source, trial_id):
        return self.disk["rungs"].get((source.trial_id, source.step))

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave, left=None, over=""):
        super().evaluated(trial_id, config, metrics, result, latent, test, wave, left)
        self.kills -= 1
        if self.kills <= 0:
            self.inbox = [Stop()]
            return
        self.disk["metrics"].setdefault(trial_id, {})[metrics.step] = metrics.eval_loss, metrics.train_loss
        if left is not None:
            self.disk["rungs"][trial_id, metrics.step] = left
            self.come(trial_id, metrics.step, metrics.eval_loss)

    def strayed(self, trial_id, until, reason):
        self.come(trial_id, until, None)

    def come(self, trial, step, loss):
        self.population.enter(trial, step, loss)
        if self.kills > 0 and self.population.decide():
            self.inbox += [command for member in MEMBERS if (command := self.command(member)) is not None]

    def released(self, trial_id):
        super().released(trial_id)
        self.released_here.add(trial_id)
        self.inbox += [Stop()] * (self.released_here == MEMBERS.keys())


def fresh():
    return {"study": {}, "metrics": {}, "checkpoints": {}, "rungs": {}}


@pytest.fixture(scope="module")
def pack(tmp_path_factory, tiny_base):
    return packs_over(tiny_base)


@pytest.fixture(scope="module")
def undisturbed(pack):
    disk = fresh()
    pack(None, link=Stepping(disk))
    return disk


def same(found, expected):
    return found == {
        trial: {step: pytest.approx(values, rel=1e-9) for step, values in curve.items()}
        for trial, curve in expected.items()
    }


def test_a_population_trains_in_step_and_its_worst_become_copies(undisturbed):
    rungs = decided(undisturbed["study"])
    assert sorted(rungs) == [4, 8, 12]
    assert "t0002" in rungs[4]  # it has diverged
    assert all(len(changes) == 1 for changes in rungs.values())
    curves = undisturbed["metrics"]
    assert sorted(curves["t0001"]) == list(range(2, STEPS + 1, 2))
    assert min(curves["t0002"]) == 6
    for rung, changes in rungs.items():
        for trial, change in changes.items():
            others = [curve[rung][0] for curve in curves.values() if rung in curve]
            assert curves[change["from"]][rung][0] == min(others)
            assert trial == "t0002" or curves[trial][rung][0] == max(others)


@pytest.mark.parametrize("kills", [1, 7, 14, 22])
def test_killed_at_any_moment_it_goes_on_to_the_same_numbers(pack, undisturbed, kills):
    disk = fresh()
    pack(None, link=Stepping(disk, kills))
    assert disk["metrics"] != undisturbed["metrics"]
    pack(None, link=Stepping(disk))
    assert same(disk["metrics"], undisturbed["metrics"])
    assert decided(disk["study"]) == decided(undisturbed["study"])


def test_killed_and_robbed_of_its_checkpoints_too(pack, undisturbed):
    """Only the study and what was reported are left: schedules alone are trained again."""
    disk = fresh()
    pack(None, link=Stepping(disk, 20))
    disk["checkpoints"], disk["rungs"] = {}, {}
    pack(None, link=Stepping(disk))
    assert same(disk["metrics"], undisturbed["metrics"])


def test_a_members_schedule_alone_gives_its_losses(pack, undisturbed):
    rungs = decided(undisturbed["study"])
    last = {
        trial: TrialConfig(**change["config"])
        for _, changes in sorted(rungs.items())
        for trial, change in changes.items()
    }
    for trial, config in last.items():
        script = {
            "at first": [Attach(trial, config.model_dump(mode="json"), 0, False)],
            ("released", trial, 1): [Stop()],
        }
        link = pack(script, slots=1)
        for line in link.metrics[trial]:
            stage = next((stage for stage in config.stages if line.step <= stage.until), None)
            expected = undisturbed["metrics"][stage.trial if stage else trial][line.step]
            assert (line.eval_loss, line.train_loss) == pytest.approx(expected, rel=1e-9)
