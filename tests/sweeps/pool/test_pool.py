"""The pool by itself: which packs it starts, keeps and gives up, and who gets which slot. No Ray: hosts are futures."""

import asyncio

import pytest
import ray

from bitlora import timeouts
from sweeps.onray import cluster
from sweeps.pool.messages import PackCounts, StepProgress, Stop, TrialResult
from sweeps.pool.pool import AHEAD, Pool

SOON = 0.15
"""What stands for the times after which the pool acts, in seconds."""


class Host:
    """Runs until it is killed, or its pack is told to stop."""

    def __init__(self):
        self.run = self
        self.name = ""
        self.received = 0
        self.over = asyncio.get_running_loop().create_future()

    def remote(self, name):
        self.name = name
        return self.over

    def fails(self, error):
        if not self.over.done():
            self.over.set_exception(error)


class World:
    """A pool, its hosts, and what it did to the cluster."""

    def __init__(self, slots, limits, patience):
        self.hosts, self.removed = [], []
        self.pool = Pool("settings", self, slots, limits, patience)

    def remote(self):
        self.hosts.append(Host())
        return self.hosts[-1]

    def running(self):
        return [host for host in self.hosts if not host.over.done()]

    async def attach(self, *numbers):
        for number in numbers:
            await self.pool.attach(f"t{number}", {"number": number})
        await asyncio.sleep(0)

    async def ready(self, host):
        await asyncio.sleep(0)
        await self.pool.pack_started(host.name)
        await self.pool.pack_ready(host.name)

    async def told(self, host):
        """What the pack is told, without waiting for more; as its worker would, it ends when told to stop."""
        pack = self.pool._packs.named.get(host.name)
        commands = []
        if pack is None or len(pack.commands) > host.received - pack.acknowledged:
            commands = await self.pool.commands(host.name, host.received)
        host.received += len(commands)
        if Stop() in commands and not host.over.done():
            host.over.set_result(None)
        return [f"{type(c).__name__} {getattr(c, 'trial_id', '')}".strip().lower() for c in commands]

    async def report(self, host, trial, step=1, status="running"):
        result = TrialResult(trial_id=trial, status=status, step=step, eval_loss=1.0)
        await self.pool.progress(host.name, {trial: StepProgress(step, 1.0)})
        await self.pool.report(host.name, result)

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
def world(monkeypatch):
    """Runs a scenario, a coroutine function of a `World`, on a pool that acts soon; long waits stay as they are."""
    worlds = []
    monkeypatch.setattr(timeouts, "POOL_TICK_S", 0.01)
    for name in ("PACK_IDLE_S", "PACK_SURPLUS_S", "PACK_RETRY_S"):
        monkeypatch.setattr(timeouts, name, SOON)
    monkeypatch.setattr(timeouts, "PACK_LATE_S", 0.0)
    monkeypatch.setattr(ray, "kill", lambda host: host.fails(ray.exceptions.RayActorError()))
    monkeypatch.setattr(cluster, "remove_group", lambda name: worlds[0].removed.append(name))
    monkeypatch.setattr(cluster, "pending_groups", lambda: {host.name for host in worlds[0].hosts})

    def run(scenario, slots=2, limits=(0, 2), patience=60.0):
        async def main():
            worlds.append(World(slots, limits, patience))
            await worlds[0].pool.start()
            await asyncio.sleep(0)
            await scenario(worlds[0])
            for host in worlds[0].running():
                host.fails(ray.exceptions.RayActorError())
            await worlds[0].pool.close()
            assert not worlds[0].pool._packs.named
            assert set(worlds[0].removed) == {host.name for host in worlds[0].hosts}

        asyncio.run(main())

    return run


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
            result = await w.pool.next_result(trial, 0)
            assert (result.status, result.fatal) == ("failed", True)
            assert result.reason == "no pack could be started: the cluster had no room for it within 0 s"
        assert await w.pool.attach("t6", {}) == 0
        assert (await w.pool.next_result("t6", 0)).status == "failed"

    world(scenario, patience=2 * SOON)


def test_a_start_that_fails_twice_ends_the_sweep(world):
    async def scenario(w):
        await w.attach(0)
        w.hosts[0].fails(RuntimeError("first\nand more"))
        await w.until(lambda: len(w.hosts) == 2)
        await w.pool.pack_failed(w.hosts[1].name, "the base could not be loaded: cut")
        w.hosts[1].fails(RuntimeError("a worker of the pack died"))
        reason = (await w.pool.next_result("t0", 0)).reason
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
        result = await w.pool.next_result("t0", 3)
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
        result = await w.pool.next_result("t0", 0)
        assert (result.status, result.fatal) == ("interrupted", True)
        assert result.reason == "could not write: No space left on device"

    world(scenario)


def test_trials_of_an_earlier_run_stay_to_be_gone_on_with_where_no_pack_comes_up(world):
    async def scenario(w):
        await w.pool.attach("t0", {"number": 0}, reported=2)
        for packs in (1, 2):
            await w.until(lambda packs=packs: len(w.hosts) == packs)
            w.hosts[-1].fails(RuntimeError("the disk is full"))
        result = await w.pool.next_result("t0", 0)
        assert (result.status, result.fatal) == ("interrupted", True)

    world(scenario)


def test_results_that_were_read_are_dropped_and_the_last_is_given_again(world):
    async def scenario(w):
        await w.attach(0)
        host = w.hosts[0]
        await w.ready(host)
        for step in range(1, 101):
            await w.report(host, "t0", step, "running" if step < 100 else "completed")
            assert (await w.pool.next_result("t0", step - 1)).step == step
            assert len(w.pool._trials["t0"].results) <= 2
        number = await w.pool.attach("t0", {})  # its actor was restarted
        assert (await w.pool.next_result("t0", number)).step == 100

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
        assert [(await w.pool.next_result("t0", number)).step for number in (0, 1)] == [2, 3]
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
