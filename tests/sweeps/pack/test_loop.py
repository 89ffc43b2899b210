"""A pack from inside, without Ray."""

from dataclasses import replace

import pytest
import torch
from played_pack import Played, attach, rows

from bitlora import timeouts
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from sweeps.pool.messages import Continue, Detach, Leave, Stop


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
    assert {key: test and len(test.result.losses) for key, test in link.tests.items()} == {
        ("a", 4): None,
        ("a", 8): None,
        ("b", 4): None,
        ("b", 8): 3,
    }
    assert link.metrics["a"][1].eval_loss == pytest.approx(link.metrics["b"][1].eval_loss, rel=1e-12)


def test_fewer_rows_to_confirm_on_are_the_first_ones(run):
    script = [*attach("a", confirms="t"), *attach("b", confirms="t", confirm_rows=2)]
    tests = run({"at first": script, ("released", "b", 1): [Stop()]}).tests
    assert len(tests["a", 8].result.losses) == 3
    assert tests["b", 8].result.losses == pytest.approx(tests["a", 8].result.losses[:2], rel=1e-6)
    assert tests["b", 8].result.tokens == tests["a", 8].result.tokens[:2]


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
    assert scores.eval.result.losses == pytest.approx(own_losses(model, rows(4, 2)), rel=1e-9)
    assert scores.eval.result.tokens == [3] * 4
    assert not scores.unusable
    if tested:
        assert scores.test.result.losses == pytest.approx(own_losses(model, rows(3, 3)), rel=1e-9)
    else:
        assert scores.test is None
    # and the trial is what it is where nobody asks for the base
    plain = run({"at first": attach("a"), ("released", "a", 1): [Stop()]})
    assert plain.base == []
    assert link.metrics["a"][1].eval_loss == plain.metrics["a"][1].eval_loss


def test_a_base_that_cannot_be_scored_costs_no_trial(run, monkeypatch):
    real = Engine.evaluate

    def failing(self, slots, batch, **more):
        found = real(self, slots, batch, **more)
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

    def failing(self, slots, batch, **more):
        found = real(self, slots, batch, **more)
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


RISING = {2: 2.0, 4: 1.0, 6: 1.5, 8: 1.25}


@pytest.mark.parametrize(("keep", "step", "tested"), [("last", 8, {8}), ("best", 4, {2, 4})])
def test_the_files_of_the_last_or_of_the_best_evaluation_stay(run, monkeypatch, keep, step, tested):
    """Also of one that goes on from after its best; a trial that confirms is tested where its files may stay."""
    real = Engine.evaluate

    def scored(self, slots, batch, **more):
        losses = {slot: RISING[self.slots[slot].step] for slot in slots}
        found = real(self, slots, batch, **more)
        return {slot: replace(each, losses=[losses[slot] * n for n in each.tokens]) for slot, each in found.items()}

    monkeypatch.setattr(Engine, "evaluate", scored)
    trials = [*attach("a", eval_every=2), *attach("b", eval_every=2, confirms="a")]
    link = run({"at first": trials, ("released", "b", 1): [Stop()]}, keep=keep)
    assert link.kept == {"a": step, "b": step}
    assert {at for (trial, at), test in link.tests.items() if test is not None} == tested
    [at_six] = [one for one in link.saved["a"] if one.progress.step == 6]
    for found in ({"a": at_six}, {}):  # or its checkpoint is lost: it begins again, and is silent up to there
        script = {"at first": attach("a", eval_every=2, reported=4), ("released", "a", 1): [Stop()]}
        again = Played(script, found)
        again.metrics["a"] = link.metrics["a"][:2]
        run(None, keep=keep, link=again)
        assert again.kept == ({"a": 8} if keep == "last" else {})
