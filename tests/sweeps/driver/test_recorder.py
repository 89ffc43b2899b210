"""The record of a trial: of what only its pack knew, what the pack wrote; of the rest, what the driver knows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from small_sweep import small_spec, small_sweep

from bitlora.base.describe import describe_base
from bitlora.base.load import load_tokenizer
from bitlora.data.split import prepare_data
from bitlora.files import origin, record
from bitlora.files.opening import open_storage
from bitlora.files.origin import Origin
from sweeps.driver.prepare import Prepared
from sweeps.driver.recorder import Recorder, provenance
from sweeps.spec.spec import Spec, load_spec

ELSEWHERE = Origin(
    dtype="bfloat16", device="NVIDIA A10G", host="gpu-1", versions={"torch": "2.13.0+cu130", "transformers": "9.9"}
)


class Silent:
    """Pool and searcher: every call of every method is taken, and comes to nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> None:
        return None


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


def end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> record.Record:
    """Have the trial end as completed; its record."""
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    spec = load_spec(folder / "sweep.yaml")
    found = prepared(spec)
    with open_storage(str(folder)) as storage:
        recorder = Recorder(storage, Silent(), found, Silent(), "nobody")  # type: ignore[arg-type]
        config = found.trial(spec, {}).model_dump()
        recorder.end({"trial_id": "t0000", "config": config}, "completed", "")
        recorder.close()
    return record.read_record(folder / "trials" / "t0000")


def test_versions_device_and_dtype_are_the_packs(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = end(sweep, monkeypatch)
    assert found.versions == ELSEWHERE.versions != origin.versions()
    assert (found.base["dtype"], found.base["device"]) == ("bfloat16", "NVIDIA A10G")
    assert found.base["revision"] == describe_base(load_spec(sweep / "sweep.yaml").base).revision
    assert set(vars(type(found))["__slots__"]) >= {"base", "data", "versions"}


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
            provenance(prepared(small_spec(tmp_path / "small", tiny_base, path, "none", "float32"))).get("copies")
            == count
        )
