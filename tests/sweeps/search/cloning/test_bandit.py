"""Where PB2 moves values: the process by its formulas, and what a population makes of it."""

import json
import math
from random import Random
from statistics import median

import numpy as np
import pytest
from scipy import stats

from bitlora.config.trial import TrialConfig
from sweeps.search.cloning import bandit
from sweeps.search.cloning.bandit import Bandit, GainProcess, Points, behind, likeliest, standardised
from sweeps.search.cloning.explore import chosen_of, moved, resampled
from sweeps.search.cloning.population import Population, attribute, came, came_to, decided
from sweeps.spec.space import By, Choices, Range, contains, domain_of, order
from sweeps.spec.spec import Spec

SPACE = {
    "quantizer": ["none", "ternary"],
    "learning_rate": {
        "by": "quantizer",
        "none": {"low": 1e-4, "high": 1e-2, "log": True},
        "ternary": [1e-2, 1e-3, 4e-3],
    },
    "weight_decay": {"low": 0.0, "high": 0.1},
    "dropout": [0.0, 0.05, 0.1],
    "max_grad_norm": {"low": 0.5, "high": 2.0, "step": 0.5},
}
FIXED = {
    "quantizer": "none", "activations": "full", "rank": 4, "alpha": 8.0, "scaling": "lora", "learning_rate": 1e-3,
    "weight_decay": 0.0, "dropout": 0.0, "max_grad_norm": 1.0, "batch_size": 2, "micro_batch": None,
    "schedule": "constant", "warmup": 0.0, "floor": 0.0, "steps": 64, "eval_every": 8, "seed": 0,
}  # fmt: skip
MEMBERS = [f"t{number:04d}" for number in range(6)]


def spec(space=SPACE, name="pb2", seed=0, **scheduler):
    return Spec.model_validate(
        {
            "name": "s",
            "base": {"model": "a"},
            "data": {"source": "b"},
            "train": {"steps": 64},
            "search": {"trials": len(MEMBERS), "space": space, "seed": seed},
            "scheduler": {"name": name, "interval": 8, **scheduler},
        }
    )


def drawn(space, chance):
    chosen = {}
    for axis in order(space):
        chosen[axis] = resampled(domain_of(space, axis, chosen), chance)
    return TrialConfig(**{**FIXED, **chosen})


def places(space, config):
    return bandit.places(space, chosen_of(config, space))


def begun(of=None, kept=None, members=None):
    """A population as a sweep with these attributes of its study begins or goes on with it."""
    of, kept = of or spec(), json.loads(json.dumps(kept or {}))
    made = Population(of, 64, len(MEMBERS) if members is None else len(members), decided(kept), came(kept))
    chance = Random(5)
    for name in MEMBERS:
        config = drawn(of.search.space, chance).model_dump()
        if members is None or name in members:
            made.begin(name, config)
    return made


def rung(made, step, losses):
    """All come there; gives the attributes by which a study keeps it."""
    kept = {}
    made.decides = lambda rung, changes, came: kept.update(came_to(rung, came) | attribute(rung, changes))
    for name, loss in losses.items():
        made.enter(name, step, loss)
    assert made.decide()
    return kept


def losses(step, chance=None):
    chance = chance or Random(step)
    return {name: 3 / step + chance.random() for name in MEMBERS}


# ---- the process

PROCESS = GainProcess(0.4, 0.3, 0.2)


def points(count, seed):
    drawn = np.random.default_rng(seed)
    return Points(drawn.random((count, 3)), drawn.integers(1, 5, count).astype(float))


def written_out(one, other):
    """The kernel of `PROCESS`, in loops."""
    found = np.zeros((len(one.t), len(other.t)))
    for i in range(len(one.t)):
        for j in range(len(other.t)):
            squares = sum((a - b) ** 2 for a, b in zip(one.x[i], other.x[j], strict=True))
            found[i, j] = 0.8 * math.exp(-squares / (2 * 0.4**2)) * 0.7 ** (abs(one.t[i] - other.t[j]) / 2)
    return found


def test_the_kernel_fades_with_distance_and_with_time():
    np.testing.assert_allclose(PROCESS.kernel(points(5, 0), points(7, 1)), written_out(points(5, 0), points(7, 1)))


def test_what_is_expected_is_the_normal_distribution_given_what_was_seen():
    seen, where, gains = points(9, 2), points(4, 3), np.random.default_rng(4).normal(size=9)
    known = np.linalg.inv(written_out(seen, seen) + 0.2 * np.eye(9))
    across = written_out(where, seen)
    np.testing.assert_allclose(PROCESS.mean(seen, gains, where), across @ known @ gains)
    variance = np.diag(written_out(where, where) - across @ known @ across.T)
    np.testing.assert_allclose(PROCESS.variance(seen, where), variance)


def test_the_likeliest_process_is_the_one_that_scipy_finds_so():
    seen, gains = points(30, 6), np.random.default_rng(7).normal(size=30)
    normal = stats.multivariate_normal(np.zeros(30), written_out(seen, seen) + 0.2 * np.eye(30))
    assert PROCESS.likelihood(seen, gains) - 15 * math.log(2 * math.pi) == pytest.approx(normal.logpdf(gains))
    line = Points(np.linspace(0, 1, 30)[:, None], np.ones(30))
    smooth = np.sin(4 * line.x[:, 0])
    assert likeliest(line, smooth).noise == 0.01
    assert likeliest(line, smooth).length >= 0.2
    assert likeliest(line, np.random.default_rng(8).normal(size=30)).noise >= 0.6
    turns = Points(np.tile(np.linspace(0, 1, 5), 6)[:, None], np.repeat(np.arange(6.0), 5))
    waves = np.sin(4 * turns.x[:, 0])
    assert likeliest(turns, waves).decay == 0.0
    others = np.sin(4 * turns.x[:, 0] + np.repeat([0.0, 2.0, 0.5, 5.0, 3.5, 1.0], 5))
    assert likeliest(turns, others).decay == 0.5


def test_gains_of_a_rung_are_held_against_each_other():
    assert standardised([1.0, 3.0]) == [-1.0, 1.0]
    assert standardised([1.0, None, 3.0]) == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])  # as the worst
    assert standardised([0.2, 0.2]) == [0.0, 0.0]
    assert standardised([None]) == [0.0]
    assert min(standardised([0.0] * 9 + [-1e6])) == -2.0
    assert behind({"a": 2.0, "b": 1.0, "c": math.inf}) == {"a": 0.5, "b": 0.0, "c": 1.0}


def test_places():
    space = {"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": Choices((0.1, 0.0, 0.5)), "rank": Choices((4, 8))}
    config = TrialConfig(**FIXED)
    assert places(space, config) == pytest.approx([0.5, 0.0])
    assert places(space, config.model_copy(update={"learning_rate": 1e-2, "dropout": 0.1})) == [1.0, 0.5]
    assert places({"weight_decay": Range(0.0, 0.0), "dropout": Choices((0.0,))}, config) == [0.5, 0.5]


# ---- what is chosen


def rows(space, worth, chance, count=12):
    """What members came to whose gains are what their places are worth."""
    at = [places(space, drawn(space, chance)) for _ in range(count)]
    return {f"t{n:04d}": {"loss": 1.0, "gain": worth(*own), "behind": 0.0, "at": own} for n, own in enumerate(at)}


def test_values_move_to_where_gains_were_the_highest():
    space = {"learning_rate": Range(1e-4, 1e-2, log=True)}
    kept = {t: rows(space, lambda place: -abs(place - 0.7), Random(t)) for t in (1, 2, 3)}
    made = Bandit(space, kept, {"t0000": 1.0, "t0001": 2.0}, {})
    [found] = places(space, made.moved("t0000", TrialConfig(**FIXED), Random(0)))
    assert found == pytest.approx(0.7, abs=0.15)


def test_of_a_list_the_member_with_the_highest_bound_is_taken():
    """Held against formulas written out, with the one that stays and those that have chosen as pending."""
    listed = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    space = {"learning_rate": Choices(listed)}
    kept = {t: rows(space, lambda place: math.sin(5 * place), Random(t), 4) for t in (1, 2)}
    stays = TrialConfig(**{**FIXED, "learning_rate": 1e-2})
    made = Bandit(space, kept, {"t0000": 1.0, "t0001": 2.0}, {"t0000": stays})
    seen = [(t, row["behind"], *row["at"]) for t, own in kept.items() for _, row in sorted(own.items())]
    gains = [z for own in kept.values() for z in standardised([row["gain"] for _, row in sorted(own.items())])]
    process = likeliest(Points(np.array(seen)[:, 1:], np.array(seen)[:, 0]), np.array(gains))

    def k(one, other):
        squares = sum((a - b) ** 2 for a, b in zip(one[1:], other[1:], strict=True))
        fades = (1 - process.decay) ** (abs(one[0] - other[0]) / 2)
        return (1 - process.noise) * math.exp(-squares / (2 * process.length**2)) * fades

    def inverse(at):
        return np.linalg.inv([[k(a, b) + process.noise * (i == j) for j, b in enumerate(at)] for i, a in enumerate(at)])

    pending, taken = [(3, 0.0, 1.0)], []
    for turn in range(3):
        bounds = []
        for index in range(5):
            own = (3, 0.0, index / 4)
            near = np.array([k(own, other) for other in seen])
            soon = np.array([k(own, other) for other in seen + pending])
            variance = k(own, own) - soon @ inverse(seen + pending) @ soon
            beta = 0.2 + math.log(0.4 * len(gains))
            bounds.append(near @ inverse(seen) @ gains + math.sqrt(beta) * variance)
        taken.append(int(np.argmax(bounds)))
        pending.append((3, 0.0, taken[-1] / 4))
        found = made.moved("t0000", TrialConfig(**FIXED), Random(turn))
        assert found.learning_rate == listed[taken[-1]]


def test_those_that_choose_at_one_rung_do_not_all_go_to_the_place_of_which_least_is_known():
    space = {"weight_decay": Range(0.0, 1.0), "dropout": Range(0.0, 0.9)}
    kept = {1: rows(space, lambda decay, dropout: 0.0, Random(0), 4)}

    def nearest(bandits):
        config = TrialConfig(**FIXED)
        found = [places(space, one.moved("t0000", config, Random(n))) for n, one in enumerate(bandits)]
        return min(math.dist(one, other) for n, one in enumerate(found) for other in found[:n])

    one, *others = [Bandit(space, kept, {"t0000": 1.0, "t0001": 2.0}, {}) for _ in range(5)]
    assert nearest([one] * 4) > 0.3
    assert nearest(others) < 0.1  # who knows of no other


def test_an_axis_that_hangs_on_one_that_moves_stays_inside_too():
    space = {
        "learning_rate": By("dropout", {0.0: Choices((1e-3, 1e-2))}, Range(1e-5, 1e-4, log=True)),
        "dropout": Choices((0.0, 0.1)),
    }
    kept = {1: rows(space, lambda dropout, rate: rate, Random(0), 4)}
    made = Bandit(space, kept, {"t0000": 1.0, "t0001": 2.0}, {})
    for turn in range(8):
        for found in (
            made.moved("t0000", TrialConfig(**FIXED), Random(turn)),
            moved(TrialConfig(**FIXED), space, 0.5, Random(turn)),
        ):
            assert contains(space, chosen_of(found, space))


# ---- in a population


def test_values_stay_inside_the_space_and_its_lists():
    of, chance = spec(quantile=0.5), Random(1)
    made = begun(of)
    for step in range(8, 64, 8):
        kept = rung(made, step, losses(step, chance))
        assert len(kept[f"rung {step}"]) == 3
        for change in kept[f"rung {step}"].values():
            config = TrialConfig(**change["config"])
            assert contains(of.search.space, chosen_of(config, of.search.space))
            assert config.stages[-1].until == step


def test_the_first_rung_is_as_in_pbt_and_the_second_is_not():
    pb2, pbt = begun(), begun(spec(name="pbt"))
    first, other = rung(pb2, 8, losses(8)), rung(pbt, 8, losses(8))
    assert first["rung 8"] == other["rung 8"]
    assert "came to rung 8" not in other
    second, other = rung(pb2, 16, losses(16)), rung(pbt, 16, losses(16))
    assert second["rung 16"].keys() == other["rung 16"].keys()
    assert second["rung 16"] != other["rung 16"]


def test_what_is_kept_of_a_rung_are_the_gains_of_whoever_took_the_steps():
    made = begun()
    first = {name: float(number) for number, name in enumerate(MEMBERS, 1)} | {"t0005": None}
    at = {name: places(spec().search.space, TrialConfig(**made.place(name).config)) for name in MEMBERS}
    kept = rung(made, 8, first)
    assert list(kept) == ["came to rung 8", "rung 8"]  # the decision last: it is none without the other
    assert kept["came to rung 8"]["t0001"] == {"loss": 2.0, "gain": -2.0, "behind": 0.0, "at": at["t0001"]}
    assert kept["came to rung 8"]["t0005"] == {"loss": None, "gain": None, "behind": 0.0, "at": at["t0005"]}
    changes = kept["rung 8"]
    assert "t0005" in changes
    source = changes["t0005"]["from"]
    own = places(spec().search.space, TrialConfig(**changes["t0005"]["config"]))
    kept = rung(made, 16, {**dict.fromkeys(MEMBERS, 0.5), "t0005": 0.25})["came to rung 16"]
    assert kept["t0005"] == {"loss": 0.25, "gain": first[source] - 0.25, "behind": behind_of(source, first), "at": own}
    assert kept["t0002"] == {"loss": 0.5, "gain": 2.5, "behind": 0.4, "at": at["t0002"]}


def behind_of(source, first):
    return sum(loss is not None and loss < first[source] for loss in first.values()) / 5


@pytest.mark.parametrize("lost", [16, 24, 40])
def test_a_sweep_that_goes_on_decides_as_one_that_was_not_killed(lost):
    """From the study alone, whatever else it hears again of rungs that were decided."""
    whole, kept = begun(), {}
    for step in range(8, lost, 8):
        kept |= rung(whole, step, losses(step))
    again = begun(kept=kept)
    for name in MEMBERS:
        again.enter(name, 8, 0.0)  # its own line is that of another, where it was trained again by its stages
    for step in range(lost, 64, 8):
        assert rung(again, step, losses(step)) == rung(whole, step, losses(step))
    assert {name: again.place(name) for name in MEMBERS} == {name: whole.place(name) for name in MEMBERS}


def test_a_rung_that_was_not_decided_is_decided_alike():
    """Killed between the two lines that a study keeps of it."""
    whole = begun()
    first, second = rung(whole, 8, losses(8)), rung(whole, 16, losses(16))
    half = {**first, "came to rung 16": second["came to rung 16"]}
    assert rung(begun(kept=half), 16, losses(16)) == second


def test_one_that_has_ended_is_remembered_by_the_next_run_too():
    whole = begun()
    kept = rung(whole, 8, losses(8)) | rung(whole, 16, losses(16))
    whole.end("t0000")
    left = {name: loss for name, loss in losses(24).items() if name != "t0000"}
    assert rung(begun(kept=kept, members=MEMBERS[1:]), 24, left) == rung(whole, 24, left)


def made_up(name, seed):
    """The lowest loss of a population whose losses halve with each interval at the best learning rate, the sooner the less
    dropout; the best rate falls."""
    space = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}, "dropout": [0.0, 0.1, 0.2]}
    of, chance = spec(space, name, seed), Random(seed)
    made = Population(of, 64, len(MEMBERS), {})
    for member in MEMBERS:
        made.begin(member, drawn(of.search.space, chance).model_dump())
    now = dict.fromkeys(MEMBERS, 4.0)
    for step in range(8, 65, 8):
        for member in MEMBERS:
            config = TrialConfig(**made.place(member).config)
            rate, dropout = places(of.search.space, config)
            speed = math.exp(-(((rate - 0.8 + step / 256) / 0.15) ** 2)) * (1 - dropout / 2)
            now[member] *= 2 ** -(speed + 0.02 * chance.gauss(0, 1))
            made.enter(member, step, now[member])
        if made.decide():
            before = dict(now)
            now = {member: before[made.place(member).source.trial_id] for member in MEMBERS}
    return min(now.values())


def test_a_population_comes_to_no_less_than_with_pbt():
    found = {name: median(made_up(name, seed) for seed in range(5)) for name in ("pbt", "pb2")}
    assert found["pb2"] < 1.05 * found["pbt"], found
