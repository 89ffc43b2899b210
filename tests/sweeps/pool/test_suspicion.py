"""Who is blamed for packs that die: in a simulation, the culprit and nobody else, whoever else dies meanwhile."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.pool.suspicion import DEATHS, Suspicion


def simulate(trials, slots, culprits, seed, bystander_deaths=0, checkpoint_every=4, steps=12):
    """Packs of `slots`, one at a time, until all trials have ended.

    Args:
        culprits: trial -> the step during which it kills its pack.
        bystander_deaths: packs that are killed by somebody else, at random moments.
    """
    rng = random.Random(seed)
    suspicion = {trial: Suspicion() for trial in range(trials)}
    done, blamed, saved, packs = set(), set(), dict.fromkeys(range(trials), 0), 0

    def fill(inside, ended):
        """As the pool does it: suspects first, in the order of their ids."""
        left = [trial for trial in suspicion if trial not in ended and trial not in inside]
        for trial in sorted(left, key=lambda trial: (not suspicion[trial].active, trial)):
            if len(inside) < slots and suspicion[trial].may_join([suspicion[other] for other in inside]):
                inside[trial] = saved[trial]

    while len(done) + len(blamed) < trials:
        packs += 1
        assert packs < 60 * trials, "it never ends"
        inside = {}
        fill(inside, done | blamed)
        assert inside, "nobody may begin"
        lost = False
        while inside and not lost:
            if bystander_deaths and rng.random() < 0.05:
                bystander_deaths -= 1
                lost = True
            lost = lost or any(inside[trial] + 1 == culprits.get(trial) for trial in inside)
            if lost:
                break
            for trial in list(inside):
                inside[trial] += 1
                suspicion[trial].took(inside[trial])
                if inside[trial] % checkpoint_every == 0:
                    saved[trial] = inside[trial]
                    suspicion[trial].reported(inside[trial])
                if inside[trial] == steps:
                    done.add(trial)
                    del inside[trial]
            fill(inside, done | blamed)
        if lost:
            blamed |= {trial for trial in sorted(inside) if suspicion[trial].lost(len(inside), inside[trial])}
    return blamed


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.data())
def test_every_culprit_is_blamed_and_nobody_else(trials, slots, data):
    culprits = data.draw(st.dictionaries(st.integers(0, trials - 1), st.integers(1, 12), max_size=3))
    assert simulate(trials, slots, culprits, 0) == set(culprits)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.data(), st.integers(0, 1000))
def test_who_dies_by_chance_once_is_not_blamed(trials, slots, data, seed):
    """One pack is killed from outside at any moment: a trial that was alone in it goes on."""
    culprits = data.draw(st.dictionaries(st.integers(0, trials - 1), st.integers(1, 12), max_size=2))
    assert simulate(trials, slots, culprits, seed, bystander_deaths=1) == set(culprits)


def test_losses_never_count_while_a_trial_gets_on():
    one = Suspicion()
    for step in range(3, 300, 3):
        assert not one.lost(1, step)
        one.took(step + 1)
        assert one.active  # the message of the last step may have been lost with the pack
        one.took(step + 2)
        assert not one.active
    assert [one.lost(1, 300) for _ in range(DEATHS)] == [False] * (DEATHS - 1) + [True]


def test_groups_only_shrink_until_a_trial_reports():
    one = Suspicion()
    sizes = []
    for together in (8, 8, 3, 2, 8):
        one.lost(together, 0)
        sizes.append(one.group)
    assert sizes == [4, 4, 2, 1, 1]
    one.reported(1)
    assert one == Suspicion(step=0)
