"""The record of a trial: of what only its pack knew, what the pack wrote; of the rest, what the driver knows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
from small_sweep import small_spec, small_sweep

from bitlora import timeouts
from bitlora.base.describe import describe_base
from bitlora.base.load import load_tokenizer
from bitlora.config.trial import TrialConfig
from bitlora.data.split import prepare_data
from bitlora.files import origin, record
from bitlora.files.opening import open_storage
from bitlora.files.origin import Origin
from bitlora.files.writing import write_json
from sweeps.driver.prepare import Prepared
from sweeps.driver.resume import look
from sweeps.driver.underway.recorder import Recorder, provenance
from sweeps.search.metric import Objective
from sweeps.search.twins import Twin
from sweeps.spec.spec import Spec, load_spec

ELSEWHERE = Origin(
    dtype="bfloat16", device="NVIDIA A10G", host="gpu-1", versions={"torch": "2.13.0+cu130", "transformers": "9.9"}
)


class Silent:
    """Pool and searcher: every call of every method is taken, and comes to nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return ()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, arithmetic: Path) -> Path:
    return small_sweep(tmp_path_factory.mktemp("recorded") / "small", tiny_base, arithmetic, {"t0000": {}})


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> Path:
    """A trial that was evaluated elsewhere, and has no record yet."""
    folder = Path(shutil.copytree(finished, tmp_path / "small"))
    trial = folder / "trials" / "t0000"
    (trial / record.RECORD).unlink()
    record.write_scores(trial / record.EVAL, ["a"], [1.0], [2], [4], ELSEWHERE)
    return folder


def prepared(spec: Spec) -> Prepared:
    base = describe_base(spec.base)
    return Prepared(base, prepare_data(spec.data, load_tokenizer(spec.base.model, base.revision)))


@dataclass
class Tuned:
    """A trial, as Tune has it."""

    config: dict[str, Any]
    last_result: dict[str, Any]


def complete(recorder: Recorder, config: dict[str, Any]) -> None:
    recorder.end(config, "completed", "")


def end(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[[Recorder, dict[str, Any]], None] = complete,
    get: Callable[..., None] = lambda *_, **__: None,
    keep: Literal["last", "best"] = "last",
) -> record.Record:
    """Have the trial end; its record.

    Args:
        get: stands for `ray.get`.
    """
    monkeypatch.setattr(ray, "get", get)
    spec = load_spec(folder / "sweep.yaml")
    found = prepared(spec)
    with open_storage(str(folder)) as storage:
        recorder = Recorder(storage, Silent(), found, Silent(), "nobody", keep)  # type: ignore[arg-type]
        config = found.trial(spec, {}).model_dump()
        how(recorder, {"trial_id": "t0000", "config": config})
        recorder.close()
    return record.read_record(folder / "trials" / "t0000")


def test_versions_device_and_dtype_are_the_packs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = end(sweep, monkeypatch)
    assert found.versions == ELSEWHERE.versions != origin.versions()
    assert (found.base["dtype"], found.base["device"]) == ("bfloat16", "NVIDIA A10G")
    assert found.base["revision"] == describe_base(load_spec(sweep / "sweep.yaml").base).revision
    assert set(vars(type(found))["__slots__"]) >= {"base", "data", "versions"}


@pytest.mark.parametrize(("keep", "step"), [("last", 8), ("best", 7)])
def test_the_record_is_of_the_evaluation_whose_files_stay(
    keep: Literal["last", "best"], step: int, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at, loss in ((7, 0.5), (8, 0.75)):
        numbers = {"train_loss": 2.0, "learning_rate": 0.0, "seconds": float(at)}
        record.append_metrics(sweep / "trials" / "t0000", record.Metrics(step=at, tokens=at, eval_loss=loss, **numbers))
    found = end(sweep, monkeypatch, keep=keep)
    assert (found.steps, found.tokens, found.seconds) == (step, step, float(step))
    assert found.eval_loss == {7: 0.5, 8: 0.75}[step]


def test_what_a_trial_has_become_is_in_its_record_with_what_it_was(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep / "trials" / "t0000" / record.CONFIG
    began = TrialConfig(**json.loads(path.read_text()))
    write_json(path, began.model_copy(update={"weight_decay": 0.5}).after(began, 3, "t0007").model_dump(mode="json"))
    found = end(sweep, monkeypatch)
    assert found.config == {**began.model_dump(mode="json"), "weight_decay": 0.5}
    assert found.schedule is not None
    [stage] = found.schedule
    assert (stage["until"], stage["trial"], stage["weight_decay"]) == (3, "t0007", began.weight_decay)
    assert TrialConfig(**found.config, stages=found.schedule) == TrialConfig(**json.loads(path.read_text()))


def test_of_a_trial_that_was_never_evaluated_versions_are_the_drivers(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (record.EVAL, record.METRICS):
        (sweep / "trials" / "t0000" / name).unlink()
    found = end(sweep, monkeypatch)
    assert found.versions == origin.versions()
    assert not {"dtype", "device"} & found.base.keys()


def test_a_file_of_before_says_its_dtype_alone(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write_scores(sweep / "trials" / "t0000" / record.EVAL, ["a"], [1.0], [2], [4], Origin(dtype="float32"))
    found = end(sweep, monkeypatch)
    assert found.base["dtype"] == "float32"
    assert "device" not in found.base
    assert found.versions == origin.versions()


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ({"step": 6}, "stopped by nobody at step 6"),
        ({"step": 3}, "stopped by nobody at step 3; evaluated once more before it heard, at step 6"),
        ({}, "stopped by nobody at step 6"),
    ],
)
def test_a_stopped_trial_says_at_which_result_it_was_stopped(
    last: dict[str, Any], reason: str, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pack may have written one evaluation more by then, which is the one that the record and the adapter are of."""
    found = end(sweep, monkeypatch, lambda recorder, config: recorder.on_trial_complete(0, [], Tuned(config, last)))
    assert (found.status, found.reason, found.steps) == ("pruned", reason, 6)


def test_a_pack_that_hangs_holds_up_all_its_records_once(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 4):
        shutil.copytree(sweep / "trials" / "t0000", sweep / "trials" / f"t000{number}")
    monkeypatch.setattr(timeouts, "SLOT_RELEASE_S", 1.0)
    waited = []

    def end_all(recorder: Recorder, config: dict[str, Any]) -> None:
        for number in range(4):
            recorder.end({**config, "trial_id": f"t000{number}"}, "completed", "")

    def get(_: Any, timeout: float) -> None:
        waited.append(timeout)
        time.sleep(timeout)
        raise ray.exceptions.GetTimeoutError

    end(sweep, monkeypatch, end_all, get)
    assert len(waited) == 4
    assert sum(waited) < 1.5
    assert len(list(sweep.glob("trials/*/record.json"))) == 4


def test_the_revisions_of_data_sets_are_in_the_record_where_there_are_any(sweep: Path) -> None:
    found = prepared(load_spec(sweep / "sweep.yaml"))
    assert "revision" not in provenance(found)
    revisions = found.dataset.summary.revisions
    revisions["owner/name"] = "1" * 40
    assert provenance(found)["revision"] == "1" * 40
    revisions["other/name"] = "2" * 40
    assert provenance(found)["revision"] == f"other/name@{'2' * 40}, owner/name@{'1' * 40}"


def test_a_record_counts_the_copies_in_its_data(tmp_path: Path, tiny_base: Path) -> None:
    """And says nothing where there are none, as records of before."""
    path = tmp_path / "rows.jsonl"
    once = "".join(f'{{"prompt": "{n}", "completion": "{n}"}}\n' for n in range(6))
    for text, count in ((once, None), (once + once, 6)):
        path.write_text(text)
        assert (
            provenance(prepared(small_spec(tmp_path / "small", tiny_base, path, "none", "float32", {}))).get("copies")
            == count
        )


def test_a_twin_has_the_files_of_the_first_and_says_whose_they_are(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one that was never evaluated are none."""

    class Searcher(Silent):
        def finish(self, trial_id: str, status: Any, *_: Any) -> list[Twin]:
            named = {"completed": ["t0001"], "interrupted": ["t0002"]}[status]
            return [Twin({"trial_id": each, "config": others}, trial_id, status, "as the first") for each in named]

    others: dict[str, Any] = {}
    told: list[Twin] = []

    def end_both(recorder: Recorder, config: dict[str, Any]) -> None:
        others.update({**config["config"], "alpha": 2 * config["config"]["alpha"]})
        recorder._searcher = Searcher()  # type: ignore[assignment]
        recorder.tell = told.append
        recorder.end(config, "completed", "")
        recorder.end({**config, "trial_id": "t0009"}, "interrupted", "a person said so")
        assert recorder.counts == {"completed": 2, "interrupted": 2}

    first = end(sweep, monkeypatch, end_both)
    folders = sweep / "trials" / "t0000", sweep / "trials" / "t0001"
    found = record.read_record(folders[1])
    assert (found.same_as, found.status, found.seconds) == ("t0000", "completed", 0.0)
    assert found.reason == "same configuration as t0000, whose result is used"
    assert found.config["alpha"] == 2 * first.config["alpha"]
    assert (found.eval_loss, found.steps, found.versions) == (first.eval_loss, first.steps, first.versions)
    assert json.loads((folders[1] / record.CONFIG).read_text()) == found.config
    for name in (record.METRICS, record.EVAL, f"{record.ADAPTER}/adapter_model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    path = sweep / "trials" / "t0000"
    steps = [line.step for line in record.read_metrics(path)]
    assert {
        trial: [step for step, _ in curve] for trial, curve in look(sweep).curves(Objective()).items() if curve
    } == {"t0000": steps}
    write_json(path / record.CONFIG, {**first.config, "confirms": "t0008"})
    assert not any(look(sweep).curves(Objective()).values())
    left = record.read_record(sweep / "trials" / "t0002")
    assert (left.same_as, left.status, left.reason, left.eval_loss) == (None, "interrupted", "as the first", None)
    assert [twin.suggestion["trial_id"] for twin in told] == ["t0001", "t0002"]


def test_tokens_of_an_earlier_run_are_those_that_trials_were_trained_on(finished: Path, sweep: Path) -> None:
    """Each trial's last word, whether it has ended or not; a copy of another's files costs nothing."""
    trials = sweep / "trials"
    for name in ("t0001", "t0002"):
        shutil.copytree(finished / "trials" / "t0000", trials / name)
    copied = record.read_record(trials / "t0002")
    record.write_record(trials / "t0002", replace(copied, same_as="t0000"))
    last = record.read_metrics(trials / "t0000")[-1].tokens
    assert last > 0
    past = look(sweep)
    assert past.tokens == {"t0000": last, "t0001": last}
    assert past.curves(Objective()).keys() == {"t0000", "t0001"}


def test_checkpoints_of_rungs_go_with_the_sweep_that_has_ended(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = sweep / "trials" / "t0000" / record.rung(16)
    for ending, name in ((("interrupted", "the disk is full"), "pbt"), (None, "pbt"), (None, "pb2")):
        rung.write_bytes(b"")
        (sweep / "trials" / "t0000" / record.RECORD).unlink(missing_ok=True)

        def how(recorder: Recorder, config: dict[str, Any], ending: Any = ending, name: str = name) -> None:
            recorder.ending, recorder._stopped_by = ending, name
            complete(recorder, config)

        end(sweep, monkeypatch, how)
        assert rung.exists() == (ending is not None)
