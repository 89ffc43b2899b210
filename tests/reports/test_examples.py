"""Every number of the example reports is the one that tests/helpers/recount/recount.py computes from the sweep's files."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from constructed import write_base, write_run
from printed_page import NUMBER, Page
from recount import recount
from sweep_files import Sweep

from reports.report import write_report

EXAMPLES = Path(__file__).parents[2] / "reports" / "examples"
DATA = {"source": "pydoc", "train_rows": 2585, "eval_rows": 40}
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/sweep.yaml"))


@pytest.mark.skipif(not FOLDERS, reason="reports/examples holds no sweep's folder")
@pytest.mark.parametrize("example", FOLDERS, ids=lambda path: path.name)
def test_every_number_of_the_example_is_the_recomputed_one(example: Path) -> None:
    assert recount(example) == []


def means(loss: float, phase: float) -> list[float]:
    """The mean losses of 40 examples, by no simple rule."""
    return [loss + math.sin(1.7 * index + phase) / 5 + math.cos(index * phase) / 50 for index in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `sweep` is kept once it has been made: its figures take seconds to draw."""
    return tmp_path_factory.mktemp("made") / "quickstart"


@pytest.fixture
def sweep(folder: Path, add, made: Path, tmp_path: Path) -> Path:
    """A sweep with stopped, failed and confirming trials, twins, and two that are close, and its report."""
    if not made.exists():
        construct(folder, add)
        write_report([folder])
        shutil.copytree(folder, made)
    return shutil.copytree(made, tmp_path / "constructed")


def construct(folder: Path, add) -> None:

    def trial(name: str, loss: float, phase: float, same_as: str | None = None, **config) -> None:
        losses, record = means(loss, phase), {"data": DATA, "same_as": same_as}
        add(name, eval_loss=sum(losses) / len(losses), scores=losses, record=record, **config)

    trial("t0000", 2.61, 0.1, quantizer="none", rank=16, learning_rate=2e-4)
    trial("t0001", 2.64, 0.3, quantizer="ternary", rank=32, learning_rate=1.234e-3)
    trial("t0002", 2.69, 0.2, quantizer="binary", rank=8, learning_rate=9.876e-4)
    add("t0003", "pruned", eval_loss=2.95, steps=8, quantizer="binary", rank=16, record={"data": DATA})
    part = means(2.9, 0.4)[:16]
    stopped = {"data": DATA, "eval_rows": 16}
    add("t0012", "pruned", eval_loss=sum(part) / 16, steps=8, quantizer="binary", rank=16, scores=part, record=stopped)
    add("t0004", "failed", steps=0, quantizer="none", rank=32, record={"data": DATA, "reason": "pack lost"})
    trial("t0013", 2.61, 0.1, "t0000", quantizer="none", rank=16, alpha=32.0, learning_rate=2e-4)
    add("t0014", "pruned", eval_loss=2.95, steps=8, quantizer="binary", record={"data": DATA, "same_as": "t0003"})
    trial("t0005", 2.7, 0.5, quantizer="none", rank=8, learning_rate=4e-3)
    for number in range(28):  # enough to say what mattered
        rank, rate = (8, 16, 32)[number % 3], 2e-4 * 1.1**number
        trial(f"u{number:04d}", 2.72 + number / 90, number / 7, quantizer="binary", rank=rank, learning_rate=rate)
    for number, (name, seed) in enumerate(((name, seed) for seed in (1, 2, 3) for name in ("t0000", "t0001")), 6):
        of = json.loads((folder / "trials" / name / "config.json").read_text()) | {"seed": seed, "confirms": name}
        shift = seed**2 / 400 * (1 if name == "t0000" else -1)
        tests = means(2.6 + shift, 0.1 * seed + (0.05 if name == "t0000" else 0.2))
        record = {"data": DATA, "test_loss": sum(tests) / len(tests)}
        add(f"t{number:04d}", eval_loss=2.6 + shift, test=tests, record=record, **of)
    write_base(folder, means(3.3, 0.7), means(3.2, 0.4))
    spec = (folder / "sweep.yaml").read_text() + "confirm: {top: 2, seeds: 3, margin: {share: 0.05, of: gain}}\n"
    (folder / "sweep.yaml").write_text(spec)
    write_run(folder)


@pytest.fixture(params=[None, *FOLDERS], ids=lambda path: path.name if path else "constructed")
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that may be changed."""
    if request.param is None:
        return request.getfixturevalue("sweep")
    return shutil.copytree(request.param, tmp_path / "copy")


def test_it_finds_nothing_to_say_of_a_report_as_it_was_made(sweep: Path) -> None:
    assert recount(sweep) == []


def test_a_digit_that_is_changed_anywhere_on_the_page_is_noticed(copy: Path) -> None:
    path = copy / "report" / "report.md"
    text = path.read_text()
    code = Page(text, [trial.name for trial in (copy / "trials").iterdir()]).claimed
    numbers = [match for match in NUMBER.finditer(text) if not all(code[match.start() : match.end()])]
    assert len(numbers) > 150
    trials = Sweep(copy)  # it is the page that changes
    for match in numbers[:: len(numbers) // 12]:
        at = max(index for index in range(*match.span()) if text[index].isdigit())
        path.write_text(f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}")
        assert recount(copy, trials), text[max(0, at - 60) : at + 20]


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"nats \((?:\d\.\d)(\d) % of", id="the verdict's per cent"),
        pytest.param(r"(?s)## Quantizers.*?\d\.\d{3}(\d) to ", id="the quantizers' first interval"),
        pytest.param(r"Stopping saved (\d)", id="the steps saved"),
    ],
)
def test_a_changed_digit_is_noticed(copy: Path, pattern: str) -> None:
    path = copy / "report" / "report.md"
    text = path.read_text()
    match = re.search(pattern, text)
    if match is None and copy.name == "copy":
        pytest.skip("this example has none")
    assert match is not None
    path.write_text(f"{text[: match.start(1)]}{(int(match[1]) + 1) % 10}{text[match.end(1) :]}")
    assert recount(copy)


def test_a_number_that_nothing_computes_is_noticed(copy: Path) -> None:
    path = copy / "report" / "report.md"
    path.write_text(path.read_text().replace("## Leaderboard\n", "## Leaderboard\n\nIt is 42 better.\n"))
    (line,) = recount(copy)
    assert "42 is not accounted for" in line


def best(folder: Path) -> Path:
    """The trial that leads the search."""
    table = pd.read_csv(folder / "report" / "trials.csv", index_col="trial_id")
    return folder / "trials" / str(table["place"].idxmin())


def test_a_changed_eval_loss_is_noticed(copy: Path) -> None:
    path = best(copy) / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"eval_loss": record["eval_loss"] + 1e-3}))
    assert recount(copy)


@pytest.mark.parametrize("split", ["eval", "test"])
def test_the_changed_loss_of_an_example_is_noticed(copy: Path, split: str) -> None:
    paths = sorted(copy.glob(f"trials/*/{split}.parquet"))
    if not paths:
        pytest.skip("no trial confirms another")
    scores = pd.read_parquet(paths[0])
    scores.loc[3, "loss"] += 0.5
    scores.to_parquet(paths[0])
    assert recount(copy)


def test_a_changed_csv_is_noticed(copy: Path) -> None:
    names = ["figures/learning-curves.csv", "tables/pareto.csv"]
    some = [f"figures/{name}.csv" for name in ("gaps", "size-gaps", "slices", "importances")]  # not in every sweep
    names += [name for name in some if (copy / "report" / name).exists()]
    assert copy.name != "constructed" or len(names) == 6
    trials = Sweep(copy)
    for name in names:
        path = copy / "report" / name
        text = path.read_text()
        number = re.search(r"\d\.\d\d(\d)", text)
        assert number is not None
        path.write_text(f"{text[: number.start(1)]}{(int(number[1]) + 1) % 10}{text[number.end(1) :]}")
        assert recount(copy, trials), name
        path.write_text(text)
