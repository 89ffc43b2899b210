"""A sweep has one base and one set of data from its first trial to its last, and to its exports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_sweep import small_sweep
from typer.testing import CliRunner

from bitlora.base.describe import describe_base
from bitlora.files import record
from bitlora.files.origin import Origin
from sweeps.cli.app import app
from sweeps.cli.trial_folder import open_trial
from sweeps.driver.prepare import Prepared, _look
from sweeps.driver.resume import BASE, DATA, as_begun, began_with, begun_in, cannot_resume, changed, grown
from sweeps.search.cloning.population import attribute
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import open_study
from sweeps.spec.keys.confirm import ConfirmConfig
from sweeps.spec.spec import Spec, dump_spec, load_spec

THEN, NOW = "1" * 40, "2" * 40


@pytest.fixture
def spec(write_spec) -> Spec:
    return load_spec(write_spec())


@pytest.fixture
def prepared(spec: Spec) -> Prepared:
    found = _look(spec)
    assert isinstance(found, Prepared)
    return found


def begin(folder: Path, spec: Spec, **attributes: str) -> None:
    """Leave what a sweep begins with: its spec, and a study that remembers."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_spec(spec))
    study = open_study(spec, folder / "study.journal")
    for name, value in attributes.items():
        study.set_user_attr(name, value)


def test_a_sweep_writes_down_what_it_found(spec: Spec, prepared: Prepared, tmp_path: Path) -> None:
    pinned = prepared.pinned(spec)
    assert pinned.base.revision == prepared.base.revision == describe_base(spec.base).revision
    assert pinned.data.revision is None  # a file has none
    revisions = prepared.dataset.summary.revisions
    revisions["owner/name"] = THEN
    assert prepared.pinned(spec).data.revision == THEN
    revisions["other/name"] = NOW
    pinned = prepared.pinned(spec)
    assert pinned.data.revision == {"owner/name": THEN, "other/name": NOW}
    path = tmp_path / "pinned.yaml"
    path.write_text(dump_spec(pinned))
    assert load_spec(path) == pinned


def test_a_sweep_that_goes_on_has_what_it_began_with(spec: Spec, prepared: Prepared, tmp_path: Path) -> None:
    """Whatever a hub has by now; and another revision than then is refused once it is known what it comes to."""
    begun = prepared.pinned(spec)
    begun = begun.model_copy(update={"data": begun.data.model_copy(update={"revision": THEN})})
    folder = tmp_path / "quick"
    begin(folder, begun, **began_with(prepared))
    assert cannot_resume(spec, folder) == []
    assert as_begun(spec, folder).base.revision == prepared.base.revision
    assert as_begun(spec, folder).data.revision == THEN
    given = spec.model_copy(update={"base": spec.base.model_copy(update={"revision": "a-branch"})})
    assert cannot_resume(given, folder) == []
    assert as_begun(given, folder).base.revision == "a-branch"
    assert changed(prepared, folder, "quick") == []
    moved = replace(prepared, base=replace(prepared.base, revision=NOW, config_digest=""))
    [line] = changed(moved, folder, "quick")
    assert line.startswith(
        f"base.model: the model changed since the sweep in quick began (was {prepared.base.revision}"
    )


def test_what_a_sweep_was_warmed_by_may_be_gone_when_it_goes_on(spec: Spec, tmp_path: Path) -> None:
    """Tighter bounds and budgets than it began with are refused."""
    folder = tmp_path / "quick"
    search = {"sampler": "tpe", "from_": ["runs/earlier"], "hours": 2.0}
    warm = spec.model_copy(update={"search": spec.search.model_copy(update=search)})
    begin(folder, warm)
    assert "from:" in (folder / "sweep.yaml").read_text()
    assert load_spec(folder / "sweep.yaml").search.from_ == ["runs/earlier"]
    cold = warm.model_copy(update={"search": warm.search.model_copy(update={"from_": []})})
    assert cannot_resume(cold, folder) == []
    shorter = warm.model_copy(update={"search": warm.search.model_copy(update={"hours": 1.0})})
    (line,) = cannot_resume(shorter, folder)
    assert line.startswith("search.hours: 1, but the sweep in ")


def searching(spec: Spec, **search: Any) -> Spec:
    return spec.model_copy(update={"search": spec.search.model_copy(update=search)})


def test_trials_alone_do_not_let_a_search_go_on_that_a_bound_has_ended(spec: Spec, tmp_path: Path) -> None:
    folder = tmp_path / "quick"
    bounded = searching(spec, trials=8, sampler="random", tokens=100)
    begin(folder, bounded)
    searcher = OptunaSearcher(bounded, folder / "study.journal")
    assert searcher.suggest("tune") is not None
    searcher.finish("t0000", "completed", 2.0)
    trial = folder / "trials" / "t0000"
    trial.mkdir(parents=True)
    numbers = {"train_loss": 2.0, "eval_loss": 2.0, "learning_rate": 0.1, "seconds": 1.0}
    record.append_metrics(trial, record.Metrics(step=4, tokens=120, **numbers))
    (line,) = cannot_resume(searching(bounded, trials=11), folder)
    right = "give --resume --set search.tokens=N with more than 120, or null"
    assert line == (f"search.trials: 11, but search.tokens (100) are spent: trials were trained on 120; {right}")
    for asked in ({}, {"trials": 6}, {"tokens": 120}, {"trials": 11, "tokens": 121}, {"trials": 11, "tokens": None}):
        assert cannot_resume(searching(bounded, **asked), folder) == []


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_nobody_joins_a_population_that_has_gone_through_a_rung(spec: Spec, tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "quick"
    scheduler = spec.scheduler.model_copy(update={"name": name})
    population = searching(spec, trials=8).model_copy(update={"scheduler": scheduler})
    more = searching(population, trials=11)
    begin(folder, population)
    assert cannot_resume(more, folder) == []  # all of them would begin together
    open_study(population, folder / "study.journal").set_user_attr(*attribute(8, {}).popitem())
    (line,) = cannot_resume(more, folder)
    assert line == (
        f"search.trials: 11, but the 8 members of its population ({name}) have gone through rungs already, where no others "
        f"can join them; give a new sweep that has search.from: [{spec.place}]"
    )
    confirmed = population.model_copy(update={"confirm": ConfirmConfig(top=2)})
    for asked in (population, searching(population, trials=4), confirmed):
        assert cannot_resume(asked, folder) == []


def test_a_sweep_that_was_begun_without_confirm_may_get_it_and_keeps_it(spec: Spec, tmp_path: Path) -> None:
    folder = tmp_path / "quick"
    begin(folder, spec)
    top = spec.model_copy(update={"confirm": ConfirmConfig(top=2)})
    assert as_begun(spec, folder).confirm is None
    assert cannot_resume(top, folder) == []
    given = as_begun(top, folder)
    assert given.confirm == ConfirmConfig(top=2, added=True)
    assert given.kept_back == {"test_rows": None, "added": True}
    larger = grown(given, folder)
    assert larger is not None
    (folder / "sweep.yaml").write_text(dump_spec(larger))
    assert load_spec(folder / "sweep.yaml") == given
    # from now on it has that, whoever goes on with it
    for again in (spec, top, given):
        assert cannot_resume(again, folder) == []
        assert as_begun(again, folder) == given
        assert grown(as_begun(again, folder), folder) is None
    (line,) = cannot_resume(spec.model_copy(update={"confirm": ConfirmConfig(top=3)}), folder)
    assert line == f"confirm.top: 3, but the sweep in {spec.place} was begun with 2; a sweep goes on as it was begun"


def test_a_sweep_that_was_begun_with_confirm_keeps_its_rows(spec: Spec, tmp_path: Path) -> None:
    begun = spec.model_copy(update={"confirm": ConfirmConfig()})
    begin(tmp_path / "quick", begun)
    assert as_begun(begun, tmp_path / "quick") == begun
    assert [line.split(":")[0] for line in cannot_resume(spec, tmp_path / "quick")] == ["confirm.seeds", "confirm.top"]


def test_rows_to_confirm_on_that_are_others_by_now_are_refused(spec: Spec, prepared: Prepared, tmp_path: Path) -> None:
    summary = replace(prepared.dataset.summary, added="1" * 16)
    begin(tmp_path / "quick", spec, **began_with(replace(prepared, dataset=replace(prepared.dataset, summary=summary))))
    assert changed(prepared, tmp_path / "quick", "quick") == []  # it goes on without
    other = replace(prepared.dataset, summary=replace(summary, added="2" * 16))
    (line,) = changed(replace(prepared, dataset=other), tmp_path / "quick", "quick")
    assert line.startswith(f"confirm: the rows to confirm on changed since the sweep in quick began (was {'1' * 16}")


def test_a_sweep_of_before_there_were_revisions_goes_on(spec: Spec, prepared: Prepared, tmp_path: Path) -> None:
    """Its spec has no such keys, and of a folder it knew the configuration alone."""
    folder = tmp_path / "quick"
    began = {DATA: prepared.dataset.summary.fingerprint, BASE: prepared.base.config_digest}
    begin(folder, spec, **began)
    now = (folder / "sweep.yaml").read_text().splitlines(keepends=True)
    then = [line for line in now if line.strip().split(":")[0] not in ("revision", "patience")]
    assert len(then) == len(now) - 5  # base, data; train, search, resources
    (folder / "sweep.yaml").write_text("".join(then))
    assert load_spec(folder / "sweep.yaml") == spec
    assert cannot_resume(spec, folder) == []
    assert as_begun(spec, folder) == spec
    assert changed(prepared, folder, "quick") == []
    other = replace(prepared, base=replace(prepared.base, config_digest="another"))
    assert len(changed(other, folder, "quick")) == 1


def test_what_a_sweep_was_computed_in_is_known_when_it_goes_on(tmp_path: Path) -> None:
    assert begun_in(tmp_path) is None
    for number, origin in enumerate((None, Origin(dtype="bfloat16"))):
        trial = tmp_path / "trials" / f"t{number:04}"
        trial.mkdir(parents=True)
        record.write_scores(trial / record.EVAL, ["a"], [1.0], [1], [1], origin)
    (tmp_path / "trials" / "t0000" / record.EVAL).write_bytes(b"broken")
    assert begun_in(tmp_path) == "bfloat16"


@pytest.fixture
def trained(tiny_base: Path, arithmetic: Path, tmp_path: Path) -> Path:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    return small_sweep(tmp_path / "small", base, arithmetic, {"t0000": {}})


def test_an_export_has_the_base_of_the_record(trained: Path, tmp_path: Path) -> None:
    place = trained / "trials" / "t0000"
    written = json.loads((place / "record.json").read_text())
    with open_trial(str(place)) as trial:
        assert trial.base.revision == written["base"]["revision"]
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    ended = CliRunner().invoke(app, ["export", str(place), "--to", "packed", "--out", str(tmp_path / "out")])
    assert ended.exit_code == 2, ended.output
    assert f"base.revision: {tmp_path}/base is not {written['base']['revision']}: what it holds" in ended.output
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
def test_packs_and_exports_load_the_revision_that_a_tag_was_when_the_sweep_began(
    bitlora, write_spec, tiny_base, tmp_path
):
    """Of a model in the hub's cache, whose `main` is other weights by now, as the tag is after the sweep."""
    model = tmp_path / "hub" / "models--owner--name"
    for commit in (THEN, NOW):
        shutil.copytree(tiny_base, model / "snapshots" / commit)
    weights = {name: tensor.flip(0) for name, tensor in load_file(tiny_base / "model.safetensors").items()}
    save_file(weights, model / "snapshots" / NOW / "model.safetensors", metadata={"format": "pt"})
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NOW)
    (model / "refs" / "v1").write_text(THEN)
    bitlora.env |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    one = {"trials": 1, "space": {}}
    ended = bitlora("sweep", write_spec(base={"model": "owner/name", "revision": "v1"}, search=one))
    assert ended.code == 0, ended.out + ended.err
    place = tmp_path / "quick" / "trials" / "t0000"
    written = json.loads((place / "record.json").read_text())
    assert written["base"]["revision"] == THEN == load_spec(tmp_path / "quick" / "sweep.yaml").base.revision

    (model / "refs" / "v1").write_text(NOW)
    same = bitlora("export", place, "--to", "merged", "--out", tmp_path / "same")
    assert same.code == 0, same.err
    assert "checked: eval loss" in same.out
    written["base"]["revision"] = NOW
    (place / "record.json").write_text(json.dumps(written))
    other = bitlora("export", place, "--to", "merged", "--out", tmp_path / "other")
    assert other.code == 1  # it does not do what the trial did
