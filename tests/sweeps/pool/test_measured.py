"""What packs measured of memory: one measures while the others wait, all of them know it, one file keeps it."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from bitlora import timeouts
from bitlora.files.storage import Storage
from sweeps.driver.resume import measured
from sweeps.pool.measured import DIED, MeasuredMemory

FOUND = {"base": 1.0, "slot": 2.0, "token": 3.0, "eval_token": 4.0, "row": 5}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(timeouts, "POOL_TICK_S", 0.01)

    def scenario(play, known=None):
        async def main():
            return await play(MeasuredMemory(SimpleNamespace(storage=Storage("here", tmp_path), measured=known or {})))

        return asyncio.run(main())

    return scenario


def test_the_first_measures_and_the_others_wait_for_it(run, tmp_path):
    async def play(memory):
        assert await memory.ask("gpu", "p1") is None
        second = asyncio.create_task(memory.ask("gpu", "p2"))
        other = await memory.ask("cpu", "p2")
        await asyncio.sleep(0.05)
        assert not second.done()
        await memory.keep("gpu", FOUND)
        return other, await second

    assert run(play) == (None, FOUND)
    assert json.loads((tmp_path / "memory.json").read_text()) == {"gpu": FOUND}
    assert measured(tmp_path) == {"gpu": FOUND}


def test_a_sweep_that_goes_on_does_not_measure_again(run):
    assert run(lambda memory: memory.ask("gpu", "p9"), known={"gpu": FOUND}) == FOUND


def test_what_a_pack_died_of_is_not_tried_again(run, tmp_path):
    async def play(memory):
        assert await memory.ask("gpu", "p1") is None
        second = asyncio.create_task(memory.ask("gpu", "p2"))
        await asyncio.sleep(0.03)
        memory.ended("p1", innocent=False)
        return await second

    assert run(play) == DIED
    assert not (tmp_path / "memory.json").exists()


def test_what_was_measured_where_a_machine_went_away_is_measured_by_the_next(run):
    async def play(memory):
        assert await memory.ask("gpu", "p1") is None
        second = asyncio.create_task(memory.ask("gpu", "p2"))
        await asyncio.sleep(0.03)
        memory.ended("p1", innocent=True)
        assert await second is None
        await memory.keep("gpu", FOUND)
        memory.ended("p2", innocent=False)
        return await memory.ask("gpu", "p3")

    assert run(play) == FOUND


def test_why_it_could_not_be_measured_is_known_and_not_kept(run, tmp_path):
    why = {"lack": False, "reason": "no such kernel"}

    async def play(memory):
        await memory.keep("gpu", why)
        await memory.keep("cpu", FOUND)
        return await memory.ask("gpu", "p2")

    assert run(play) == why
    assert json.loads((tmp_path / "memory.json").read_text()) == {"cpu": FOUND}


def test_a_folder_that_cannot_be_written_costs_a_measurement_alone(run, tmp_path):
    (tmp_path / "memory.json").mkdir()

    async def play(memory):
        await memory.keep("gpu", FOUND)
        return await memory.ask("gpu", "p2")

    assert run(play) == FOUND


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_file_that_is_broken_counts_as_none(tmp_path, content):
    (tmp_path / "memory.json").write_text(content)
    assert measured(tmp_path) == {}
