"""A trial that does not get better ends before its budget: by its own evaluations alone, whenever it goes on from where."""

from dataclasses import replace

import pytest
from played_pack import Played, attach

from bitlora.config.trial import TrialConfig
from bitlora.engine.engine import Engine
from bitlora.files import record
from sweeps.driver.resume import Past
from sweeps.pool.messages import Stop

LOSSES = {2: 2.0, 4: 1.0, 6: 1.5, 8: 1.0, 10: 0.5, 12: 0.4}
"""The second lowest is reached twice; after it comes what a trial with patience never sees."""
SAID = "no lower eval loss in 2 evaluations in a row: it ended at step 8 of 12"


@pytest.fixture
def losses(monkeypatch):
    """What an evaluation comes to hangs on its step alone."""
    real = Engine.evaluate

    def scored(self, slots, batch, **more):
        found = real(self, slots, batch, **more)
        at = {slot: LOSSES[self.slots[slot].step] for slot in slots}
        return {slot: replace(each, losses=[at[slot] * n for n in each.tokens]) for slot, each in found.items()}

    monkeypatch.setattr(Engine, "evaluate", scored)


def trial(*names, **more):
    return attach(*names, eval_every=2, steps=12, **more)


def test_it_ends_with_its_best_and_up_to_there_it_is_as_without(run, losses):
    script = {"at first": [*trial("a", patience=2), *trial("b")], ("released", "b", 1): [Stop()]}
    link = run(script, keep="best")
    assert [line.step for line in link.metrics["a"]] == [2, 4, 6, 8]
    assert link.reasons == {"a": SAID}
    assert link.kept == {"a": 4, "b": 12}
    for own, other in zip(link.metrics["a"], link.metrics["b"], strict=False):
        assert replace(own, seconds=0.0) == replace(other, seconds=0.0)  # the rates of its schedule too


@pytest.mark.parametrize("kept", [True, False], ids=["from a checkpoint", "from its first step"])
@pytest.mark.parametrize("reported", [4, 6])
def test_one_that_goes_on_ends_where_it_would_have(run, losses, kept, reported):
    whole = run({"at first": trial("a", patience=2), ("released", "a", 1): [Stop()]}, keep="best")
    [saved] = [one for one in whole.saved["a"] if one.progress.step == reported]
    script = {"at first": trial("a", patience=2, reported=reported), ("released", "a", 1): [Stop()]}
    link = Played(script, {"a": saved} if kept else {})
    known = reported // 2
    link.metrics["a"] = whole.metrics["a"][:known]
    run(None, keep="best", link=link)
    assert [line.step for line in link.metrics["a"]] == [2, 4, 6, 8]
    assert link.reasons == {"a": SAID}


def test_what_a_driver_finds_of_it_says_whether_it_has_ended():
    """Its pack wrote that, and died before the study heard."""
    config = TrialConfig(**trial("a", patience=2)[0].config)
    shown = {"tokens": 1, "train_loss": 1.0, "learning_rate": 0.0, "seconds": 1.0}
    lines = [record.Metrics(step=step, eval_loss=loss, **shown) for step, loss in LOSSES.items()]
    for count, patience, over in ((3, 2, None), (4, 2, SAID), (4, None, None), (6, None, ""), (0, 2, None)):
        own = config.model_copy(update={"patience": patience}).model_dump(mode="json")
        past = Past({"a": lines[:count]}, {}, {"a": own})
        assert past.over("a") == over
        assert past.short == (["a"] if over else [])
    assert Past({"a": lines}, {}, {}).over("a") is None
