"""A pack from inside, without Ray: a link that plays the pool's part and keeps what it is told."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlora import timeouts
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base
from sweeps.pack.link import Checkpoint, Link
from sweeps.pack.loop import PackLoop
from sweeps.pool.messages import Attach, Continue, Detach, Leave, Peers, Stop
from sweeps.search.rules import Halving
from sweeps.search.sequential import RowLoss, Rungs

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
        self.base, self.said = [], []

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

    def evaluated(self, trial_id, config, metrics, result, latent, test, wave):
        self.metrics.setdefault(trial_id, []).append(metrics)
        self.tests[trial_id, metrics.step] = test
        self.waves[trial_id, metrics.step] = wave
        self._happened("evaluated", trial_id)

    def save(self, trial_id, config, state, progress):
        self.saved.setdefault(trial_id, []).append(Checkpoint(state.arrived(), progress))

    def released(self, trial_id):
        self._happened("released", trial_id)

    def log_event(self, event, *trials):
        self.said += [event] if not trials else []
        for trial in trials:
            self._happened(event, trial)


def attach(*trials, reported=0, **config):
    chosen = TRIAL.model_copy(update=config).model_dump(mode="json")
    return [Attach(trial, chosen, reported, bool(reported)) for trial in trials]


@pytest.fixture
def run(tiny_base):
    base = load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float64, torch.device("cpu"))

    def run_pack(script, found=None, checkpoint_every=None, slots=2, scores_base=False, tested=3, rungs=None, scored=4):
        dataset = Dataset(rows(10, 1), rows(scored, 2), rows(tested, 3), None)
        link = Played(script, found)
        link.scores_base = scores_base
        settings = SimpleNamespace(dataset=dataset, checkpoint_every=checkpoint_every, rungs=rungs)
        engine = Engine(base, slots)
        try:
            PackLoop(settings, engine, link).run()
        finally:
            for slot in list(engine.slots):
                engine.detach(slot)
        return link

    return run_pack


def test_a_trial_from_its_first_step_to_its_last(run):
    link = run({"at first": attach("a"), ("released", "a", 1): [Stop()]})
    assert [metrics.step for metrics in link.metrics["a"]] == [4, 8]
    assert link.count("step", "a") == 8
    assert [progress.step for progress in link.progress_of("a")] == [4]  # at each evaluation; the last one needs none


def test_checkpoints_as_often_as_told(run):
    link = run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, checkpoint_every=3)
    assert [progress.step for progress in link.progress_of("a")] == [3, 6]
    assert [len(progress.losses) for progress in link.progress_of("a")] == [
        3,
        2,
    ]  # since the evaluation at step 4


@pytest.mark.parametrize(("reported", "evaluations"), [(0, [4, 8]), (4, [8])])
def test_a_trial_that_goes_on_is_evaluated_where_that_was_not_reported(run, reported, evaluations):
    whole = run({"at first": attach("a"), ("released", "a", 1): [Stop()]})
    script = {"at first": attach("a", reported=reported), ("released", "a", 1): [Stop()]}
    again = run(script, found={"a": whole.saved["a"][0]})
    assert again.count("step", "a") == 4
    expected = [metrics for metrics in whole.metrics["a"] if metrics.step in evaluations]
    for found, other in zip(again.metrics["a"], expected, strict=True):
        assert (found.step, found.tokens) == (other.step, other.tokens)
        assert (found.eval_loss, found.train_loss) == (other.eval_loss, other.train_loss)


def test_a_trial_that_goes_on_from_before_its_last_report_is_silent_until_then(run):
    whole = run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, checkpoint_every=3)
    script = {"at first": attach("a", reported=4), ("released", "a", 1): [Stop()]}
    again = run(script, found={"a": whole.saved["a"][0]})  # of step 3
    assert [metrics.step for metrics in again.metrics["a"]] == [8]
    assert again.metrics["a"][0].eval_loss == whole.metrics["a"][1].eval_loss
    assert again.metrics["a"][0].train_loss == whole.metrics["a"][1].train_loss


def test_a_machine_that_goes_away_is_left_with_all_that_was_done(run):
    link = run({"at first": attach("a", "b"), ("step", "a", 3): [Leave()]})
    assert {trial: [each.progress.step for each in saved] for trial, saved in link.saved.items()} == {
        "a": [3],
        "b": [3],
    }
    assert link.count("step", "a") == 3


def test_a_stopped_trial_takes_no_further_step_and_its_successor_takes_the_next(run):
    """What is decided at once after an evaluation is waited for; what is not, for no longer than a step takes."""
    script = {
        "at first": attach("a", "b", "c"),  # two slots: c waits in the pack
        ("evaluated", "b", 1): [Detach("a"), Continue("b")],
        ("released", "c", 1): [Stop()],
    }
    link = run(script)
    assert link.count("step", "a") == 4
    steps = [event for event in link.log if event[0] == "step"]
    assert steps[8:10] == [("step", "b"), ("step", "c")]
    assert link.count("step", "b") == link.count("step", "c") == 8
    assert max(link.waits) <= 1.0


def test_nobody_waits_for_a_verdict_while_another_trial_can_go_on(run):
    """`b` joins some steps later, so that they are never evaluated together; what becomes of `a` is said only after steps
    that both have taken meanwhile. Alone, `a` is waited for."""
    script = {
        "at first": attach("a"),
        ("step", "a", 3): attach("b"),
        ("step", "b", 2): [Continue("a")],
        ("evaluated", "b", 1): [Continue("b")],
        ("released", "b", 1): [Stop()],
    }
    link = run(script)
    assert link.count("step", "a") == link.count("step", "b") == 8
    assert [wait for wait in link.waits if 0 < wait < timeouts.WORKERS_MEET_S] == []  # an idle pack waits just so long
    alone = run({"at first": attach("a"), ("released", "a", 1): [Stop()]})
    assert [wait for wait in alone.waits if 0 < wait < timeouts.WORKERS_MEET_S] != []


def test_a_trial_that_nobody_waits_for_trains_on_until_it_is_stopped(run):
    script = {
        "at first": attach("a"),
        ("step", "a", 3): attach("b"),
        ("step", "b", 4): [Detach("a")],  # evaluated three steps ago
        ("released", "b", 1): [Stop()],
    }
    link = run(script)
    assert link.count("step", "a") == 7
    assert [metrics.step for metrics in link.metrics["a"]] == [4]
    plain = run({"at first": attach("b"), ("released", "b", 1): [Stop()]})
    found, expected = ([metrics.eval_loss for metrics in each.metrics["b"]] for each in (link, plain))
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_next_batches_are_made_while_a_step_runs(run, monkeypatch):
    """Each batch once, and each but the first inside the step before its own."""
    made, inside = [], []
    real_step, real_of = Engine.step, Batch.of

    def step(self, batches, ahead):
        inside.append(True)
        try:
            return real_step(self, batches, ahead)
        finally:
            inside.clear()

    def of(rows):
        made.append(bool(inside))
        return real_of(rows)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr("sweeps.pack.loop.Batch.of", of)
    run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, tested=0)
    assert made == [False, False] + [True] * 7  # the rows to evaluate, the first batch, and the seven others


def test_trials_that_are_due_together_are_scored_together(run):
    link = run({"at first": attach("a", "b"), ("released", "b", 1): [Stop()]})
    assert link.metrics["a"][0].eval_loss == pytest.approx(link.metrics["b"][0].eval_loss, rel=1e-12)
    order = [event for event in link.log if event[0] in ("step", "evaluated")]
    assert order[8:10] == [("evaluated", "a"), ("evaluated", "b")]


def test_a_trial_that_confirms_is_scored_on_the_test_split_at_its_end_alone(run):
    link = run({"at first": [*attach("a"), *attach("b", confirms="a")], ("released", "b", 1): [Stop()]})
    assert {key: test and len(test.losses) for key, test in link.tests.items()} == {
        ("a", 4): None,
        ("a", 8): None,
        ("b", 4): None,
        ("b", 8): 3,
    }
    assert link.metrics["a"][1].eval_loss == pytest.approx(link.metrics["b"][1].eval_loss, rel=1e-12)


# ---- the base without an adapter


def own_losses(model, scored):
    """Of each row, in nats, by a plain loop over the model as transformers has it."""
    found = []
    for row in range(len(scored)):
        one = scored.take([row])
        ids, learn = torch.tensor(one.tokens).long()[None], torch.tensor(one.learn)
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(-float(logp.gather(1, ids[0, 1:, None])[:, 0][learn[1:]].sum()))
    return found


@pytest.mark.parametrize("tested", [0, 3])
def test_the_base_is_scored_before_the_first_trial_and_is_what_it_is_without_us(run, tiny_base, tested):
    from transformers import AutoModelForCausalLM

    script = {"at first": attach("a"), ("released", "a", 1): [Stop()]}
    link = run(script, slots=1, scores_base=True, tested=tested)
    [scores] = link.base
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    assert scores.eval.losses == pytest.approx(own_losses(model, rows(4, 2)), rel=1e-9)
    assert scores.eval.tokens == [3] * 4
    assert not scores.unusable
    if tested:
        assert scores.test.losses == pytest.approx(own_losses(model, rows(3, 3)), rel=1e-9)
    else:
        assert scores.test is None
    # and the trial is what it is where nobody asks for the base
    plain = run({"at first": attach("a"), ("released", "a", 1): [Stop()]})
    assert plain.base == []
    assert link.metrics["a"][1].eval_loss == plain.metrics["a"][1].eval_loss


def test_a_base_that_cannot_be_scored_costs_no_trial(run, monkeypatch):
    real = Engine.evaluate

    def failing(self, slots, batch):
        found = real(self, slots, batch)
        if self.slots[slots[0]].config.steps == 1:
            return {slot: replace(each, failed="RuntimeError: no room") for slot, each in found.items()}
        return found

    monkeypatch.setattr(Engine, "evaluate", failing)
    link = run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, slots=1, scores_base=True)
    assert link.base == []
    assert link.said == ["the base without an adapter could not be scored: RuntimeError: no room"]
    assert [metrics.step for metrics in link.metrics["a"]] == [4, 8]


def test_a_wave_is_of_those_that_search_and_came_to_a_loss(run, monkeypatch):
    """Whoever failed, diverged or confirms is no peer; a slot that is filled again later has peers at other steps."""
    real = Engine.evaluate

    def failing(self, slots, batch):
        found = real(self, slots, batch)
        broken = {slot: {"failed": "RuntimeError: no room"} for slot in slots if self.slots[slot].config.seed == 3}
        broken |= {slot: {"losses": [1e9] * 4} for slot in slots if self.slots[slot].config.seed == 4}
        return {slot: replace(each, **broken.get(slot, {})) for slot, each in found.items()}

    monkeypatch.setattr(Engine, "evaluate", failing)
    alone = [attach(trial, seed=seed)[0] for trial, seed in (("fails", 3), ("diverges", 4))]
    script = {
        "at first": [*attach("a", "b"), *alone, *attach("confirms", confirms="t9", seed=5), *attach("late", steps=4)],
        ("released", "late", 1): [Stop()],
    }
    link = run(script, slots=5)
    loss = {(trial, one.step): one.eval_loss for trial, found in link.metrics.items() for one in found}
    together = [{"a": 4, "b": 4}, {"a": 8, "b": 8, "late": 4}]
    waves = [{trial: (step, loss[trial, step]) for trial, step in each.items()} for each in together]
    assert link.waves == {
        **{(trial, 4): waves[0] for trial in ("a", "b", "confirms")},
        **{(trial, 8): waves[1] for trial in ("a", "b", "confirms")},
        ("late", 4): waves[1],
    }


def test_a_trial_that_is_clearly_stopped_at_a_rung_is_scored_on_fewer_rows_there_and_on_all_at_the_end(run):
    """Another pack's trial is better on each row. Nobody says stop here: it trains on, as one that was not told yet."""
    peers = Peers({"t9": (4, RowLoss(0.0, (0.0,) * 24))})
    script = {"at first": [*attach("a"), *attach("c", confirms="a"), peers], ("released", "c", 1): [Stop()]}
    link = run(script, rungs=Rungs(Halving(4, 2, 8), 24), scored=24)
    assert [(one.step, one.rows) for one in link.metrics["a"]] == [(4, 8), (8, None)]
    at_rung = link.metrics["a"][0]
    assert at_rung.eval_loss == pytest.approx(sum(at_rung.row_losses) / (8 * 3), rel=1e-12)
    step, loss = link.waves["a", 4]["a"]
    assert (step, loss, list(loss.rows)) == (4, at_rung.eval_loss, at_rung.row_losses)
    # Nobody stops one that confirms, and all of its rows are scored.
    assert [(one.rows, one.row_losses) for one in link.metrics["c"]] == [(None, None)] * 2
    plain = run({"at first": attach("a"), ("released", "a", 1): [Stop()]}, scored=24)
    assert link.metrics["a"][1].eval_loss == pytest.approx(plain.metrics["a"][1].eval_loss, rel=1e-12)
