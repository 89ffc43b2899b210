"""Who becomes a copy of whom, and with what values: rules alone, without Ray."""

import math
from random import Random

import pytest

from bitlora.config.trial import TrialConfig
from sweeps.search.cloning.explore import perturbed, resampled
from sweeps.search.cloning.place import Place, Source
from sweeps.search.cloning.population import Population, attribute, became, decided
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.space import Choices, Range, contains
from sweeps.spec.spec import Spec

SPACE = {
    "quantizer": ["none", "ternary"],
    "learning_rate": {
        "by": "quantizer",
        "none": {"low": 1e-4, "high": 2e-3, "log": True},
        "ternary": [1e-3, 4e-3, 1e-2],
    },
    "weight_decay": {"low": 0.0, "high": 0.1},
    "dropout": [0.0, 0.05, 0.1],
    "max_grad_norm": {"low": 0.5, "high": 2.0, "step": 0.5},
}
MEMBERS = {
    "t0000": {"quantizer": "none", "learning_rate": 1e-3, "weight_decay": 0.0, "dropout": 0.0, "max_grad_norm": 1.0},
    "t0001": {"quantizer": "ternary", "learning_rate": 1e-3, "weight_decay": 0.1, "dropout": 0.1, "max_grad_norm": 2.0},
    "t0002": {"quantizer": "none", "learning_rate": 2e-3, "weight_decay": 0.05, "dropout": 0.05, "max_grad_norm": 0.5},
    "t0003": {"quantizer": "ternary", "learning_rate": 1e-2, "weight_decay": 0.0, "dropout": 0.0, "max_grad_norm": 1.5},
}


def spec(**scheduler):
    return Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"trials": 4, "space": SPACE},
            "scheduler": {"name": "pbt", "interval": 8, **scheduler},
        }
    )


def config(**chosen):
    fixed = {
        "activations": "full",
        "rank": 4,
        "alpha": 8.0,
        "scaling": "lora",
        "batch_size": 2,
        "micro_batch": None,
        "schedule": "cosine",
        "warmup": 0.1,
        "floor": 0.0,
        "steps": 32,
        "eval_every": 4,
        "seed": 0,
    }
    return TrialConfig(**fixed, **chosen)


def population(kept=None, **scheduler):
    made = Population(spec(**scheduler), 32, 4, kept or {})
    for trial, chosen in MEMBERS.items():
        made.begin(trial, config(**chosen).model_dump())
    return made


def rung(made, step, losses, order=None):
    """All come to a rung with these losses; gives what was decided, which is nothing before the last has come."""
    said = []
    made.decides = lambda rung, changes, came: said.append((rung, changes))
    names = list(order or MEMBERS)
    for trial in names:
        assert not made.decide()
        made.enter(trial, step, losses[trial])
    assert made.decide()
    [(at, changes)] = said
    assert at == step
    return changes


LOSSES = {"t0000": 2.0, "t0001": 3.0, "t0002": 1.0, "t0003": 4.0}


def test_the_worst_goes_on_as_a_copy_of_the_best_whole_and_moves_what_can_be_moved():
    made = population()
    assert made.place("t0003").until == 8
    changes = rung(made, 8, LOSSES)
    assert {trial: change["from"] for trial, change in changes.items()} == {"t0003": "t0002"}
    own, other = TrialConfig(**changes["t0003"]["config"]), config(**MEMBERS["t0002"])
    axes = ("learning_rate", "weight_decay", "dropout", "max_grad_norm")
    assert own.model_copy(update={"stages": (), **{axis: getattr(other, axis) for axis in axes}}) == other
    assert all(getattr(own, axis) != getattr(other, axis) for axis in axes[:1])
    [stage] = own.stages
    assert (stage.until, stage.trial) == (8, "t0002")
    assert [getattr(stage, axis) for axis in axes] == [getattr(other, axis) for axis in axes]
    assert contains(spec().search.space, {axis: getattr(own, axis) for axis in SPACE})
    assert made.place("t0003") == Place(Source("t0002", 8), 16, own.model_dump(mode="json"))
    assert made.place("t0000") == Place(Source("t0000", 8), 16, config(**MEMBERS["t0000"]).model_dump(mode="json"))


def test_nothing_hangs_on_who_reports_first():
    found = [rung(population(), 8, LOSSES, order) for order in (MEMBERS, reversed(MEMBERS), sorted(MEMBERS, key=hash))]
    assert found[0] == found[1] == found[2]


def test_a_copy_of_a_copy_has_the_steps_of_both():
    made = population()
    rung(made, 8, LOSSES)
    changes = rung(made, 16, {"t0000": 2.0, "t0001": 9.0, "t0002": 1.0, "t0003": 0.5})
    own = TrialConfig(**changes["t0001"]["config"])
    assert [(stage.until, stage.trial) for stage in own.stages] == [(8, "t0002"), (16, "t0003")]
    assert made.place("t0001").source == Source("t0003", 16)
    rung(made, 24, LOSSES)
    assert made.place("t0001").until is None  # to its end: there is no rung at the budget
    assert not made.decide()


def test_what_was_decided_is_known_to_the_next_run():
    made = population()
    kept = attribute(8, rung(made, 8, LOSSES))
    assert became(kept, "t0003") == made.place("t0003").config
    assert became(kept, "t0000") == {}
    again = population(decided({**kept, "data": "…"}))
    assert {trial: again.place(trial) for trial in MEMBERS} == {trial: made.place(trial) for trial in MEMBERS}
    later = {"t0000": 5.0, "t0001": 3.0, "t0002": 1.0, "t0003": 0.9}
    assert rung(again, 16, later) == rung(made, 16, later)


def test_one_that_diverges_is_a_copy_from_the_next_rung_on_however_many_they_are():
    changes = rung(population(), 8, {**dict.fromkeys(MEMBERS), "t0001": 3.0})
    assert {trial: change["from"] for trial, change in changes.items()} == dict.fromkeys(
        ("t0000", "t0002", "t0003"), "t0001"
    )


def test_where_all_have_diverged_they_end():
    made = population()
    assert rung(made, 8, dict.fromkeys(MEMBERS)) == {}
    assert {made.place(trial).until for trial in MEMBERS} == {None}


def test_nobody_waits_for_one_that_has_ended_or_copies_it():
    made = population()
    made.enter("t0002", 8, 0.1)
    made.end("t0002")
    for trial in ("t0000", "t0001", "t0003"):
        assert not made.decide()
        made.enter(trial, 8, LOSSES[trial])
    assert made.decide()
    assert made.place("t0003").source == Source("t0000", 8)
    assert "t0002" not in made.members


def test_one_that_confirms_is_no_member():
    assert population().place("t0009") == Place()


def test_nothing_is_decided_before_all_have_begun():
    made = Population(spec(), 32, 5, {})
    for trial, chosen in MEMBERS.items():
        made.begin(trial, config(**chosen).model_dump())
        made.enter(trial, 8, LOSSES[trial])
    assert not made.decide()


@pytest.mark.parametrize(
    ("size", "quantile", "few"),
    [(2, 0.25, 1), (4, 0.25, 1), (5, 0.25, 2), (8, 0.25, 2), (3, 0.5, 1), (4, 0.5, 2)],
)
def test_how_many(size, quantile, few):
    """As many as Ray's PopulationBasedTraining takes: rounded up, at most half."""
    made = Population(spec(quantile=quantile), 32, size, {})
    names = [f"t{number:04d}" for number in range(size)]
    for number, trial in enumerate(names):
        made.begin(trial, config(**MEMBERS["t0002"]).model_dump())
        made.enter(trial, 8, float(number))
    said = []
    made.decides = lambda rung, changes, came: said.append(changes)
    assert made.decide()
    assert set(said[0]) == set(names[-few:])
    assert {change["from"] for change in said[0].values()} <= set(names[:few])


# ---- values


DOMAINS = [
    Choices((0.0, 0.05, 0.1)),
    Choices((1,)),
    Range(1e-4, 2e-3, log=True),
    Range(0.0, 0.1),
    Range(0, 1),
    Range(1, 64, log=True),
    Range(0.5, 2.0, step=0.5),
    Range(0.0, 1.0, step=0.3),
    Range(-1.0, 1.0),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_values_stay_inside_and_all_but_the_only_one_move(domain):
    chance = Random(1)
    space = {"axis": domain}
    ends = domain.values if isinstance(domain, Choices) else (domain.low, domain.high)
    if isinstance(domain, Range) and domain.step:
        ends = (domain.low, domain.low + domain.step)
    for start in (*ends, *(resampled(domain, chance) for _ in range(50))):
        value = start
        for _ in range(30):
            before, value = value, perturbed(domain, value, chance)
            assert contains(space, {"axis": value}), (before, value)
            assert value != before or domain == Choices((1,))


def test_a_choice_moves_to_a_neighbour_and_a_number_by_a_fifth():
    chance = Random(0)
    listed = Choices(("a", "b", "c"))
    assert {perturbed(listed, "b", chance) for _ in range(50)} == {"a", "c"}
    assert {perturbed(listed, "a", chance) for _ in range(50)} == {"b"}
    assert {perturbed(listed, "c", chance) for _ in range(50)} == {"b"}
    assert {round(perturbed(Range(1e-5, 1e-1, log=True), 1e-3, chance), 9) for _ in range(50)} == {8e-4, 1.2e-3}
    assert {round(perturbed(Range(0.0, 0.1), 0.0, chance), 9) for _ in range(50)} == {0.01}
    assert {perturbed(Range(0, 1), 1, chance) for _ in range(9)} == {0}


def test_what_is_drawn_anew_is_as_likely_anywhere():
    chance = Random(2)
    drawn = [math.log10(resampled(Range(1e-4, 1e-2, log=True), chance)) for _ in range(2000)]
    assert sum(value < -3 for value in drawn) == pytest.approx(1000, abs=100)
    assert {resampled(Choices((1, 2)), chance) for _ in range(20)} == {1, 2}


# ---- confirmed


def test_the_best_is_confirmed_by_its_schedule(tmp_path):
    """On a fresh seed, with the values and stages of what it has become, not with those that it began with."""
    space = {"quantizer": ["none", "ternary"], "dropout": [0.0, 0.1]}
    of = Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "search": {"trials": 4, "sampler": "grid", "space": space},
            "scheduler": {"name": "pbt"},
            "confirm": {"top": 1, "by": "quantizer", "seeds": 1},
        }
    )

    fixed = config(**MEMBERS["t0000"]).model_dump()

    def configure(chosen):
        return TrialConfig(**{**fixed, **chosen}).model_dump()

    one = OptunaSearcher(of, tmp_path / "study.journal", configure=configure)
    given = [one.suggest(f"tune{number}") for number in range(4)]
    began = TrialConfig(**given[3]["config"])
    assert began.quantizer == "ternary"
    other = TrialConfig(**given[0]["config"])
    now = other.model_copy(update={"dropout": 0.1}).after(other, 8, "t0000")
    one.set_attributes(attribute(8, {"t0003": {"from": "t0000", "config": now.model_dump(mode="json")}}))
    for trial, loss in (("t0000", 2.0), ("t0001", 3.0), ("t0002", 2.5), ("t0003", 1.0)):
        one.finish(trial, "completed", loss)
    repeats = [one.suggest("again0")["config"], one.suggest("again1")["config"]]
    assert [(again["confirms"], again["quantizer"]) for again in repeats] == [("t0003", "none"), ("t0002", "ternary")]
    first = TrialConfig(**repeats[0])
    assert one.members == 4
    one.finish("t0004", "completed", 2.0)
    one.close()
    assert OptunaSearcher(of, tmp_path / "study.journal", configure=configure).members == 0
    assert first.seed == 1
    assert first.model_copy(update={"seed": now.seed, "confirms": None}) == now
    assert TrialConfig(**repeats[1]).stages == ()
