"""Many workers come to one worker's numbers, and a trial that goes on from its checkpoint to those it would have had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worker_program as program
from safetensors import safe_open

from bitlora.config.sections import BaseConfig
from bitlora.engine.checkpoint import TrialProgress, load_checkpoint, save_checkpoint
from bitlora.engine.engine import Engine
from bitlora.engine.workers import Workers
from bitlora.forward.inject import load_base

PROGRAM = Path(program.__file__)


def run(size, base, folder):
    """What each of `size` workers saw."""
    outs = [folder / f"{size}-{rank}.json" for rank in range(size)]
    meeting = folder / f"meeting-{size}"
    commands = [
        [sys.executable, PROGRAM, str(rank), str(size), str(meeting), str(base), str(out)]
        for rank, out in enumerate(outs)
    ]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait(timeout=120) == 0
    return [json.loads(out.read_text()) for out in outs]


@pytest.fixture(scope="module")
def alone(tiny_base, tmp_path_factory):
    return run(1, tiny_base, tmp_path_factory.mktemp("alone"))[0]


@pytest.mark.parametrize("size", [2, 3])
def test_many_workers_come_to_the_numbers_of_one(size, alone, tiny_base, tmp_path):
    """Dropout, micro-batches, ragged rows, batches smaller than the number of workers, clipping, decay, a schedule."""
    found = run(size, tiny_base, tmp_path)
    for worker in found:
        for kind in ("steps", "evals", "weights"):
            torch.testing.assert_close(
                flat(worker[kind]),
                flat(alone[kind]),
                rtol=1e-9,
                atol=1e-12,
                msg=lambda text, kind=kind: f"{kind}: {text}",
            )
        # The first's message reached all with the sum of the same step; the others' reached nobody.
        assert worker["received"] == [f"from 0 at {step}" * (step % 2) for step in range(program.STEPS)]
        # All workers hold the same weights to the last bit: they take the same step on the same sums.
        assert worker["weights"] == found[0]["weights"]


def numbers(value):
    return [x for part in value for x in numbers(part)] if isinstance(value, list) else [value]


def flat(value):
    return torch.tensor(numbers(value), dtype=torch.float64)


def test_every_row_is_taken_once():
    for size in (1, 2, 3, 8):
        for rows in (0, 1, 2, 7, 8, 50):
            for turn in (0, 1, 5):
                shares = sorted(Workers(rank, size).share(rows, turn) for rank in range(size))
                assert [row for first, last in shares for row in range(first, last)] == list(range(rows))
                assert max(last - first for first, last in shares) - min(last - first for first, last in shares) <= 1


@pytest.fixture
def engine(tiny_base):
    return Engine(
        load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, torch.device("cpu")), 3
    )


@pytest.mark.parametrize("config", program.TRIALS, ids=lambda config: config.quantizer)
def test_a_trial_goes_on_from_its_checkpoint_as_if_nothing_had_been(config, engine, tmp_path):
    def train(slot, first, last):
        return [engine.step({slot: program.batch(step, config.batch_size)})[slot].loss for step in range(first, last)]

    slot, beside = engine.attach(config), engine.attach(program.TRIALS[0])
    before = train(slot, 0, 3)
    progress = TrialProgress(step=3, tokens=7, seconds=1.5, losses=before, first_loss=before[0])
    save_checkpoint(tmp_path, engine.state(slot), progress, config, "a base")
    after = train(slot, 3, 6)
    weights = engine.state(slot).latent
    for number in (slot, beside):
        engine.detach(number)

    state, found, _ = load_checkpoint(tmp_path, config, "a base")
    assert found == progress
    # In a pack of other ranks sums have other zeros among their terms, and round elsewhere.
    slot = engine.attach(config, state=state)
    assert train(slot, 3, 6) == pytest.approx(after, rel=1e-5)
    engine.detach(slot)
    engine.attach(program.TRIALS[0])  # the same neighbour, and another slot
    slot = engine.attach(config, state=state)
    assert slot == 1
    assert train(slot, 3, 6) == after
    assert torch.equal(engine.state(slot).latent, weights)


def test_a_checkpoint_that_does_not_fit_is_refused_and_holds_no_pickle(engine, tmp_path):
    config, other = program.TRIALS[:2]
    assert load_checkpoint(tmp_path, config, "a base") is None
    slot = engine.attach(config)
    engine.step({slot: program.batch(0, 2)})
    progress = TrialProgress(step=1, tokens=1, seconds=0.0, losses=[1.0], first_loss=1.0)
    save_checkpoint(tmp_path, engine.state(slot), progress, config, "a base")
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"latent", "exp_avg", "exp_avg_sq"}
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: the checkpoint of another trial"):
        load_checkpoint(tmp_path, other, "a base")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: the checkpoint of another base"):
        load_checkpoint(tmp_path, config, "another base")
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: not a checkpoint"):
        load_checkpoint(tmp_path, config, "a base")
    with pytest.raises(ValueError, match="a state of"):
        engine.attach(other, state=engine.state(slot))


def test_agreeing_costs_at_most_a_fiftieth_of_a_short_step(tmp_path):
    """The header rides in the sum of the gradients: 2 % of a step of 50 ms is 1 ms."""
    program = PROGRAM.with_name("agreement_program.py")
    both = [
        subprocess.Popen([sys.executable, program, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    found = json.loads(outputs[0])
    print(f"sum of the gradients {found['silent']:.2f} ms, with agreement {found['agreeing']:.2f} ms")
    assert found["agreeing"] - found["silent"] <= 1.0


def test_sums_of_one_size_are_made_in_one_buffer(monkeypatch):
    """Whatever other sums lie between them: of messages alone, of scores in float64, of fewer slots."""
    summed = []

    def all_reduce(flat):  # as if the other worker had the same
        summed.append(flat)
        flat.mul_(2)

    monkeypatch.setattr("bitlora.engine.workers.dist.all_reduce", all_reduce)
    workers = Workers(1, 2)
    for turn in range(3):
        gradients, loss = torch.full((4, 5), 1.0 + turn), torch.full((2,), 3.0, dtype=torch.float64)
        assert workers.sum([loss, gradients]) == 0
        assert gradients.tolist() == [[2.0 + 2 * turn] * 5] * 4
        assert loss.tolist() == [6.0, 6.0]
        assert workers.sum() == 0
        scores = torch.tensor([0.1, 0.2], dtype=torch.float64)
        workers.sum([scores], torch.float64)
        assert scores.tolist() == [0.2, 0.4]
        assert workers.sum([gradients[:2]], failed=True) == 2
    by_dtype = {
        dtype: {flat.data_ptr() for flat in summed if flat.dtype == dtype} for dtype in (torch.float32, torch.float64)
    }
    assert [len(places) for places in by_dtype.values()] == [1, 1]
