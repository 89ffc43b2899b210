"""What a pack makes of its memory: slots and passes, by what is known or measured, in words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import capped_program
import numpy as np
import pytest
import torch
from adapters import trial

from bitlora.config.sections import BaseConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import Engine
from bitlora.engine.gauge import Budget
from bitlora.engine.memory import LongestRow, MemoryNeeds
from bitlora.forward.inject import load_base
from bitlora.forward.multi_lora import MultiLoraLinear
from sweeps.pack import memory
from sweeps.pack.memory import Values, memory_key, settle_memory

GB = 10**9
ROW = 20
NEEDS = {"base": 1.0 * GB, "slot": 0.1 * GB, "token": 0.001 * GB, "eval_token": 0.0001 * GB, "row": ROW}


def rows(*lengths):
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1], dtype=np.int32) % 90
    learn = np.ones(offsets[-1], bool)
    learn[offsets[:-1]] = False
    return Rows(tokens, learn, offsets, tuple(map(str, lengths)), np.ones(len(lengths), np.int64))


DATASET = Dataset(rows(5, 12), rows(ROW, 3), rows(), None)


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, torch.device("cpu"))


@pytest.fixture
def settle(base, monkeypatch):
    """Settles a pack of at most four slots in so many GB; gives its engine, what it said, and what it kept."""

    def run(budget, known=NEEDS, given=False, of=base, cache="auto"):
        monkeypatch.setattr(memory, "budget", lambda device, sharing: Budget(int(budget * GB), "the moon"))
        engine, kept = Engine(of, 4), []
        widest = trial("ternary", rank=4, batch_size=8)
        longest = LongestRow.of(DATASET)
        lines = settle_memory(engine, widest, longest, given, 1.0, lambda: known, kept.append, cache)
        return engine, lines, kept

    return run


def test_a_pack_has_as_many_slots_and_as_large_passes_as_fit(settle):
    engine, [line], kept = settle(10)
    assert (engine.size, engine.pass_tokens, engine.eval_tokens, kept) == (4, None, 4096, [])
    assert line.endswith("; in 10.00 GB, limited by the moon, 4 slots and whole steps of 640 tokens")
    engine, [line], _ = settle(1 + 0.4 + 0.20001)
    assert (engine.size, engine.pass_tokens, engine.eval_tokens) == (4, 200, 2000)
    assert "passes of 200 tokens, not whole steps of 640" in line
    engine, [line], _ = settle(1 + 0.3005)
    assert engine.size == 2


def test_slots_that_a_user_gave_stay_and_it_is_said_where_they_do_not_fit(settle):
    engine, lines, _ = settle(1 + 0.3005, given=True)
    assert (engine.size, engine.pass_tokens) == (4, ROW)
    assert "4 slots with a row each need 1.48 GB, and 1.30 GB may be taken (the moon)" in lines[1]


def test_what_is_not_known_is_measured_and_kept(settle):
    engine, [line], kept = settle(10, known=None)
    assert (engine.size, engine.pass_tokens) == (4, None)
    assert "(measured in " in line
    [found] = json.loads(json.dumps(kept))
    again, [line], kept = settle(10, known=found)
    assert (again.size, again.pass_tokens, kept) == (4, None, [])
    assert "(as measured before)" in line


def test_where_not_even_a_row_fits_one_slot_takes_one_at_a_time(settle, monkeypatch):
    def lacks(self, x):
        raise MemoryError("no")

    monkeypatch.setattr(MultiLoraLinear, "forward", lacks)
    engine, [line], kept = settle(0.5, known=None)
    assert (engine.size, engine.pass_tokens) == (1, ROW)
    assert "not even one row of one slot fits into 0.50 GB of the moon (MemoryError: no)" in line
    assert kept == [{"lack": True, "reason": "MemoryError: no"}]
    engine, [line], _ = settle(0.5, known=kept[0])
    assert engine.size == 1


def test_a_row_that_cannot_be_computed_is_left_to_the_trials_that_meet_it(settle, monkeypatch):
    def cannot(self, x):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(MultiLoraLinear, "forward", cannot)
    engine, [line], _ = settle(10, known=None)
    assert (engine.size, engine.pass_tokens) == (4, None)
    assert "not measured" in line
    assert "no such kernel" in line


@pytest.fixture(scope="module")
def nf4_base(tiny_base):
    return load_base(BaseConfig(model=str(tiny_base), quantization="nf4"), torch.float32, torch.device("cpu"))


def test_values_of_nf4_are_kept_where_somebody_wants_them(settle, nf4_base):
    def kept(cache, budget, of=nf4_base):
        engine, [line], _ = settle(budget, of=of, cache=cache)
        return of.keep_values(False), engine.size, line

    for cache in ("auto", True):
        was, size, line = kept(cache, 10)
        assert (was, size) == (True, 4)
        assert line.endswith("whole steps of 640 tokens; the codes' values kept in float32, 0.00 GB")
    was, size, line = kept(False, 10)
    assert (was, size) == (False, 4)
    assert line.endswith("whole steps of 640 tokens")
    was, size, line = kept("auto", 1.5)  # passes are cut as it is
    assert (was, size) == (False, 4)
    assert line.endswith("; no room for the codes' values in float32, 0.00 GB")


def test_values_that_a_user_wants_kept_cost_slots_and_those_that_nobody_asked_for_cost_nothing():
    """At 1 GB for the base, 0.1 for a slot and 1 MB for a token, steps of 160 tokens a slot."""
    whole = 1 + 4 * 0.1 + 640 * 0.001
    auto, wanted, never = (Values.of(cache, 10**8, torch.bfloat16) for cache in ("auto", True, False))

    def at(values, budget):
        found, kept = values.fit(MemoryNeeds(**NEEDS), budget * GB, 4, 8, given=False)
        return found.slots, found.pass_tokens, kept

    assert at(auto, whole + 0.11) == at(wanted, whole + 0.11) == (4, None, True)
    assert at(never, whole + 0.11) == (4, None, False)
    assert at(auto, whole + 0.09) == (4, None, False)
    assert at(wanted, whole + 0.0905) == (4, 630, True)
    assert at(auto, whole - 0.0995) == (4, 540, False)
    assert auto.describe(False) == "no room for the codes' values in bfloat16, 0.10 GB"
    assert never.describe(False) == ""
    nothing = Values.of("auto", 0, torch.bfloat16)  # of a base that is not quantized
    assert (at(nothing, 10), nothing.describe(False)) == ((4, None, False), "")


def test_a_measurement_is_of_all_that_decides_it():
    of = ("a base", trial("ternary"), LongestRow(20, 10), 1, False)
    others = [
        ("another", *of[1:]),
        (of[0], trial("ternary", rank=5), *of[2:]),
        (*of[:2], LongestRow(20, 11), *of[3:]),
        (*of[:3], 2, False),
        (*of[:4], True),
    ]
    assert memory_key(*of).startswith("a base; 1 workers; rank 4, rows of 20 tokens; ")
    assert len({memory_key(*each) for each in (of, *others)}) == 6


# ---- for real


def capped(base, out, megabytes, planned):
    helpers = Path(capped_program.__file__).parents[1]
    command = [sys.executable, capped_program.__file__, str(base), str(out), str(megabytes), planned]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(helpers), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(command, env={**env, "OMP_NUM_THREADS": "1"}, check=True, timeout=200)
    return json.loads(out.read_text())


def test_a_cap_that_a_batch_of_32_breaks_and_one_of_4_does_not(float64_base, tmp_path):
    """RLIMIT_AS: rows are cut, both slots stay, nothing raises, and the numbers are those without a cap."""
    free = capped(float64_base, tmp_path / "free", 0, "planned")
    assert free["pass_tokens"] == [None, None]
    surprised = capped(float64_base, tmp_path / "surprised", 80, "not planned")
    assert surprised["pass_tokens"][0] is None
    assert surprised["pass_tokens"][1]  # it was met, by a step that raised
    found = capped(float64_base, tmp_path / "capped", 80, "planned")
    assert found["slots"] == 2
    assert found["pass_tokens"][0] == found["pass_tokens"][1]  # what was planned was right: no step raised
    assert 2 * 250 <= found["pass_tokens"][0] < 36 * 250
    assert "this process's address space (ulimit -v), 2 slots and passes of" in found["lines"][0]
    for other in (surprised, found):
        assert not any(other["failed"])
        for mine, true in zip(other["losses"] + other["scores"], free["losses"] + free["scores"], strict=True):
            assert mine == pytest.approx(true, rel=1e-9, abs=0)
