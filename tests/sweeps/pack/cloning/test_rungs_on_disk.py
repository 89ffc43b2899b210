"""What the first worker of a pack writes where trials leave their slots, and where an earlier evaluation was better."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from played_pack import TRIAL

from bitlora.adapter.latent import Latent
from bitlora.config.sections import BaseConfig
from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.checkpoint import Checkpoint, TrialProgress
from bitlora.engine.engine import EvalResult
from bitlora.engine.slots.slot import SlotState
from bitlora.files import record
from bitlora.files.opening import open_storage
from bitlora.files.origin import Origin
from bitlora.forward.host import Coming
from sweeps.pack.first_link import FirstLink
from sweeps.pack.measuring.measuring import Scored
from sweeps.search.cloning.place import Source

A = TRIAL.model_copy(update={"steps": 40, "eval_every": 8})


class Pool:
    """What it is told, and which files were there by then."""

    def __init__(self, folder):
        self.folder, self.told = folder, []

    def __getattr__(self, name):
        def remote(pack, *arguments):
            files = sorted(path.name for path in (self.folder / "trials" / "t0").glob("*"))
            self.told.append((name, *arguments, files))
            return name == "evaluated"

        return SimpleNamespace(remote=remote)

    @property
    def reports(self):
        return [(result, files) for name, *rest in self.told if name == "report" for result, files in [rest]]


@pytest.fixture
def first(tmp_path, monkeypatch):
    monkeypatch.setattr(FirstLink, "_listen", lambda self: None)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    tokens = np.arange(24, dtype=np.int32)
    rows = Rows(tokens, tokens % 8 > 3, np.arange(0, 25, 8), ("a", "b", "c"), np.array([9, 8, 7]))
    with open_storage(str(tmp_path)) as storage:
        base = BaseConfig(model="m", quantization="nf4", revision="abc")
        settings = SimpleNamespace(storage=storage, dataset=Dataset(rows, rows, rows, None), base=base)
        yield FirstLink("p0", Pool(tmp_path), settings, "base", Origin(dtype="float32"))


def metrics(step, loss=1.5):
    return record.Metrics(step=step, tokens=step, train_loss=2.0, eval_loss=loss, learning_rate=0.1, seconds=1.0)


def checkpoint(step, config=A):
    state = SlotState(step, *(torch.full((3,), float(step + n)) for n in range(3)))
    return Checkpoint(state, TrialProgress(step=step, tokens=step, seconds=1.0, losses=[2.0], first_loss=3.0), config)


def evaluated(first, step, left=None, loss=1.5, kept=True, over=""):
    latent = Coming(lambda: {"q_proj": Latent(torch.ones(2, 4), torch.ones(4, 2))}) if kept else None
    result = Scored(EvalResult([4 * loss] * 3, [4] * 3))
    first.evaluated("t0", A, metrics(step, loss), result, latent, None, {}, left, over)


def test_a_rungs_checkpoint_is_there_before_anybody_hears_of_it_and_the_one_before_it_stays(first, tmp_path):
    for step in (8, 16, 24):
        evaluated(first, step, checkpoint(step))
    evaluated(first, 32)
    first.close()
    reports = first._pool.reports
    assert [(result.step, result.left, result.ended) for result, _ in reports] == [
        (8, True, False), (16, True, False), (24, True, False), (32, False, False)
    ]  # fmt: skip
    rungs = [[name for name in files if name.startswith("rung-")] for _, files in reports]
    names = [record.rung(step) for step in (8, 16, 24)]
    assert rungs == [names[:1], names[:2], names[1:], names[1:]]
    assert all("metrics.jsonl" in files for _, files in reports)


def test_a_copy_reads_what_the_other_left_whosever_it_is(first, tmp_path):
    evaluated(first, 8, checkpoint(8))
    first._writer.submit(lambda: None).result()
    found = first.copy_of(Source("t0", 8), "t1")
    assert (found.progress, found.config) == (checkpoint(8).progress, A)
    assert found.state.latent.tolist() == [8.0] * 3
    assert first.copy_of(Source("t0", 16), "t1") is None
    (tmp_path / "trials" / "t0" / record.rung(8)).write_bytes(b"broken")
    assert first.copy_of(Source("t0", 8), "t1") is None
    first.close()
    said = (tmp_path / "logs" / "p0.jsonl").read_text()
    assert "no copy: there is no rung-000016.safetensors of t0" in said
    assert "not a checkpoint" in said


def test_one_that_diverged_is_reported_at_the_step_where_it_would_have_left(first):
    first.strayed("t0", 16, "its loss was not finite at step 11")
    first.close()
    [(result, _)] = first._pool.reports
    assert (result.step, result.left, result.ended, result.metrics) == (16, True, False, None)
    assert result.reason == "its loss was not finite at step 11"


def test_one_that_ends_short_of_its_budget_is_reported_completed_with_the_reason(first):
    evaluated(first, 8)
    evaluated(first, 16, over="it did not get better")
    first.close()
    assert [(result.status, result.reason) for result, _ in first._pool.reports] == [
        ("running", ""),
        ("completed", "it did not get better"),
    ]


def test_the_files_of_a_better_evaluation_stay(first, tmp_path):
    folder = tmp_path / "trials" / "t0"
    evaluated(first, 8, loss=1.0)
    evaluated(first, 16, loss=2.0, kept=False)
    first.close()
    assert [line.eval_loss for line in record.read_metrics(folder)] == [1.0, 2.0]
    assert record.loss_of(folder / record.EVAL) == 1.0
    assert (folder / record.ADAPTER / "adapter_config.json").exists()


def test_one_that_goes_on_knows_its_best(first, tmp_path):
    folder = tmp_path / "trials" / "t0"
    for step, loss in ((8, 1.0), (16, 2.0)):
        evaluated(first, step, loss=loss)
    state, progress, _ = checkpoint(16)
    first.save("t0", A, Coming(lambda: state), progress)
    first._writer.submit(lambda: None).result()
    first._saver.submit(lambda: None).result()
    assert (folder / record.CHECKPOINT).exists()
    assert first.restore("t0", A, 16).progress == progress
    assert [first.losses("t0", until) for until in (7, 8, 15, 16)] == [[], [1.0], [1.0], [1.0, 2.0]]
    first.close()
