"""Two workers of a pack, a scheduler that stops trials at random moments, trials that confirm: no command is lost.

The protocol alone, without Ray: two `PackLoop`s on two threads, an engine that computes nothing but meets the other worker
where the real one does (once a step, once or twice an evaluation), and a link that plays pool and scheduler.
"""

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlora.config.trial import TrialConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import EvalResult, StepStats
from bitlora.engine.mailbox import Mailbox
from sweeps.pack.link import Link
from sweeps.pack.loop import PackLoop, Settled
from sweeps.pool.messages import Attach, Continue, Detach, Stop

SLOTS = 3
CONFIG = TrialConfig(
    quantizer="none", activations="full", rank=2, alpha=4, dropout=0.0, scaling="lora", learning_rate=1e-3,
    weight_decay=0.0, batch_size=1, micro_batch=None, max_grad_norm=1.0, schedule="constant", warmup=0.0, floor=0.0,
    steps=6, eval_every=2, seed=1,
)  # fmt: skip


class Meeting:
    """Where two workers meet."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.held = [None, None]

    def exchange(self, rank, value):
        self.held[rank] = value
        self.barrier.wait()
        both = list(self.held)
        self.barrier.wait()
        return both


class Workers:
    """One of two, as `bitlora.engine.workers.Workers`; it sums nothing but messages and failures."""

    def __init__(self, rank, meeting):
        self.rank, self.size, self.first = rank, 2, rank == 0
        self.meeting, self.mailbox = meeting, Mailbox()

    def sum(self, parts=(), dtype=None, failed=False):
        collected = self.mailbox.collect()
        both = self.meeting.exchange(self.rank, (collected if self.first else b"", failed))
        self.mailbox.deliver(both[0][0])
        return sum(failed for _, failed in both)

    def broadcast(self, value):
        return self.meeting.exchange(self.rank, value)[0]


class Engine:
    """Slots without weights."""

    def __init__(self, workers):
        self.workers, self.slots, self.latent_dtype, self.pass_tokens = workers, {}, torch.float32, None
        self.base = SimpleNamespace(vocab_size=90, device=torch.device("cpu"), targets={})

    @property
    def free(self):
        return [slot for slot in range(SLOTS) if slot not in self.slots]

    def attach(self, config, state=None):
        slot = self.free[0]
        self.slots[slot] = SimpleNamespace(step=0)
        return slot

    def detach(self, slot):
        del self.slots[slot]

    def step(self, batches, ahead=None):
        self.workers.sum()
        for slot in batches:
            self.slots[slot].step += 1
        return {slot: StepStats(2.0, 3, 1.0, True) for slot in batches}

    def evaluate(self, slots, batch, hits=False):
        self.workers.sum()
        return {slot: EvalResult([2.0], [1]) for slot in slots}

    def fetch_latent(self, slot):
        return {}

    def fetch_state(self, slot):
        return None


class Scheduler(Link):
    """Pool and scheduler in one: sends trials, stops some of them at random moments, ends the pack when all have ended."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.sent, self.inbox, self.open = [], [], set()
        count = self.random.randint(1, 7)
        self.coming = [f"t{number}" for number in range(count)]
        self.confirming = {trial for trial in self.coming if self.random.random() < 0.5}
        self.ended = {}
        self.waves = []
        self.steps = {}

    def send(self, command):
        self.sent.append(command)
        self.inbox.append(command)

    def poll(self, wait):
        """Something may happen whenever the pack looks."""
        if self.coming and self.random.random() < 0.6:
            trial = self.coming.pop(0)
            config = CONFIG.model_copy(update={"confirms": "t0" if trial in self.confirming else None})
            self.open.add(trial)
            self.send(Attach(trial, config.model_dump(mode="json"), 0, False))
        running = sorted(self.open)
        if running and self.random.random() < 0.15:
            self.stop(self.random.choice(running))
        if not self.coming and not self.open and Stop() not in self.sent:
            self.send(Stop())
        taken, self.inbox = self.inbox, []
        return taken

    def stop(self, trial):
        if self.ended.setdefault(trial, "stopped") == "stopped":
            self.send(Detach(trial))

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave, left=None, over=""):
        self.waves.append((trial_id, metrics.step, dict(wave)))
        assert metrics.step > self.steps.get(trial_id, 0)
        self.steps[trial_id] = metrics.step
        if metrics.step == config.steps:
            self.ended.setdefault(trial_id, "completed")
            assert (test is not None) == (trial_id in self.confirming)
        elif self.random.random() < 0.3:
            self.stop(trial_id)
        else:
            self.send(Continue(trial_id))

    def released(self, trial_id):
        self.open.discard(trial_id)


def run(seed):
    """Both workers' commands, in the order in which they carried them out, and the scheduler."""
    meeting, scheduler = Meeting(), Scheduler(seed)
    tokens, learn = np.arange(6, dtype=np.int32), np.tile([False, True], 3)
    rows = Rows(tokens, learn, np.arange(0, 7, 2), ("a", "b", "c"), np.ones(3, np.int64))
    dataset = Dataset(rows, rows, rows, None)
    settings = SimpleNamespace(dataset=dataset, checkpoint_every=None, keep="last", rungs=None)
    applied, errors = ([], []), []

    def work(rank):
        loop = PackLoop(settings, Engine(Workers(rank, meeting)), scheduler if rank == 0 else Link())
        whole = loop._apply

        def apply(command):
            if not isinstance(command, Settled):
                applied[rank].append(command)
            whole(command)

        loop._apply = apply
        try:
            loop.run()
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)
    return applied, scheduler


@pytest.mark.parametrize("seed", range(200))
def test_no_command_is_lost(seed, monkeypatch):
    from bitlora import timeouts

    monkeypatch.setattr(timeouts, "VERDICT_S", 0.002)
    monkeypatch.setattr(timeouts, "WORKERS_MEET_S", 0.001)
    (first, second), scheduler = run(seed)
    assert first == second == scheduler.sent
    assert scheduler.ended.keys() == {command.trial_id for command in scheduler.sent if isinstance(command, Attach)}
    assert not scheduler.open
    assert_waves_agree(scheduler)


def assert_waves_agree(scheduler):
    """Each trial that searches is told with all that were evaluated with it, and those with the same."""
    told = {(trial, step): wave for trial, step, wave in scheduler.waves}
    for (trial, step), wave in told.items():
        assert wave.keys().isdisjoint(scheduler.confirming)
        assert trial in scheduler.confirming or wave[trial][0] == step
        assert all(told[peer, at] == wave for peer, (at, _) in wave.items())
        assert len(wave) <= SLOTS
