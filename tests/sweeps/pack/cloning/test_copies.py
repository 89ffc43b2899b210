"""Trials that leave their slot at a step and go on as copies, of themselves or of another; and their schedule alone."""

import pytest
from played_pack import TRIAL, attach

from bitlora.config.trial import TrialConfig
from bitlora.engine.slots.optim import learning_rate
from sweeps.pool.messages import Attach, Stop
from sweeps.search.cloning.place import Source

A = TRIAL.model_copy(update={"learning_rate": 2e-3, "dropout": 0.0, "max_grad_norm": 0.5, "eval_every": 2})
B = TRIAL.model_copy(update={"rank": 3, "quantizer": "binary", "learning_rate": 1e-4, "eval_every": 2})
MOVED = {"learning_rate": 8e-4, "dropout": 0.3, "weight_decay": 0.1, "max_grad_norm": 2.0}
COPY = A.model_copy(update=MOVED).after(A, 4, "a")
AGAIN = COPY.model_copy(update={"learning_rate": 4e-4}).after(COPY, 6, "b")


def begin(trial, config, until=None, source=None, reported=0):
    return Attach(trial, config.model_dump(mode="json"), reported, bool(reported), source, until)


def go_on(trial, config, of, step, until=None):
    return begin(trial, config, until, Source(of, step), step)


def alone(run, config, trial="replay"):
    """Trained from its schedule alone, by itself: step -> (eval loss, train loss, tokens)."""
    link = run({"at first": [begin(trial, config)], ("released", trial, 1): [Stop()]}, slots=1)
    return scores(link, trial)


def scores(link, trial):
    return {one.step: (one.eval_loss, one.train_loss, one.tokens) for one in link.metrics[trial]}


def close(found, expected):
    return {step: pytest.approx(values, rel=1e-9) for step, values in expected.items()} == found


@pytest.fixture
def pack(run):
    """`b` becomes a copy of `a` at step 4, moves once more at step 6; `a` goes on as it is. One slot for both: who has left
    takes none."""
    script = {
        "at first": [begin("a", A, 4), begin("b", B, 4)],
        ("left", "b", 1): [go_on("b", COPY, "a", 4, 6), go_on("a", A, "a", 4)],
        ("left", "b", 2): [go_on("b", AGAIN, "b", 6)],
        ("released", "b", 1): [Stop()],
    }
    return run(script, slots=1)


def test_a_copy_goes_on_from_where_the_other_was_and_a_trial_from_where_it_left(run, pack):
    assert pack.count("copied", "a") == 0  # all of it within the pack
    assert close(scores(pack, "a"), alone(run, A))
    assert pack.metrics["b"][1].eval_loss != pack.metrics["a"][1].eval_loss
    assert pack.left["a"].config == A


def test_a_schedule_alone_gives_the_losses_of_all_whose_steps_it_has(run, pack):
    replayed = alone(run, AGAIN)
    own, other = scores(pack, "b"), scores(pack, "a")
    assert [(stage.until, stage.trial) for stage in AGAIN.stages] == [(4, "a"), (6, "b")]
    assert close({**{step: other[step] for step in (2, 4)}, **{step: own[step] for step in (6, 8)}}, replayed)
    assert not close(own, alone(run, AGAIN.model_copy(update={"stages": ()})))


def test_each_step_has_the_values_of_its_stage(pack):
    rates = {one.step: one.learning_rate for one in pack.metrics["b"][2:]}
    whole = {step: A.model_copy(update={"learning_rate": rate}) for step, rate in ((6, 8e-4), (8, 4e-4))}
    assert rates == {step: learning_rate(whole[step], step) for step in (6, 8)}
    held = [AGAIN.at(step) for step in range(8)]
    assert [one.learning_rate for one in held] == [2e-3] * 4 + [8e-4] * 2 + [4e-4] * 2
    assert [one.dropout for one in held] == [0.0] * 4 + [0.3] * 4
    assert [one.stages for one in held] == [()] * 8


def test_a_copy_in_another_pack_goes_on_from_the_file(run, pack):
    source = Source("a", 4)
    script = {"at first": [begin("b", COPY, None, source, 4)], ("released", "b", 1): [Stop()]}
    elsewhere = run(script, found={source: pack.left["a"]}, slots=1)
    assert elsewhere.count("copied", "a") == 1
    assert elsewhere.count("step", "b") == 4
    replayed = alone(run, COPY)
    assert close(scores(elsewhere, "b"), {step: replayed[step] for step in (6, 8)})


def test_a_copy_whose_source_is_lost_trains_the_steps_of_its_schedule_and_says_nothing_of_them(run):
    link = run({"at first": [go_on("b", COPY, "a", 4)], ("released", "b", 1): [Stop()]}, slots=1)
    assert link.count("step", "b") == 8
    replayed = alone(run, COPY)
    assert close(scores(link, "b"), {step: replayed[step] for step in (6, 8)})


def test_its_own_checkpoint_is_gone_on_from_where_it_is_further(run, pack):
    kept = pack.saved["a"][-1]  # of step 6
    link = run({"at first": [go_on("a", A, "a", 4)], ("released", "a", 1): [Stop()]}, found={"a": kept}, slots=1)
    assert link.count("step", "a") == 2


def test_one_that_diverges_leaves_its_slot_and_goes_on_as_a_copy(run):
    wild = A.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    script = {
        "at first": [begin("a", A, 4), begin("b", wild, 4)],
        ("left", "a", 1): [go_on("b", COPY, "a", 4), go_on("a", A, "a", 4)],
        ("released", "b", 1): [Stop()],
    }
    link = run(script)
    assert link.reasons.keys() == {"b"}
    assert [one.step for one in link.metrics["b"]] == [6, 8]
    assert close(scores(link, "b"), {step: found for step, found in alone(run, COPY).items() if step > 4})


def test_a_configuration_is_written_with_its_stages_and_read_back():
    assert "stages" not in A.model_dump(mode="json")
    assert "stages" not in A.model_dump_json()
    assert TrialConfig(**AGAIN.model_dump(mode="json")) == AGAIN
    assert TrialConfig(**AGAIN.model_dump()) == AGAIN
    assert "stages" not in attach("a")[0].config
