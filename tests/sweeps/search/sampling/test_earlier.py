"""`search.from`: the sampler knows what earlier sweeps came to, and they are no trials of this one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from bitlora.base.info import BaseInfo, LayerShape
from bitlora.config.trial import TrialConfig, trial_config
from bitlora.files.record import Record, write_record
from sweeps.search.bounds import Bounds
from sweeps.search.sampling.earlier import EarlierTrial, Likeness, earlier_trials
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import Spec, dump_spec

SHAPES = (LayerShape("model.layers.0.q_proj", 100, 50),)
BASE = BaseInfo("base", "nf4", "abc", SHAPES, (SHAPES[0].name,), 96, 1000)
SPACE: dict[str, Any] = {
    "quantizer": ["none", "binary"],
    "rank": [4, 8, 16],
    "learning_rate": {
        "by": "quantizer",
        "none": {"low": 1e-4, "high": 1e-2, "log": True},
        "default": {"low": 1e-4, "high": 1e-2, "log": True},
    },
}


def spec(places: list[str], sampler: str = "tpe", **sections: Any) -> Spec:
    search = {"space": SPACE, "from": places, "sampler": sampler, **sections.pop("search", {})}
    data = {"name": "s", "base": {"model": "base"}, "data": {"source": "b"}, "search": search}
    return Spec.model_validate({**data, **sections})


def trial(sweep: Spec, chosen: dict[str, Any]) -> TrialConfig:
    return trial_config(sweep.adapter, sweep.train, 100, sweep.search.seed, chosen)


def likeness(sweep: Spec) -> Likeness:
    return Likeness(sweep, BASE, "rows", lambda chosen: trial(sweep, chosen))


def point(rate: float, quantizer: str = "none", rank: int = 8) -> dict[str, Any]:
    return {"quantizer": quantizer, "rank": rank, "learning_rate": rate}


class Earlier:
    """The folder of an earlier sweep, written by hand."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder, self._spec, self._count = folder, spec([], **sections), 0
        folder.mkdir()
        (folder / "sweep.yaml").write_text(dump_spec(self._spec), encoding="utf-8")

    def add(self, chosen: dict[str, Any], loss: float = 2.0, **other: Any) -> None:
        """A completed trial, but for what is `other`."""
        name = f"t{self._count:04d}"
        config = trial(self._spec, chosen).model_dump(mode="json")
        found = Record(
            trial_id=name, status="completed", reason="", config=config, eval_loss=loss, steps=32, tokens=1, seconds=1.0,
            adapter_params=1, adapter_bytes=1, base={"model": "base", "quantization": "nf4", "revision": "abc"},
            data={"source": "b", "fingerprint": "rows"}, versions={}, test_loss=None,
        )  # fmt: skip
        (self.folder / "trials" / name).mkdir(parents=True)
        write_record(self.folder / "trials" / name, replace(found, **other))
        self._count += 1


def known(sweep: Spec) -> list[tuple[dict[str, Any], float]]:
    found, errors = earlier_trials(likeness(sweep))
    assert errors == []
    return [(one.chosen, one.value) for one in found]


def test_those_that_completed_and_lie_in_the_space_are_known(tmp_path: Path) -> None:
    one = Earlier(tmp_path / "one")
    one.add(point(1e-3), 2.5)
    one.add(point(1e-3, "binary"), 2.25)
    one.add({**point(1e-3), "seed": 7}, 2.75)  # seeds apart
    one.add(point(1e-3, rank=5), 1.0)
    one.add(point(2e-2), 1.0)
    one.add(point(1e-3, "ternary"), 1.0)
    one.add({**point(1e-3), "dropout": 0.5}, 1.0)
    one.add({**point(1e-3), "targets": "q_proj"}, 1.0)
    one.add(point(1e-3), 1.0, status="pruned")
    one.add(point(1e-3), 1.0, status="diverged")
    one.add(point(1e-3), eval_loss=None)
    one.add(point(1e-3), 1.0, same_as="t0000")
    one.add(point(1e-3), 1.0, schedule=[{"until": 8, "learning_rate": 1e-2}])
    one.add(point(1e-3), 1.0, config={**trial(spec([]), point(1e-3)).model_dump(mode="json"), "confirms": "t0000"})
    one.add(point(1e-3), 1.0, config={"quantizer": "of a later version"})
    two = Earlier(tmp_path / "two")
    two.add(point(2e-3), 2.0)
    (two.folder / "trials" / "t0007").mkdir()
    (two.folder / "trials" / "t0007" / "record.json").write_text("{")
    places = [str(one.folder), str(two.folder)]
    assert known(spec(places)) == [
        (point(1e-3), 2.5),
        (point(1e-3, "binary"), 2.25),
        (point(1e-3), 2.75),
        (point(2e-3), 2.0),
    ]


@pytest.mark.parametrize(
    ("sections", "count"),
    [
        ({}, 1),
        ({"train": {"steps": 32, "micro_batch": 1}}, 1),
        ({"train": {"steps": 32, "eval_every": 4}, "scheduler": {"name": "none"}}, 1),
        ({"train": {"steps": 64}}, 0),
        ({"train": {"weight_decay": 0.1}}, 0),
        ({"adapter": {"alpha": 32}}, 0),
        ({"base": {"model": "base", "targets": "mlp"}}, 0),
    ],
)
def test_what_is_not_searched_has_to_be_the_same(tmp_path: Path, sections: dict[str, Any], count: int) -> None:
    """Steps among it; how often one evaluates, and in what pieces a batch is computed, changes no number."""
    one = Earlier(tmp_path / "one", **sections)
    one.add(point(1e-3))
    assert len(known(spec([str(one.folder)]))) == count


def errors(tmp_path: Path, *places: str) -> list[str]:
    lines = earlier_trials(likeness(spec([str(tmp_path / place) for place in places])))[1]
    return [line.replace(f"{tmp_path}/", "") for line in lines]


def test_other_bases_and_data_are_refused_in_a_line_each(tmp_path: Path) -> None:
    good = {"model": "base", "quantization": "nf4", "revision": "abc"}
    Earlier(tmp_path / "good").add(point(1e-3), base=good)
    for name, other in (("base", {"revision": "xyz"}), ("bare", {"quantization": "none"})):
        one = Earlier(tmp_path / name)
        one.add(point(1e-3), base=good | other)
        one.add(point(2e-3), base=good | other)
    Earlier(tmp_path / "rows").add(point(1e-3), data={"source": "c", "fingerprint": "others"})
    (tmp_path / "empty").mkdir()
    broken = Earlier(tmp_path / "broken")
    (broken.folder / "sweep.yaml").write_text("base: {model: a}\n")
    (no_data,) = errors(tmp_path, "broken")
    assert no_data.startswith("search.from: broken: its sweep.yaml cannot be read: ")
    assert errors(tmp_path, "good", "base", "bare", "rows", "empty") == [
        "search.from: base: its base is base (nf4, xyz), and this sweep's base (nf4, abc); give sweeps over the same base",
        "search.from: bare: its base is base (none, abc), and this sweep's base (nf4, abc); give sweeps over the same base",
        "search.from: rows: its data are not this sweep's: c (others), and here rows; give sweeps over the same rows",
        "search.from: empty: there is no sweep; give the folder of one, with its sweep.yaml",
    ]
    (nowhere,) = errors(tmp_path, "nowhere")
    assert nowhere == "search.from: nowhere: there is no sweep; give the folder of one, with its sweep.yaml"
    assert not (tmp_path / "nowhere").exists()


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))


def loss(config: dict[str, Any]) -> float:
    best = {"none": 4e-4, "binary": 4e-3}[config["quantizer"]]
    return 2.0 + math.log10(config["learning_rate"] / best) ** 2 + 0.05 * (config["rank"] != 16)


def search(one: OptunaSearcher) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while (suggestion := one.suggest(f"tune{len(found)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        found.append(suggestion["config"])
        one.finish(suggestion["trial_id"], "completed", loss(suggestion["config"]))
    return found


def test_a_warm_sweep_begins_where_the_earlier_one_was_good(tmp_path: Path) -> None:
    """From its first trial on; what the sampler knows is in no journal, and no trial of the sweep."""
    sweep = spec([], search={"trials": 8, "startup": 4})
    grid = [point(10 ** (-4 + 0.25 * n), q, r) for n in range(0, 9, 2) for q in ("none", "binary") for r in (4, 8, 16)]
    earlier = [EarlierTrial(chosen, loss(chosen)) for chosen in grid]
    firsts: dict[str, list[float]] = {"warm": [], "cold": []}
    for seed in range(3):
        seeded = sweep.model_copy(update={"search": sweep.search.model_copy(update={"seed": seed})})
        for name, given in (("warm", earlier), ("cold", [])):
            folder = tmp_path / f"{name}{seed}"
            configs = search(OptunaSearcher(seeded, folder / "study.journal", earlier=given))
            firsts[name] += [loss(config) for config in configs[:4]]
            told = study(folder).trials
            assert [each.user_attrs["trial_id"] for each in told] == [f"t{number:04d}" for number in range(8)]
            assert {each.state for each in told} == {TrialState.COMPLETE}
    assert sum(firsts["warm"]) / 12 - 2 < (sum(firsts["cold"]) / 12 - 2) / 2


def test_with_bounds_both_are_seen(tmp_path: Path) -> None:
    """Those that the earlier sweep trained and this one may not are known too; none of their like is a trial."""
    sweep = spec([], search={"trials": 6, "where": {"adapter_params": {"max": 1200}}})
    earlier = [EarlierTrial(point(1e-3, rank=rank), 2.0 - 0.01 * rank) for rank in (4, 8, 16, 16, 16)]
    one = OptunaSearcher(sweep, tmp_path / "study.journal", bounds=Bounds(sweep, BASE), earlier=earlier)
    assert {config["rank"] for config in search(one)} <= {4, 8}
    assert len(study(tmp_path).trials) == 6
