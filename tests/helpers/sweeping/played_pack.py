"""A pack from inside, without Ray: a link that plays the pool's part and keeps what it is told."""

import time
from types import SimpleNamespace

import numpy as np
import torch

from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.checkpoint import Checkpoint
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base
from sweeps.pack.link import Link
from sweeps.pack.loop import PackLoop
from sweeps.pool.messages import Attach

TRIAL = TrialConfig(
    quantizer="ternary",
    activations="full",
    rank=2,
    alpha=4,
    dropout=0.1,
    scaling="lora",
    learning_rate=1e-3,
    weight_decay=0.0,
    batch_size=2,
    micro_batch=None,
    max_grad_norm=1.0,
    schedule="cosine",
    warmup=0.1,
    floor=0.0,
    steps=8,
    eval_every=4,
    seed=1,
)


def rows(count, seed):
    tokens = np.random.default_rng(seed).integers(3, 90, 6 * count).astype(np.int32)
    learn = np.tile([False, False, False, True, True, True], count)
    ids = tuple(f"r{index}" for index in range(count))
    return Rows(tokens, learn, np.arange(0, 6 * count + 1, 6), ids, np.full(count, 9))


class Played(Link):
    """`script`: what arrives after a moment: (event, trial) of the log -> commands."""

    scores_base = False

    def __init__(self, script, found=None):
        self.script, self.found = script, found or {}
        self.log, self.saved, self.metrics, self.tests, self.waves, self.waits = [], {}, {}, {}, {}, []
        self.inbox = list(script.pop("at first"))
        self.base, self.said, self.left, self.reasons, self.kept = [], [], {}, {}, {}

    def wants_base(self):
        return self.scores_base

    def base_scored(self, scores):
        assert not self.log  # no trial has begun
        self.base.append(scores)

    def _happened(self, event, trial):
        self.log.append((event, trial))
        self.inbox += self.script.pop((event, trial, self.count(event, trial)), [])

    def progress_of(self, trial):
        return [each.progress for each in self.saved[trial]]

    def count(self, event, trial):
        return self.log.count((event, trial))

    def poll(self, wait):
        self.waits.append(wait)
        taken, self.inbox = self.inbox, []
        if not taken and wait:
            time.sleep(wait)
        return taken

    def restore(self, trial_id, config, reported):
        self._happened("begin", trial_id)
        return self.found.get(trial_id)

    def losses(self, trial_id, until):
        return [line.eval_loss for line in self.metrics.get(trial_id, []) if line.step <= until]

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave, left=None, over=""):
        self.metrics.setdefault(trial_id, []).append(metrics)
        self.tests[trial_id, metrics.step] = test
        self.waves[trial_id, metrics.step] = wave
        if latent is not None:
            self.kept[trial_id] = metrics.step
        if over:
            self.reasons[trial_id] = over
        self._happened("evaluated", trial_id)
        if left is not None:
            self.left[trial_id] = left
            self._happened("left", trial_id)

    def strayed(self, trial_id, until, reason):
        self.reasons[trial_id] = reason
        self._happened("left", trial_id)

    def copy_of(self, source, trial_id):
        self._happened("copied", source.trial_id)
        return self.found.get(source)

    def save(self, trial_id, config, state, progress):
        self.saved.setdefault(trial_id, []).append(Checkpoint(state.arrived(), progress, config))

    def released(self, trial_id):
        self._happened("released", trial_id)

    def log_event(self, event, *trials):
        self.said += [event] if not trials else []
        for trial in trials:
            self._happened(event, trial)


def attach(*trials, reported=0, **config):
    chosen = TRIAL.model_copy(update=config).model_dump(mode="json")
    return [Attach(trial, chosen, reported, bool(reported)) for trial in trials]


def packs_over(folder):
    """Runs a pack over the base in `folder`, in float64, and gives its link."""
    base = load_base(BaseConfig(model=str(folder), quantization="none"), torch.float64, torch.device("cpu"))

    def run_pack(
        script,
        found=None,
        checkpoint_every=None,
        slots=2,
        scores_base=False,
        tested=3,
        keep="last",
        link=None,
        rungs=None,
        scored=4,
    ):
        dataset = Dataset(rows(10, 1), rows(scored, 2), rows(tested, 3), None)
        link = link or Played(script, found)
        link.scores_base = scores_base
        settings = SimpleNamespace(dataset=dataset, checkpoint_every=checkpoint_every, keep=keep, rungs=rungs)
        engine = Engine(base, slots)
        try:
            PackLoop(settings, engine, link).run()
        finally:
            for slot in list(engine.slots):
                engine.detach(slot)
        return link

    return run_pack
