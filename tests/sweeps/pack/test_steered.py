"""A pack whose trials a person steers: more steps under way, and a trial that begins with another's weights. No Ray."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlora.adapter.peft_folder import load_latent, save_adapter
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base
from sweeps.pack.link import Link
from sweeps.pack.loop import PackLoop
from sweeps.pool.messages import Attach, Extend, Stop

TRIAL = TrialConfig(
    quantizer="binary",
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
    steps=6,
    eval_every=4,
    seed=1,
)


def rows(count, seed):
    tokens = np.random.default_rng(seed).integers(3, 90, 6 * count).astype(np.int32)
    learn = np.tile([False, False, False, True, True, True], count)
    return Rows(tokens, learn, np.arange(0, 6 * count + 1, 6), tuple(map(str, range(count))), np.full(count, 9))


class Steered(Link):
    """`script`: (event, trial, how often) -> what arrives then. Adapters of the last evaluations are below `folder`."""

    def __init__(self, script, folder):
        self.script, self.folder = script, folder
        self.inbox, self.log, self.metrics, self.waves, self.heard = script.pop("at first"), [], {}, {}, {}

    def _happened(self, event, trial):
        self.log.append((event, trial))
        self.inbox += self.script.pop((event, trial, self.log.count((event, trial))), [])

    def poll(self, wait):
        taken, self.inbox = self.inbox, []
        return taken

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave, left=None, over=""):
        self.metrics.setdefault(trial_id, []).append(metrics)
        self.waves[trial_id, metrics.step] = wave
        folder = self.folder / f"{trial_id}@{metrics.step}"
        folder.mkdir()
        save_adapter(folder, latent.arrived(), config, "base", metrics.step)
        self._happened("evaluated", trial_id)

    def latent_of(self, config):
        return load_latent(self.folder / config.warm_start, config)

    def extended(self, trial_id, config):
        self.heard[trial_id] = config

    def ended(self, trial_id, status, step, reason):
        self.log.append((status, reason))

    def released(self, trial_id):
        self._happened("released", trial_id)

    def log_event(self, event, *trials):
        for trial in trials:
            self._happened(event, trial)


@pytest.fixture
def run(tiny_base, tmp_path):
    base = load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float64, torch.device("cpu"))

    def run_pack(script, slots=2):
        link = Steered(script, tmp_path)
        settings = SimpleNamespace(
            dataset=Dataset(rows(10, 1), rows(4, 2), rows(0, 3), None), checkpoint_every=None, keep="last", rungs=None
        )
        PackLoop(settings, Engine(base, slots), link).run()
        return link

    return run_pack


def attach(trial, config=TRIAL, reported=0):
    return Attach(trial, config.model_dump(mode="json"), reported, False)


MORE = TRIAL.with_steps(11)
STOP = {("released", "a", 1): [Stop()]}
TOLD = [Extend("a", MORE.model_dump(mode="json"))]


def numbers(link, trial="a"):
    return [(line.step, line.eval_loss, line.train_loss, line.learning_rate) for line in link.metrics[trial]]


def cosine(step, steps, warmup):
    """The rate by the schedule's definition, written out."""
    share = step / warmup if step <= warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1))) / 2
    return 1e-3 * share


@pytest.mark.parametrize("when", ["at first", "in its slot", "before it is here"])
def test_more_steps_change_nothing_of_those_that_it_had(run, tmp_path, when):
    """Whenever it hears of them: its numbers are those of its schedule alone."""
    alone = run({"at first": [attach("b")], ("released", "b", 1): [Stop()]})
    script = {
        "at first": {"at first": [attach("a"), *TOLD]},
        "in its slot": {"at first": [attach("a")], ("step", "a", 5): TOLD},
        "before it is here": {"at first": [*TOLD, attach("a")]},
    }[when]
    link = run({**script, **STOP})
    assert [line.step for line in link.metrics["a"]] == [4, 6, 8, 11]
    assert numbers(link)[:2] == numbers(alone, "b")
    assert link.heard["a"] == MORE
    rates = [line.learning_rate for line in link.metrics["a"]]
    assert rates == pytest.approx([cosine(4, 6, 1), cosine(6, 6, 1), cosine(8, 11, 1), cosine(11, 11, 1)], rel=1e-12)
    for folder in tmp_path.iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = run({"at first": [attach("a", MORE)], **STOP})  # trained again, from its schedule alone
    assert numbers(again) == numbers(link)


def test_who_has_taken_the_last_step_hears_of_nothing(run):
    link = run({"at first": [attach("a")], ("released", "a", 1): [*TOLD, Stop()]})
    assert [line.step for line in link.metrics["a"]] == [4, 6]
    assert link.heard == {}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantizer", ["none", "binary", "double_binary"])
def test_a_trial_with_anothers_weights_begins_at_its_loss(run, quantizer, dora):
    parent = TRIAL.model_copy(update={"quantizer": quantizer, "dora": dora})
    clone = parent.model_copy(update={"warm_start": "a@4", "learning_rate": 5e-4, "dropout": 0.0})
    script = {"at first": [attach("a", parent)], ("evaluated", "a", 1): [attach("b", clone, -1)]}
    link = run({**script, ("released", "b", 1): [Stop()]})
    assert "failed" not in dict(link.log), link.log
    steps = [line.step for line in link.metrics["b"]]
    assert steps == [0, 4, 6]
    first = link.metrics["b"][0]
    assert math.isclose(first.eval_loss, link.metrics["a"][0].eval_loss, rel_tol=1e-12)
    assert (first.tokens, first.train_loss, first.learning_rate) == (0, None, 0.0)
    assert link.metrics["b"][1].eval_loss != link.metrics["a"][0].eval_loss
    assert all("b" not in wave for wave in link.waves.values())  # nobody is held against it


def test_weights_that_are_not_such_as_it_has_are_said(run):
    clone = TRIAL.model_copy(update={"warm_start": "a@4", "rank": 4})
    script = {"at first": [attach("a")], ("evaluated", "a", 1): [attach("b", clone, -1)]}
    link = run({**script, ("released", "b", 1): [], ("released", "a", 1): [Stop()]})
    [reason] = [reason for status, reason in link.log if status == "failed"]
    assert "rank 4 has A [4, in]" in reason
    assert [line.step for line in link.metrics["a"]] == [4, 6]
