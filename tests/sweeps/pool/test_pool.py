"""The pool by itself: which packs it starts, keeps and gives up, and who gets which slot. No Ray: hosts are futures."""

import asyncio

import pytest
import ray
from pool_world import SOON

from bitlora import timeouts
from sweeps.pool.messages import PackCounts, StepProgress
from sweeps.pool.packs import Packs
from sweeps.pool.pool import AHEAD


def test_as_many_packs_as_the_waiting_trials_fill_and_never_more(world):
    async def scenario(w):
        assert len(w.hosts) == 1  # it starts before the first trial is there
        started = []
        for number in range(9):
            await w.attach(number)
            started.append(len(w.hosts))
        assert started == [1, 1, 2, 2, 3, 3, 3, 3, 3]
        assert (await w.pool.status()).packs == PackCounts(loading=3)
        await w.until(lambda: len(w.pool._packs._without_room) == 3)
        assert (await w.pool.status()).packs == PackCounts(waiting=3)

    world(scenario, limits=(0, 3))


def test_trials_go_to_free_slots_and_are_not_taken_from_a_pack_that_is_coming(world):
    async def scenario(w):
        await w.attach(*range(6))
        first, second = w.hosts
        await w.ready(first)
        assert await w.told(first) == ["attach t0", "attach t1", "attach t2", "attach t3"][: 2 + AHEAD]
        assert (await w.pool.status()).waiting == ("t4", "t5")
        await w.report(first, "t0", status="completed")
        assert await w.told(first) == []  # t4 and t5 are for the second, which has two slots
        await w.ready(second)
        assert await w.told(second) == ["attach t4", "attach t5"]

    world(scenario)


def test_a_pack_that_waits_for_a_machine_is_given_up_when_others_took_its_trials(world):
    async def scenario(w):
        await w.attach(0, 1, 2)
        first, second = w.hosts
        await w.ready(first)
        await w.pool.detach("t0")
        assert await w.told(first) == ["attach t0", "attach t1", "detach t0", "attach t2"]
        await w.until(lambda: second.name in w.removed)
        assert w.running() == [first]
        await w.attach(3, 4, 5)
        assert len(w.running()) == 2  # and another is asked for when trials wait again

    world(scenario)


def test_the_first_pack_waits_for_the_first_trial(world):
    async def scenario(w):
        await asyncio.sleep(3 * SOON)
        assert len(w.running()) == 1

    world(scenario)


@pytest.mark.parametrize(("fewest", "left"), [(0, 0), (1, 1)])
def test_an_idle_pack_ends_but_for_the_fewest_that_are_kept(world, fewest, left):
    async def scenario(w):
        await w.attach(0, 1, 2)
        for host in w.hosts:
            await w.ready(host)
        for host in w.hosts:
            for trial in await w.told(host):
                await w.report(host, trial.split()[1], status="completed")
        await asyncio.sleep(3 * SOON)
        stopped = [host for host in w.hosts if "stop" in await w.told(host)]
        assert len(stopped) == 2 - left
        await w.until(lambda: {host.name for host in stopped} == set(w.removed))

    world(scenario, limits=(fewest, 2))


def test_a_pack_may_take_as_long_as_it_likes_to_begin_a_trial(world, monkeypatch):
    """The decomposition of a large base (`init: pissa`) takes minutes, in which no step is taken: nothing counts them."""
    looks = []
    look = Packs._look

    async def counted(packs):
        await look(packs)
        looks.append(packs)

    monkeypatch.setattr(Packs, "_look", counted)

    async def scenario(w):
        await w.attach(0)
        (host,) = w.hosts
        await w.ready(host)
        assert await w.told(host) == ["attach t0"]
        w.pool._packs.named[host.name].since -= 10**7
        seen = len(looks)
        await w.until(lambda: len(looks) > seen + 3)
        assert w.running() == [host]
        assert await w.told(host) == []
        assert (await w.pool.status()).waiting == ()
        await w.report(host, "t0", status="completed")

    world(scenario)


def test_a_lost_pack_is_replaced_while_it_is_one_of_the_fewest(world):
    async def scenario(w):
        assert len(w.hosts) == 2
        for host in list(w.hosts):
            await w.ready(host)
        w.hosts[0].fails(RuntimeError("a worker of the pack died"))
        await w.until(lambda: len(w.hosts) == 3)

    world(scenario, limits=(2, 2))


def test_no_room_ends_the_sweep_only_while_no_pack_is_up(world):
    async def scenario(w):
        await w.attach(*range(6))
        first, second = w.hosts
        await w.ready(first)
        # The second waits in vain, again and again, and two trials go on waiting for a slot.
        await w.until(lambda: second.name in w.removed)
        await w.until(lambda: len(w.hosts) == 3)
        assert (await w.pool.status()).waiting == ("t4", "t5")
        w.hosts[2].fails(ray.exceptions.RayActorError())
        first.fails(RuntimeError("a worker of the pack died"))
        await w.until(lambda: w.pool._packs.broken)
        for trial in ("t0", "t2", "t5"):
            result = await w.result(trial, 0)
            assert (result.status, result.fatal) == ("failed", True)
            assert result.reason == "no pack could be started: the cluster had no room for it within 0 s"
        await w.pool.attach("t6", {})
        assert (await w.result("t6", 0)).status == "failed"

    world(scenario, patience=2 * SOON)


def test_a_start_that_fails_twice_ends_the_sweep(world):
    async def scenario(w):
        await w.attach(0)
        w.hosts[0].fails(RuntimeError("first\nand more"))
        await w.until(lambda: len(w.hosts) == 2 and w.hosts[1].name)
        await w.pool.pack_failed(w.hosts[1].name, "the base could not be loaded: cut")
        w.hosts[1].fails(RuntimeError("a worker of the pack died"))
        reason = (await w.result("t0", 0)).reason
        assert reason == "no pack could be started: the base could not be loaded: cut"

    world(scenario)


def test_a_trial_may_lose_packs_as_long_as_it_gets_on(world):
    async def scenario(w):
        await w.attach(0)
        for step in (1, 2, 3):
            host = w.hosts[-1]
            await w.ready(host)
            assert await w.told(host) == ["attach t0"]
            await w.report(host, "t0", step)
            host.fails(RuntimeError("a worker of the pack died"))
            await w.until(lambda host=host: w.hosts[-1] is not host)
        # It took a step in this one again, and reported nothing in between.
        host = w.hosts[-1]
        await w.ready(host)
        await w.pool.progress(host.name, {"t0": StepProgress(4, 1.0)})
        host.fails(RuntimeError("a worker of the pack died"))
        result = await w.result("t0", 3)
        assert (result.status, result.reason) == ("failed", "its pack was lost: a worker of the pack died")
        assert not result.fatal

    world(scenario)


def test_a_folder_that_cannot_be_written_is_no_trials_doing(world):
    """However the pack dies of it, and whatever it says after: its trials go on when there is room again."""

    async def scenario(w):
        await w.attach(0)
        for packs in (2, 3):
            host = w.hosts[-1]
            await w.ready(host)
            assert await w.told(host) == ["attach t0"]
            await w.pool.pack_failed(host.name, "could not write: No space left on device", unwritable=True)
            await w.pool.pack_failed(host.name, "a step failed for it")
            host.fails(RuntimeError("a worker of the pack died"))
            if packs == 2:
                await w.until(lambda: len(w.hosts) == 2)
        result = await w.result("t0", 0)
        assert (result.status, result.fatal) == ("interrupted", True)
        assert result.reason == "could not write: No space left on device"

    world(scenario)


def test_trials_of_an_earlier_run_stay_to_be_gone_on_with_where_no_pack_comes_up(world):
    async def scenario(w):
        await w.pool.attach("t0", {"number": 0}, reported=2)
        for packs in (1, 2):
            await w.until(lambda packs=packs: len(w.hosts) == packs)
            w.hosts[-1].fails(RuntimeError("the disk is full"))
        result = await w.result("t0", 0)
        assert (result.status, result.fatal) == ("interrupted", True)

    world(scenario)


def test_results_that_have_arrived_are_dropped_and_others_given_again(world):
    async def scenario(w):
        await w.attach(0, 1)
        host = w.hosts[0]
        await w.ready(host)
        for step in range(1, 101):
            for trial in ("t0", "t1"):
                await w.report(host, trial, step, "running" if step < 100 else "completed")
            came = await w.pool.results(2 * step - 2)
            assert [(one.trial_id, one.step) for one in came] == [("t0", step), ("t1", step)]
            assert await w.pool.results(2 * step - 2) == came  # the answer did not arrive
        assert [one.trial_id for one in await w.pool.results(199)] == ["t1"]
        assert len(w.pool._results) == 1
        await w.pool.attach("t0", {})  # said again, late: it has ended all the same
        assert (await w.pool.status()).waiting == ()

    world(scenario)


def test_the_pool_is_asked_for_results_only_when_it_has_some(world, monkeypatch):
    monkeypatch.setattr(timeouts, "POOL_POLL_S", SOON)

    async def scenario(w):
        await w.attach(0)
        assert await w.pool.results(0) == []
        monkeypatch.setattr(timeouts, "POOL_POLL_S", 5.0)
        host = w.hosts[0]
        await w.ready(host)
        waiting = asyncio.get_running_loop().create_task(w.pool.results(0))
        await asyncio.sleep(SOON)
        assert not waiting.done()
        await w.report(host, "t0")
        assert [one.step for one in await waiting] == [1]

    world(scenario)


def test_a_pack_hears_that_a_trial_proceeds_after_its_last_result_alone(world):
    async def scenario(w):
        await w.attach(0)
        host = w.hosts[0]
        await w.ready(host)
        assert await w.told(host) == ["attach t0"]
        await w.report(host, "t0", 1)
        await w.report(host, "t0", 2)
        await w.pool.proceed("t0", 1)  # late: the next one is there already
        assert await w.told(host) == []
        await w.pool.proceed("t0", 2)
        assert await w.told(host) == ["continue t0"]
        await w.report(host, "t0", 3, "completed")
        await w.pool.proceed("t0", 3)
        await w.pool.proceed("nobody", 1)
        assert await w.told(host) == []

    world(scenario)


def test_calls_of_a_pack_may_overtake_each_other(world):
    async def scenario(w):
        await w.attach(0)
        host = w.hosts[0]
        await w.ready(host)
        await w.report(host, "t0", 2)
        await w.report(host, "t0", 1)
        await w.pool.slot_released(host.name, "t0")
        await w.report(host, "t0", 3, "completed")
        assert [(await w.result("t0", number)).step for number in (0, 1)] == [2, 3]
        async with asyncio.timeout(1):
            await w.pool.released("t0")

    world(scenario)


def test_a_command_whose_answer_is_lost_is_given_again(world):
    async def scenario(w):
        await w.attach(0, 1)
        host = w.hosts[0]
        await w.ready(host)
        first = await w.pool.commands(host.name, 0)
        assert await w.pool.commands(host.name, 0) == first  # the answer did not arrive
        await w.pool.detach("t0")
        assert [type(c).__name__ for c in await w.pool.commands(host.name, 1)] == ["Attach", "Detach"]
        host.received = 1
        assert await w.told(host) == ["attach t1", "detach t0"]
        assert await w.told(host) == []

    world(scenario)


def test_a_look_that_fails_does_not_end_the_watch(world, monkeypatch):
    async def scenario(w):
        monkeypatch.setattr(w.pool._packs, "_tick", lambda: 1 / 0)
        await asyncio.sleep(2 * SOON)
        monkeypatch.setattr(w.pool._packs, "_tick", lambda: None)
        await w.attach(0)
        await w.ready(w.hosts[0])
        await w.report(w.hosts[0], "t0", status="completed")
        await w.until(lambda: w.pool._packs.named == {} or "stop" in str(w.pool._packs.named))

    world(scenario)


def test_a_pack_gets_as_many_trials_as_it_says_it_has_slots_for(world):
    async def scenario(world):
        await world.attach(*range(8))
        first, second = world.hosts[0], None
        await asyncio.sleep(0)
        await world.pool.pack_started(first.name)
        await world.pool.pack_ready(first.name, 1)
        assert await world.told(first) == ["attach t0", "attach t1", "attach t2"][: 1 + AHEAD]
        second = world.hosts[1]
        await world.ready(second)  # it says nothing: as many as a pack may have
        assert len(await world.told(second)) == 3 + AHEAD

    world(scenario, slots=3)


def test_one_pack_scores_the_base_and_where_it_goes_innocently_another(world):
    async def scenario(w):
        await w.attach(*range(6))
        first, second, third = w.hosts
        for host in w.hosts:
            await w.ready(host)
        assert [await w.pool.scores_base(host.name) for host in (second, first, second, third)] == [1, 0, 1, 0]
        second.fails(ray.exceptions.RayActorError())  # its host died: not of the base
        await w.until(lambda: second.name in w.removed and second.name not in w.pool._packs.named)
        assert await w.pool.scores_base(third.name)
        third.fails(RuntimeError("killed: out of memory"))  # nobody is to die of it again
        await w.until(lambda: third.name in w.removed and third.name not in w.pool._packs.named)
        assert not await w.pool.scores_base(first.name)

    world(scenario, limits=(0, 3))
