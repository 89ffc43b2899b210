"""Trials that leave their slot until it is said how they go on, at the pool by itself."""

from sweeps.pool.messages import Attach, TrialResult
from sweeps.search.cloning.place import Source


async def leave(w, host, trial, step, **more):
    result = TrialResult(trial_id=trial, status="running", step=step, eval_loss=1.0, left=True, **more)
    await w.pool.report(host.name, result)


async def attach(w, *trials, until=8, reported=None):
    for trial in trials:
        await w.pool.attach(trial, {"of": trial}, reported, None, until)


def sent(w, host):
    """What the pack was told to take in, whole."""
    return [command for command in w.pool._packs.named[host.name].commands if isinstance(command, Attach)]


def test_who_has_left_takes_no_slot_and_goes_on_as_it_is_said(world):
    async def scenario(w):
        await attach(w, "t0", "t1", "t2")
        [host] = w.hosts
        await w.ready(host)
        assert await w.told(host) == ["attach t0", "attach t1", "attach t2"]
        for trial in ("t0", "t1", "t2"):
            await leave(w, host, trial, 8)
        assert (await w.result("t2", 0)).left
        assert w.pool._packs.named[host.name].trials == set()
        assert await w.told(host) == []
        for _ in range(2):  # twice is as once
            await w.pool.go_on("t1", {"of": "t0"}, Source("t0", 8), 16)
        await w.pool.proceed("t1", 1)  # Tune's word, which says nothing here
        *_, last = sent(w, host)
        assert last == Attach("t1", {"of": "t0"}, 8, True, Source("t0", 8), 16)
        await w.pool.go_on("t0", {"of": "t0"}, Source("t0", 16), 16)  # of a rung that it has not come to
        assert len(sent(w, host)) == 4

    world(scenario, limits=(0, 1), slots=1)


def test_who_goes_on_from_an_earlier_run_waits_at_once_where_it_had_left(world):
    async def scenario(w):
        await attach(w, "t0", reported=8)
        await attach(w, "t1", reported=4)
        [host] = w.hosts
        await w.ready(host)
        assert await w.told(host) == ["attach t1"]
        await w.pool.go_on("t0", {}, Source("t1", 8), None)
        assert await w.told(host) == ["attach t0"]

    world(scenario, limits=(0, 1))


def test_who_goes_on_in_a_pack_that_is_lost_goes_on_from_the_same_place_in_the_next(world):
    async def scenario(w):
        await attach(w, "t0")
        await w.ready(w.hosts[0])
        await leave(w, w.hosts[0], "t0", 8)
        await w.pool.go_on("t0", {"of": "t1"}, Source("t1", 8), 16)
        w.hosts[0].fails(RuntimeError("gone"))
        await w.until(lambda: len(w.hosts) == 2)
        await w.ready(w.hosts[1])
        await w.until(lambda: sent(w, w.hosts[1]))
        assert sent(w, w.hosts[1])[0].source == Source("t1", 8)

    world(scenario, limits=(0, 1))


def test_who_waits_ends_with_the_sweep_and_goes_on_no_more(world):
    async def scenario(w):
        await attach(w, "t0")
        await w.ready(w.hosts[0])
        await leave(w, w.hosts[0], "t0", 8, reason="it diverged")
        await w.pool.interrupt()
        assert (await w.result("t0", 1)).status == "interrupted"
        await w.pool.released("t0")
        await w.pool.go_on("t0", {}, Source("t0", 8), None)
        assert [command.until for command in sent(w, w.hosts[0])] == [8]

    world(scenario, limits=(0, 1))
