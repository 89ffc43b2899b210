"""A pool by itself, without Ray: hosts of packs are futures."""

import asyncio

from sweeps.pool.messages import StepProgress, Stop, TrialResult
from sweeps.pool.pool import Pool

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
        self.hosts, self.removed, self.results = [], [], []
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

    async def result(self, trial, number):
        """The trial's result of that number, as soon as there is one; the driver reads all."""
        while len(found := [one for one in self.results if one.trial_id == trial]) <= number:
            self.results += await self.pool.results(len(self.results))
        return found[number]

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)
