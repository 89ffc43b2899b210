"""The pool by itself."""

import asyncio

import pytest
import ray
from pool_world import SOON, World

from bitlora import timeouts
from sweeps.onray import cluster


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

    def run(scenario, slots=2, limits=(0, 2), patience=60.0, early=()):
        """`early`: trials that come before the pool is told to start."""

        async def main():
            worlds.append(World(slots, limits, patience))
            await worlds[0].attach(*early)
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
