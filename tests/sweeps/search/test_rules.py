"""The rules that stop trials, driven by hand and by chance: what they decide is counted again from the whole past."""

import random
from statistics import fmean, median

import pytest

from sweeps.search.rules import Halving, HyperBand, MedianRule, plateau


def judge(rule, step, losses):
    """Those of a wave that go on."""
    for trial, loss in losses.items():
        rule.enter(trial, step, loss)
    return {trial for trial in losses if rule.goes_on(trial, step)}


def test_the_first_of_a_wave_is_judged_as_the_others_are():
    """In any order: one by one, the first would meet an empty rung and pass."""
    losses = {"t0": 9.0, "t1": 1.0, "t2": 2.0, "t3": 3.0}
    for order in (list(losses), list(reversed(losses))):
        assert judge(Halving(8, 2, 32), 8, {trial: losses[trial] for trial in order}) == {"t1", "t2"}


def test_slots_that_are_filled_again_are_held_against_all_that_came_before():
    rule = Halving(8, 2, 32)
    assert judge(rule, 8, {"t0": 4.0, "t1": 1.0, "t2": 2.0, "t3": 3.0}) == {"t1", "t2"}
    # Another evaluation: two stand at the second rung, two that came later at the first.
    rule.enter("t1", 16, 0.9)
    rule.enter("t2", 16, 1.9)
    for trial, loss in (("t4", 2.5), ("t5", 0.5)):
        rule.enter(trial, 8, loss)
    assert [trial for trial, step in (("t1", 16), ("t2", 16), ("t4", 8), ("t5", 8)) if rule.goes_on(trial, step)] == [
        "t1",
        "t5",
    ]


def test_a_trial_alone_goes_on_and_none_is_judged_at_the_end_or_between_rungs():
    rule = Halving(8, 2, 32)
    assert judge(rule, 8, {"t0": 5.0}) == {"t0"}
    assert judge(rule, 12, {"t0": 9.0, "t1": 9.0}) == {"t0"}  # t1's first evaluation: it stands for step 8
    assert judge(rule, 32, {"t0": 9.0}) == {"t0"}
    assert judge(Halving(8, 2, 8), 8, {"t0": 9.0, "t1": 1.0}) == {"t0", "t1"}


def test_a_plateau_is_so_many_evaluations_without_a_new_lowest_loss():
    """Counted by hand, over losses drawn from few values, so that there are ties."""
    chance = random.Random(0)
    ended = 0
    for _ in range(300):
        patience, losses, best, waited = chance.randint(1, 3), [], float("inf"), 0
        for step in range(1, 9):
            losses.append(chance.choice([1.0, 1.5, 2.0, 3.0]))
            waited = 0 if losses[-1] < best else waited + 1
            best = min(best, losses[-1])
            assert bool(plateau(losses, patience, step, 9)) == (waited >= patience)
            assert plateau(losses, None, step, 9) == ""
            assert plateau(losses, patience, step, step) == ""  # it has taken all its steps
            if waited >= patience:
                ended += 1
                break
    assert ended > 200
    assert plateau([], 1, 1, 9) == ""
    assert plateau([2.0, 3.0], 1, 8, 32) == "no lower eval loss in 1 evaluation: it ended at step 8 of 32"
    said = "no lower eval loss in 2 evaluations in a row: it ended at step 12 of 32"
    assert plateau([2.0, 3.0, 2.0], 2, 12, 32) == said


@pytest.mark.parametrize("make", [lambda: Halving(8, 2, 64), lambda: Bracket()])
def test_one_that_ended_by_itself_is_at_later_rungs_what_it_came_to(make):
    rule = make()
    assert judge(rule, 8, {"a": 1.0, "b": 2.0, "c": 1.5, "d": 3.0}) == {"a", "c"}
    rule.finish("a", 0.9)
    assert judge(rule, 16, {"c": 1.4}) == set()  # of two one goes on, and that is "a"
    rule.finish("z", 9.0)  # nobody that it was told of before, but as good as any
    assert judge(rule, 8, {"e": 0.1, "f": 2.5}) == {"e"}
    assert judge(rule, 32, {"e": 0.1}) == {"e"}
    assert judge(rule, 32, {"f": 1.0}) == set()  # "e" and "a" stand there


class Bracket(HyperBand):
    """Of which all trials are in the first."""

    def __init__(self):
        super().__init__(8, 2, 64)

    def bracket(self, trial_id):
        return self._brackets[0]


def test_the_median_counts_one_that_ended_by_itself_at_all_later_steps():
    rule = MedianRule(8)
    for trial, loss in (("a", 1.0), ("b", 1.1), ("c", 1.2), ("d", 3.0)):
        rule.enter(trial, 8, loss)
    assert judge(rule, 16, {"d": 2.9}) == {"d"}  # nobody else has come so far
    for trial in "abc":
        rule.finish(trial, 0.9)
    assert judge(rule, 24, {"d": 2.8}) == set()


def test_hyperband_deals_its_brackets_and_stops_nobody_in_the_last():
    """R = 8 steps, η = 2, from 2 steps on: 4, 3 and 3 trials to begin with, as ⌈(s_max + 1) / (s + 1) · ηˢ⌉ says."""
    rule = HyperBand(2, 2, 8)
    brackets = [rule.bracket(f"t{number:04d}") for number in range(20)]
    assert [brackets.count(bracket) for bracket in dict.fromkeys(brackets)] == [8, 6, 6]
    assert brackets[:10] == brackets[10:]
    first, second, last = dict.fromkeys(brackets)
    of = {bracket: [f"t{n:04d}" for n in range(10) if brackets[n] is bracket] for bracket in (first, second, last)}
    for step, stopping in ((2, [first]), (4, [first, second])):
        for bracket in (first, second, last):
            losses = {trial: float(number) for number, trial in enumerate(of[bracket])}
            went_on = judge(rule, step, losses)
            assert (len(went_on) < len(losses)) == (bracket in stopping), (step, of[bracket])
            of[bracket] = sorted(went_on)
    assert len(HyperBand(8, 2, 8)._round) == 1


def halving(seen, trial, step, rungs, reduction):
    """Does the trial go on? By the first loss of each that has come to the rung, of those that were told until now."""
    rung = max((each for each in rungs if each <= step), default=None)
    first = {}
    for other, at, loss in seen:
        if rung is not None and max(each for each in [0, *rungs] if each <= at) == rung:
            first.setdefault(other, loss)
    return rung is None or sorted(first.values()).index(first[trial]) < max(1, len(first) // reduction)


def vizier(seen, trial, step, grace):
    curves = {}
    for other, at, loss in seen:
        curves.setdefault(other, []).append((at, loss))
    own = curves.pop(trial)
    if step < grace:
        return True
    others = [curve for curve in curves.values() if curve[-1][0] >= step]
    means = [fmean(loss for at, loss in curve if grace <= at <= step) for curve in others]
    return len(means) < 3 or min(loss for _, loss in own) <= median(means)


@pytest.mark.parametrize("seed", range(40))
def test_random_packs_are_judged_as_the_whole_past_says(seed):
    """Packs of any size, slots that are filled again at any moment, results told twice, a driver that begins anew."""
    chance = random.Random(seed)
    reduction, grace, budget = chance.choice([2, 3, 4]), chance.choice([2, 4]), chance.choice([8, 32, 40])
    rungs = [grace * reduction**k for k in range(9) if grace * reduction**k < budget]
    name = chance.choice(["asha", "median"])
    rule = Halving(grace, reduction, budget) if name == "asha" else MedianRule(grace)
    packs, seen, number, judged = [{} for _ in range(chance.randint(1, 3))], [], 0, set()
    for _ in range(60):
        pack = chance.choice(packs)
        while len(pack) < 4 and chance.random() < 0.7:
            pack[f"t{number}"] = 0
            number += 1
        for trial in pack:
            pack[trial] += 2
        if chance.random() < 0.1:  # what is on disk, trial by trial, and judged already
            rule = Halving(grace, reduction, budget) if name == "asha" else MedianRule(grace)
            for trial, step, loss in sorted(seen):
                rule.enter(trial, step, loss)
                rule.goes_on(trial, step)
        wave = {trial: (step, chance.random()) for trial, step in pack.items()}
        for _ in range(chance.choice([1, 1, 2])):
            for trial, (step, loss) in wave.items():
                rule.enter(trial, step, loss)
        seen += [(trial, step, loss) for trial, (step, loss) in wave.items()]
        for trial, (step, _) in wave.items():
            rung = sum(each <= step for each in rungs)
            new = (trial, rung) not in judged
            judged.add((trial, rung))
            if name == "median":
                expected = vizier(seen, trial, step, grace)
            else:
                expected = not new or step >= budget or halving(seen, trial, step, rungs, reduction)
            assert rule.goes_on(trial, step) == expected, (trial, step)
            assert rule.goes_on(trial, step)  # the same result once more, as Tune tells it at an end
            if not expected or step >= budget:
                del pack[trial]
