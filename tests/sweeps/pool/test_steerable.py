"""The pool as a person steers it: who is stopped where, and who hears in time that it has more steps. No Ray."""

import asyncio

CONFIG = {"steps": 8, "eval_every": 4}
MORE = {**CONFIG, "steps": 16}


async def begun(w, *trials, **config):
    """A pack with these trials in it; gives its host."""
    for trial in trials:
        await w.pool.attach(trial, {**CONFIG, **config})
    await asyncio.sleep(0)
    host = w.hosts[0]
    await w.ready(host)
    await w.told(host)
    return host


def test_a_trial_ends_at_its_last_evaluation(world):
    async def scenario(w):
        host = await begun(w, "t0", "t1")
        await w.report(host, "t0", step=4)
        assert await w.pool.stop("t0", "stopped by anna@box") == ("stopped", 4)
        found = await w.result("t0", 1)
        assert (found.status, found.reason, found.step) == ("pruned", "stopped by anna@box at step 4", 4)
        assert await w.told(host) == ["detach t0"]
        await w.report(host, "t0", step=8)  # its pack was faster than the word: nobody hears of it
        assert len([one for one in w.results if one.trial_id == "t0"]) == 2
        assert await w.pool.stop("t0", "again") == ("ended", 4)
        assert await w.pool.stop("t7", "nobody") == ("unknown", 0)

    world(scenario)


def test_one_that_was_never_evaluated_ends_at_its_first_evaluation(world):
    async def scenario(w):
        host = await begun(w, "t0")
        assert await w.pool.stop("t0", "stopped by anna@box") == ("later", 4)
        await w.report(host, "t0", step=4)
        assert (await w.result("t0", 0)).status == "running"
        found = await w.result("t0", 1)
        assert (found.status, found.reason) == ("pruned", "stopped by anna@box at step 4")
        assert await w.told(host) == ["detach t0"]

    world(scenario)


def test_a_clone_with_anothers_weights_has_an_evaluation_before_its_first_step(world):
    async def scenario(w):
        host = await begun(w, "t0", warm_start="t9@4")
        await w.report(host, "t0", step=0)
        assert (await w.result("t0", 0)).step == 0
        await w.report(host, "t0", step=0)  # said twice, heard once
        assert await w.pool.stop("t0", "stopped") == ("stopped", 0)
        assert len([one for one in w.results if one.trial_id == "t0"]) == 1

    world(scenario)


def test_a_trial_hears_of_more_steps_in_its_pack(world):
    async def scenario(w):
        host = await begun(w, "t0")
        asked = asyncio.ensure_future(w.pool.extend("t0", MORE))
        await asyncio.sleep(0)
        assert await w.told(host) == ["extend t0"]
        assert not asked.done()
        await w.pool.extended(host.name, "t0")
        assert await asked

    world(scenario)


def test_one_that_has_taken_its_last_step_does_not_hear_of_it(world):
    async def scenario(w):
        host = await begun(w, "t0")
        asked = asyncio.ensure_future(w.pool.extend("t0", MORE))
        await asyncio.sleep(0)
        await w.report(host, "t0", step=8, status="completed")
        assert not await asked
        assert not await w.pool.extend("t0", MORE)

    world(scenario)


def test_one_whose_pack_dies_meanwhile_goes_on_with_them(world):
    async def scenario(w):
        host = await begun(w, "t0")
        await w.report(host, "t0", step=4)
        asked = asyncio.ensure_future(w.pool.extend("t0", MORE))
        await asyncio.sleep(0)
        host.fails(RuntimeError("its machine is gone"))
        assert await asked
        await w.until(lambda: len(w.running()) == 1)
        await w.ready(w.hosts[-1])
        pack = w.pool._packs.named[w.hosts[-1].name]
        assert [command.config for command in pack.commands] == [MORE]

    world(scenario)
