"""What the pool does when some of its packs are up and others are not, or are about to end. No Ray."""

import asyncio

import pytest
from pool_world import SOON

from bitlora import timeouts
from sweeps.onray import cluster
from sweeps.pool.messages import Peers, TrialResult
from sweeps.search.rungs.sequential import RowLoss


def test_a_pack_that_did_not_come_up_costs_no_pause_when_the_others_are_lost(world, monkeypatch):
    """The pause is for a sweep that goes on meanwhile."""
    monkeypatch.setattr(timeouts, "PACK_RETRY_S", 3600.0)

    async def scenario(w):
        await w.attach(*range(4))
        first, second = w.hosts
        await w.ready(first)
        await w.pool.pack_started(second.name)
        second.fails(RuntimeError("a worker of the pack died"))
        await w.until(lambda: second.name in w.removed)
        await asyncio.sleep(3 * timeouts.POOL_TICK_S)
        assert len(w.hosts) == 2
        first.fails(RuntimeError("a worker of the pack died"))
        await w.until(lambda: len(w.running()) == 2)

    world(scenario)


def test_a_pack_that_ends_has_time_for_each_of_its_last_files(world, monkeypatch):
    monkeypatch.setattr(timeouts, "PACK_STOP_S", SOON)

    async def scenario(w):
        await w.attach(0)
        host = w.hosts[0]
        await w.ready(host)
        assert await w.told(host) == ["attach t0"]
        await w.report(host, "t0", status="completed")
        await w.until(lambda: w.pool._packs.named[host.name].stopping)
        for _ in range(4):
            await asyncio.sleep(0.7 * SOON)
            await w.pool.pack_wrote(host.name)
        assert not host.over.done()
        await w.until(lambda: host.over.done())  # it hangs

    world(scenario)


def test_why_a_sweep_was_given_up_stays(world):
    """Packs that end afterwards, asked to, say nothing new."""

    async def scenario(w):
        await w.attach(*range(4))
        for _ in range(2):
            host = w.running()[0]
            await w.ready(host)
            await w.pool.pack_failed(host.name, "could not write: No space left on device", unwritable=True)
            host.fails(RuntimeError("a worker of the pack died"))
            await w.until(lambda host=host: host.name in w.removed)
        for host in w.running():
            host.over.set_result(None)
        await w.until(lambda: not w.running())
        await asyncio.sleep(3 * timeouts.POOL_TICK_S)
        await w.attach(4)
        assert "No space left" in (await w.result("t4", 0)).reason

    world(scenario)


def test_trials_spread_over_the_packs_that_are_up(world):
    async def scenario(w):
        await w.attach(*range(5))
        for host in w.hosts:
            await w.pool.pack_started(host.name)
        w.pool._closing = True  # so that trials wait until both are ready
        for host in w.hosts:
            w.pool._packs.named[host.name].ready = True
        w.pool._dispatch()
        w.pool._closing = False
        assert await w.told(w.hosts[0]) == ["attach t0", "attach t2", "attach t4"]
        assert await w.told(w.hosts[1]) == ["attach t1", "attach t3"]

    world(scenario, slots=4)


def test_trials_wait_in_the_order_in_which_they_were_asked_for(world):
    async def scenario(w):
        await w.attach(10000, 9999)
        assert (await w.pool.status()).waiting == ("t9999", "t10000")

    world(scenario)


@pytest.mark.parametrize("heard_late", [False, True])
def test_machines_that_are_taken_away_while_packs_load_do_not_give_the_sweep_up(world, monkeypatch, heard_late):
    looks = iter([{"head", "spot"}] * 2)  # Ray hears of a lost machine later than of its processes
    monkeypatch.setattr(cluster, "living_nodes", lambda: next(looks, {"head"}) if heard_late else {"head"})

    async def scenario(w):
        await w.attach(0)
        for packs in range(1, 5):
            await w.until(lambda packs=packs: len(w.hosts) == packs and w.hosts[-1].name)
            await w.pool.pack_started(w.hosts[-1].name, "spot")
            w.hosts[-1].fails(RuntimeError("a worker of the pack died"))
        await w.until(lambda: len(w.hosts) == 5)
        assert not w.pool._packs.broken
        # Packs that die on a machine which stays do.
        for packs in (5, 6):
            await w.until(lambda packs=packs: len(w.hosts) == packs and w.hosts[-1].name)
            await w.pool.pack_started(w.hosts[-1].name, "head")
            await w.pool.pack_failed(w.hosts[-1].name, "the base could not be loaded")
            w.hosts[-1].fails(RuntimeError("a worker of the pack died"))
        assert "the base could not be loaded" in (await w.result("t0", 0)).reason

    world(scenario)


@pytest.mark.parametrize(("limits", "packs"), [((0, 1), 1), ((0, 2), 2), ((2, 3), 2)])
def test_trials_that_come_before_the_start_get_no_pack_beyond_the_most(world, limits, packs):
    """Calls of one caller may overtake each other, and the driver gives the pool its first trials at once."""

    async def scenario(w):
        assert len(w.hosts) == packs

    world(scenario, limits=limits, early=range(4))


def test_a_pack_hears_what_trials_of_others_came_to_row_by_row_and_one_that_comes_later_too(world):
    async def scenario(w):
        await w.attach(*range(4))
        first, second = w.hosts
        await w.ready(first)
        await w.told(first)
        wave = {trial: (4, RowLoss(1.0, (1.0, 2.0))) for trial in ("t0", "t1")}
        for step, one in ((4, wave), (8, {"t0": (8, 1.0)})):  # of the second nobody needs to hear
            result = TrialResult(trial_id="t0", status="running", step=step, eval_loss=1.0, wave=one)
            await w.pool.report(first.name, result)
        assert await w.told(first) == []
        await w.ready(second)
        known = await w.pool.commands(second.name)
        assert [one for one in known if isinstance(one, Peers)] == [Peers({"t0": wave["t0"]})]
        assert [await w.told(one) for one in (first, second)][1].count("peers") == 1
        result = TrialResult(trial_id="t1", status="running", step=4, eval_loss=1.0, wave=wave)
        await w.pool.report(first.name, result)
        assert await w.told(second) == ["peers"]
        assert await w.told(first) == []

    world(scenario)
