"""Pool and packs agree on who is where, whatever calls between them are lost, late or made twice.

A real `Pool`, and packs of a real `FirstLink` and `PackLoop` over an engine that computes nothing. Between them is a wire
that drops calls, loses answers, and carries calls out once more when they have been made again; hosts of packs die
meanwhile, whose packs go on talking for a while. No Ray.
"""

import asyncio
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from bitlora import timeouts
from bitlora.config.trial import TrialConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import EvalResult, StepStats
from bitlora.engine.mailbox import Mailbox
from bitlora.files.origin import Origin
from sweeps.onray import cluster
from sweeps.pack import first_link as link
from sweeps.pack.loop import PackLoop
from sweeps.pool.messages import Attach, Detach
from sweeps.pool.pool import Pool

SLOTS, TRIALS = 2, 7
CONFIG = TrialConfig(
    quantizer="none", activations="full", rank=2, alpha=4, dropout=0.0, scaling="lora", learning_rate=1e-3,
    weight_decay=0.0, batch_size=1, micro_batch=None, max_grad_norm=1.0, schedule="constant", warmup=0.0, floor=0.0,
    steps=6, eval_every=2, seed=1,
)  # fmt: skip
TOKENS, LEARN = np.arange(6, dtype=np.int32), np.tile([False, True], 3)
ROWS = Rows(TOKENS, LEARN, np.arange(0, 7, 2), ("a", "b", "c"), np.ones(3, np.int64))


class LostCall:
    """A call that has no answer."""


class Wire:
    """The pool, as a pack sees it from another machine."""

    def __init__(self, world):
        self.world = world

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args, **options: self.send(name, args, options))

    def send(self, name, args, options):
        world, fate = self.world, self.world.random.random()
        call = getattr(world.pool, name)
        if fate < 0.1:  # never arrives
            return LostCall()
        if fate < 0.2:  # arrives, unlike its answer
            asyncio.run_coroutine_threadsafe(call(*args, **options), world.loop)
            return LostCall()
        if fate < 0.3:  # arrives when it may have been made again

            async def late():
                await asyncio.sleep(world.random.uniform(0, 0.02))
                await call(*args, **options)

            asyncio.run_coroutine_threadsafe(late(), world.loop)
            return LostCall()
        return asyncio.run_coroutine_threadsafe(call(*args, **options), world.loop)


def get(call):
    """As `ray.get`."""
    if isinstance(call, LostCall):
        raise ray.exceptions.ActorUnavailableError("for the moment", None)
    return call.result(20)


class BareLink(link.FirstLink):
    """Says what a pack's link says, and writes nothing."""

    def restore(self, trial_id, config, reported):
        return None

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave, left=None, over=""):
        def write():
            if self._call(self._pool.evaluated, trial_id):
                self._report(trial_id, "completed" if metrics.step == config.steps else "running", metrics, wave)

        self._write(write)

    def save(self, trial_id, config, state, progress):
        pass


class Engine:
    """Slots without weights; some trials cannot be trained."""

    def __init__(self, failing):
        self.workers = SimpleNamespace(size=1, first=True, mailbox=Mailbox(), broadcast=lambda value: value)
        self.workers.sum = lambda *_, **__: self.workers.mailbox.deliver(self.workers.mailbox.collect())
        self.slots, self.latent_dtype, self.pass_tokens, self.failing = {}, torch.float32, None, failing
        self.base = SimpleNamespace(vocab_size=90, device=torch.device("cpu"), targets={})

    @property
    def free(self):
        return [slot for slot in range(SLOTS) if slot not in self.slots]

    def attach(self, config, state=None):
        slot = self.free[0]
        self.slots[slot] = SimpleNamespace(step=0, fails_at=4 if config.seed in self.failing else None)
        return slot

    def detach(self, slot):
        del self.slots[slot]

    def step(self, batches, ahead=None):
        failed = {slot: "a layer raised" * (self.slots[slot].step + 1 == self.slots[slot].fails_at) for slot in batches}
        for slot in batches:
            self.slots[slot].step += not failed[slot]
        return {slot: StepStats(2.0, 3, 1.0, True, failed=failed[slot]) for slot in batches}

    def evaluate(self, slots, batch, hits=False):
        return {slot: EvalResult([2.0], [1]) for slot in slots}

    def fetch_latent(self, slot):
        return {}

    def fetch_state(self, slot):
        return None


class RunningPack:
    """A host, and its pack on a thread."""

    def __init__(self, world):
        self.world, self.run = world, self
        self.over = world.loop.create_future()
        self.name, self.loop, self.link, self.applied, self.error = "", None, None, [], None

    def remote(self, name):
        self.name = name
        self.thread = threading.Thread(target=self._train)
        self.thread.start()
        return self.over

    def _train(self):
        try:
            world = self.world
            asyncio.run_coroutine_threadsafe(world.pool.pack_started(self.name), world.loop).result(20)
            storage = SimpleNamespace(
                folder=world.folder, push=lambda *_: None, pull=lambda *_: None, forget=lambda _: None
            )
            dataset = Dataset(ROWS, ROWS, ROWS, None)
            settings = SimpleNamespace(storage=storage, dataset=dataset, checkpoint_every=None, keep="last", rungs=None)
            self.link = BareLink(self.name, Wire(world), settings, "base", Origin(dtype="float32"))
            self.loop = PackLoop(settings, Engine(world.failing), self.link)
            whole = self.loop._apply
            self.loop._apply = lambda command: (self.applied.append(command), whole(command))
            asyncio.run_coroutine_threadsafe(world.pool.pack_ready(self.name), world.loop).result(20)
            self.loop.run()
        except BaseException as error:
            self.error = error
        self.world.loop.call_soon_threadsafe(self.ends)

    def ends(self, error=None):
        if not self.over.done():
            if error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(error)

    def holds(self):
        """The trials that it really has, once nothing is on its way to it."""
        return {*self.loop._trials, *self.loop._queue, *self.link._pulling}


class LossyWorld:
    """A pool and its packs; a driver that stops some trials at random results, loses answers, and kills hosts."""

    def __init__(self, seed, folder):
        self.random = random.Random(seed)
        self.folder, self.packs, self.seen, self.news, self.stopped = folder, [], {}, {}, set()
        self.failing = {number for number in range(TRIALS) if self.random.random() < 0.15}

    def remote(self):
        self.packs.append(RunningPack(self))
        return self.packs[-1]

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.pool = Pool("settings", self, SLOTS, (0, 2))
        await self.pool.start()
        async with asyncio.timeout(30):
            hearing = asyncio.create_task(self.hear())
            await asyncio.gather(*(self.trial(number) for number in range(TRIALS)), self.kills())
            hearing.cancel()
        up = [pack for pack in self.packs if pack.name in self.pool._packs.named]
        await self.agree(up)
        await self.pool.close()
        for pack in self.packs:
            await asyncio.to_thread(pack.thread.join, 20)
            assert not pack.thread.is_alive()
            assert pack.error is None, pack.error

    async def hear(self):
        """As `sweeps.pool.feed.PoolFeed`: one call for all trials, whose answer is lost at times."""
        received = 0
        while True:
            came = await self.pool.results(received)
            if self.random.random() < 0.85:
                received += len(came)
                for result in came:
                    self.news[result.trial_id].put_nowait(result)

    async def trial(self, number):
        """As Tune, by way of the feed, and the recorder."""
        trial_id, config = f"t{number}", CONFIG.model_copy(update={"seed": number}).model_dump(mode="json")
        self.seen[trial_id], self.news[trial_id] = [], asyncio.Queue()
        seen = self.seen[trial_id]
        await self.pool.attach(trial_id, config)
        while not (seen and seen[-1].ended):
            if self.random.random() < 0.15:
                await self.pool.attach(trial_id, config)
            seen.append(await self.news[trial_id].get())
            if self.random.random() < 0.15:
                self.stopped.add(trial_id)
                break
            if self.random.random() < 0.85:
                await self.pool.proceed(trial_id, len(seen))
        for _ in range(self.random.randint(1, 2)):
            await self.pool.detach(trial_id)
        await self.pool.released(trial_id)

    async def kills(self):
        for _ in range(self.random.randint(0, 2)):
            await asyncio.sleep(self.random.uniform(0, 0.1))
            if running := [pack for pack in self.packs if not pack.over.done()]:
                self.random.choice(running).ends(ray.exceptions.RayActorError())

    async def agree(self, packs):
        """When nothing is on its way any more, the packs that are up hold nobody, as the pool thinks."""
        async with asyncio.timeout(10):
            while any(pack.loop is not None and (pack.holds() or pack.loop._engine.slots) for pack in packs):
                await asyncio.sleep(0.005)
        assert not any(pack.trials for pack in self.pool._packs.named.values())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda host: host.ends(ray.exceptions.RayActorError()))
    monkeypatch.setattr(cluster, "remove_group", lambda name: None)
    for name, seconds in {
        "POOL_TICK_S": 0.01, "POOL_POLL_S": 0.01, "REPORT_RETRY_S": 0.001, "VERDICT_S": 0.002, "WORKERS_MEET_S": 0.001,
    }.items():  # fmt: skip
        monkeypatch.setattr(timeouts, name, seconds)


@pytest.mark.parametrize("seed", range(100))
def test_nobody_is_lost_and_nobody_stays(seed, tmp_path, quick):
    world = LossyWorld(seed, tmp_path)
    asyncio.run(world.run())
    for trial_id, results in world.seen.items():
        failing = int(trial_id[1:]) in world.failing
        if trial_id not in world.stopped:
            assert results[-1].status == ("failed" if failing else "completed")
            assert results[-1].step == (3 if failing else 6)
        steps = [result.step for result in results]
        assert steps == sorted(steps)
    for pack in world.packs:
        attached = [command.trial_id for command in pack.applied if isinstance(command, Attach)]
        detached = [command.trial_id for command in pack.applied if isinstance(command, Detach)]
        assert len(attached) == len({*attached})
        assert len(detached) == len({*detached})
