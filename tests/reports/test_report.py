from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest
from constructed import spread, write_run

from reports.load.sweep import load_sweep
from reports.report import report as made
from reports.report import write_report
from reports.writers.markdown import markdown


@pytest.fixture
def eight(add):
    """Three quantizers with a clear winner, and every way to end."""
    add("t0000", eval_loss=2.7313, quantizer="none", rank=32, learning_rate=2e-4)
    add("t0001", "pruned", eval_loss=2.9585, steps=8, quantizer="none", rank=16)
    add("t0002", eval_loss=2.7451, quantizer="binary", rank=8, learning_rate=6.75e-4)
    add("t0003", eval_loss=2.7137, quantizer="none", rank=8, learning_rate=1.5e-3)
    add("t0004", "diverged", quantizer="ternary", rank=8, record={"reason": "train loss is not finite at step 11"})
    add("t0005", "pruned", eval_loss=2.8949, steps=16, quantizer="ternary", rank=16, learning_rate=2.65e-3)
    add("t0006", "failed", steps=0, quantizer="binary", rank=32, record={"reason": "pack lost"})
    add("t0007", eval_loss=2.7320, quantizer="binary", rank=32, learning_rate=2.5e-3)


def report(folder: Path) -> str:
    return markdown(made(load_sweep(folder)).document)


def section(page: str, title: str) -> list[str]:
    """The lines of a section below its title, without the empty ones and those that fold it away."""
    found = next(part for part in re.split(r"^## ", page, flags=re.M) if part.startswith(f"{title}\n"))
    return [line for line in found.splitlines()[1:] if line and not re.match("</?(details|summary)>", line)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_printed_numbers_against_a_reading_of_the_records_alone(folder, eight):
    page = report(folder)
    records = pd.json_normalize([json.loads(p.read_text()) for p in folder.glob("trials/*/record.json")])
    full = records[(records["status"] == "completed") & (records["steps"] == records["config.steps"])]
    best = full.groupby("config.quantizer")["eval_loss"].min().sort_values()
    assert f"eval loss of {best.iloc[0]:.4f} nats" in page
    share = 100 * (best.iloc[1] / best.iloc[0] - 1)
    assert f"{best.iloc[1] - best.iloc[0]:.4f} nats ({share:.2f} % of its loss) below" in page

    board = [cells(line) for line in section(page, "Leaderboard")[3:]]
    expected = full.sort_values("eval_loss")
    assert [row[1] for row in board] == expected["trial_id"].tolist()
    assert [float(row[2]) for row in board] == expected["eval_loss"].tolist()
    assert [float(row[3]) for row in board] == (expected["eval_loss"] - best.min()).round(4).tolist()
    assert [int(row[6]) for row in board] == expected["config.rank"].tolist()
    assert [float(row[7]) for row in board] == expected["config.learning_rate"].tolist()
    ended = [cells(line) for line in section(page, "How the trials ended")[3:]]
    assert {row[0]: int(row[1]) for row in ended} == records["status"].value_counts().to_dict()


def test_the_code_in_the_report_runs(folder, eight):
    code = re.search(r"^```python\n(.*?)^```", report(folder), re.M | re.S)
    assert code is not None
    names: dict[str, pd.DataFrame] = {}
    exec(code[1], names)
    assert sorted(names["trials"]["trial_id"]) == [f"t{number:04d}" for number in range(8)]


def test_the_csv_holds_every_trial_and_the_same_records_give_the_same_bytes(folder, eight, tmp_path):
    first = write_report([folder]).read_bytes(), (folder / "report" / "trials.csv").read_bytes()
    table = pd.read_csv(folder / "report" / "trials.csv", index_col="trial_id")
    assert len(table) == 8
    assert table["place"].dropna().to_dict() == {"t0003": 1, "t0000": 2, "t0007": 3, "t0002": 4}
    assert table["config.quantizer"].value_counts().to_dict() == {"none": 3, "binary": 3, "ternary": 2}
    assert table.loc["t0003", "eval_loss"] == 2.7137
    assert table.loc["t0006", "reason"] == "pack lost"

    again = write_report([folder.resolve()], tmp_path / "elsewhere")
    assert again == tmp_path / "elsewhere" / "report.md"
    assert (again.read_bytes(), (again.parent / "trials.csv").read_bytes()) == first
    assert str(tmp_path) not in first[0].decode()
    assert sorted(path.name for path in again.parent.iterdir()) == [
        *("figures", "report.html", "report.md", "summary.json", "tables", "trials.csv")
    ]
    for path in (path for path in again.parent.rglob("*") if path.is_file()):
        assert (folder / "report" / path.relative_to(again.parent)).read_bytes() == path.read_bytes(), path


def test_all_failed(folder, add):
    add("t0000", "failed", steps=0, record={"reason": "no memory"})
    add("t0001", "diverged", quantizer="binary")
    page = report(folder)
    assert page.splitlines()[2] == (
        "**No trial gave a usable result**: none of 2 trials completed its full budget with a finite eval loss."
    )
    assert "One seed" not in page
    assert "## Leaderboard" not in page
    assert [cells(line)[:4] for line in section(page, "Quantizers side by side")[2:]] == [
        ["none", "0 of 1", "none", "–"],
        ["binary", "0 of 1", "none", "–"],
        ["ternary", "0 of 0", "none", "–"],
    ]


def test_nothing_has_begun(folder):
    (folder / "trials").rmdir()
    page = report(folder)
    assert page.splitlines()[2] == "**No trial has begun**, so there is nothing to compare."
    assert section(page, "Problems on disk") == ["- trials: missing"]


def test_one_trial(folder, add):
    add("t0000", eval_loss=2.5)
    assert report(folder).splitlines()[2] == (
        "**t0000** (quantizer none, rank 16, alpha 16, learning rate 5e-4) is **the only one** that completed its"
        " full budget, with an eval loss of 2.5000 nats per completion token, so there is nothing to compare it with."
    )


def test_the_best_adapter_is_exported_in_a_form_that_it_has(folder, add):
    add("t0", eval_loss=2.5)
    assert "bitlora export runs/quickstart/trials/t0 --to peft --out t0-peft" in report(folder)
    add("t1", eval_loss=2.4, activations="int8")
    assert "bitlora export runs/quickstart/trials/t1 --to packed --out t1-packed" in report(folder)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw"])
def test_an_optimizer_that_is_not_what_its_name_says_is_explained(folder, add, optimizer):
    add("t0", eval_loss=2.5)
    (folder / "sweep.yaml").write_text(f"train: {{optimizer: {optimizer}}}\n")
    assert ("there is nothing to page" in report(folder)) == (optimizer == "paged_adamw")


def test_against_full_precision_the_best_of_each_by_size(folder, add):
    add("t0", eval_loss=2.4, quantizer="none", rank=8)
    add("t1", eval_loss=2.5, quantizer="none", rank=32)
    add("t2", eval_loss=2.52, quantizer="ternary", rank=16)
    add("t3", eval_loss=2.28, quantizer="binary", rank=8)
    lines = [re.split(r" +\| +", line.strip("| ")) for line in section(report(folder), "Against full precision")[3:6]]
    assert [[line[at] for at in (0, 1, 4, 6, 7)] for line in lines] == [
        ["none", "t0", "100.00", "0.00", "–"],
        ["ternary", "t2", "12.50", "5.00", "–"],
        ["binary", "t3", "6.25", "-5.00", "–"],
    ]


@pytest.mark.parametrize("quantizers", [("none",), ("binary", "ternary")])
def test_against_full_precision_needs_both(folder, add, quantizers):
    for number, quantizer in enumerate(quantizers):
        add(f"t{number}", eval_loss=2.4, quantizer=quantizer)
    assert "Against full precision" not in report(folder)


def test_against_full_precision_in_the_search_where_it_was_not_confirmed(folder, add):
    add("t0", eval_loss=2.4, quantizer="none")
    add("t1", eval_loss=2.3, quantizer="binary", rank=8)
    add("t2", eval_loss=2.31, quantizer="binary", rank=8, seed=5, confirms="t1", test=[2.2] * 6)
    page = report(folder)
    assert "won" not in page.splitlines()[2]
    assert "is **the only one** that was confirmed, with a test loss of 2.2000" in page
    lines = section(page, "Against full precision")
    assert "eval loss" in lines[1]
    assert [line.split(" | ")[0].strip("| ") for line in lines[3:5]] == ["none", "binary"]


def test_a_loss_too_small_to_divide_by_is_not_compared_in_per_cent(folder, add):
    add("t0", eval_loss=1e-310, quantizer="none")
    add("t1", eval_loss=2.3, quantizer="binary")
    assert "Against full precision" not in report(folder)


def test_a_size_that_is_not_known_is_no_point(folder, add):
    add("t0", eval_loss=2.4, quantizer="none", record={"adapter_bytes": None})
    add("t1", eval_loss=2.5, quantizer="binary")
    page = report(folder)
    assert len(section(page, "Against full precision")) == 5
    assert "size-gaps" not in page


def test_one_quantizer(folder, add):
    add("t0000", eval_loss=2.5)
    add("t0001", eval_loss=2.50001, rank=8)
    add("t0002", "pruned", eval_loss=2.4, steps=8, quantizer="binary")
    assert report(folder).splitlines()[2] == (
        "**t0000** (quantizer none, rank 16, alpha 16, learning rate 5e-4) **has the lowest loss** with an eval"
        " loss of 2.5000 nats per completion token, under 0.0001 nats (under 0.01 % of its loss) below the next, **t0001**"
        " at 2.5000; no other quantizer is in the comparison."
    )


def test_an_exact_tie(folder, add):
    add("t0000", eval_loss=2.5)
    add("t0001", eval_loss=2.5, quantizer="ternary")
    add("t0002", eval_loss=2.75, quantizer="binary", activations="int8")
    assert report(folder).splitlines()[2] == (
        "**t0000** (quantizer none, activations full, rank 16, alpha 16, learning rate 5e-4) and **t0001** (quantizer"
        " ternary, activations full, rank 16, alpha 16, learning rate 5e-4) **tie exactly** with an eval loss of 2.5000"
        " nats per completion token, 0.2500 nats (10.00 % of its loss) below the next quantizer, binary: **t0002** at"
        " 2.7500."
    )


def test_hostile_names_stay_in_their_cells(folder, add):
    add("a|b", eval_loss=2.5, quantizer="<b>x</b>")
    add("שלום", "failed", record={"reason": "first | line\n\n# second <script>alert(1)</script> `code`"})
    (folder / "sweep.yaml").write_text('name: "a\\n# b | <i>"\n', encoding="utf-8")
    page = report(folder)
    assert page.startswith("# Sweep a # b \\| &lt;i&gt;\n")
    assert "**a\\|b** (quantizer &lt;b&gt;x&lt;/b&gt;, rank" in page
    assert cells(section(page, "Leaderboard")[3])[1] == r"a\|b"
    assert cells(section(page, "How the trials ended")[4]) == [
        "failed",
        "1",
        "\u2068שלום\u2069",
        r"first \| line # second &lt;script&gt;alert(1)&lt;/script&gt; \`code\`",
    ]
    ours = r"</?(picture|source|img|details|summary)\b"
    assert all(re.match(ours, page[found.start() :]) for found in re.finditer(r"<[a-z/]", page))
    write_report([folder])
    assert pd.read_csv(folder / "report" / "trials.csv")["trial_id"].tolist() == ["a|b", "שלום"]


@pytest.mark.parametrize("broken", ["NaN", "Infinity", "-Infinity", "null"])
def test_a_loss_that_is_no_number_never_ranks_and_is_never_printed(folder, add, broken):
    add("t0000", eval_loss=2.5)
    trial = add("t0001", eval_loss=1.25)
    record = (trial / "record.json").read_text()
    (trial / "record.json").write_text(record.replace("1.25", broken))
    page = report(folder)
    assert [cells(line)[1] for line in section(page, "Leaderboard")[3:]] == ["t0000"]
    assert "is **the only one**" in page
    (problem,) = section(page, "Problems on disk")
    assert problem.startswith("- trials/t0001/record.json: status is completed, but eval_loss is ")
    assert ["completed", "1", "t0001", "without a usable eval loss: not ranked"] in [
        cells(line) for line in section(page, "How the trials ended")[3:]
    ]
    assert not re.search(r"\b(nan|NaN|None|inf|Infinity|NA)\b", page)


def test_a_record_cut_short(folder, add):
    add("t0000", eval_loss=2.5)
    trial = add("t0001", eval_loss=2.25)
    (trial / "record.json").write_bytes((trial / "record.json").read_bytes()[:100])
    page = report(folder)
    assert "is **the only one**" in page
    assert "2 trials: 1 completed, 1 unknown." in page
    (problem,) = section(page, "Problems on disk")
    assert problem.startswith("- trials/t0001/record.json: not JSON: ")


def test_other_budgets_have_a_list_of_their_own(folder, add):
    add("t0000", eval_loss=2.5)
    add("t0001", eval_loss=2.25, steps=16)
    page = report(folder)
    assert [cells(line)[1] for line in section(page, "Leaderboard")[3:]] == ["t0000"]
    assert cells(section(page, "Completed at another budget")[3])[:3] == ["t0001", "16 of 32", "2.2500"]


def test_a_folder_that_a_shell_would_split_is_quoted(folder, add, monkeypatch):
    add("t0000", eval_loss=2.5)
    odd = folder.rename("my ``` sweep")
    page = report(odd)
    assert "````sh\nbitlora sweep 'my ``` sweep/sweep.yaml' --out 'my ``` sweep-again'\n````\n" in page
    monkeypatch.chdir(odd)
    assert report(Path()) == page


def test_two_thousand_trials_in_under_twenty_seconds(folder, add):
    quantizers = ("none", "binary", "ternary")
    for number in range(2000):
        status = "pruned" if number % 4 else "completed"
        steps = 32 if status == "completed" else 8
        rate, loss = 1e-4 * 1.002**number, 2.5 + number * 7919 % 2000 / 1e4
        add(f"t{number:04d}", status, loss, steps, quantizer=quantizers[number % 3], learning_rate=rate)
    begun = time.process_time()  # what other processes take is not its own
    path = write_report([folder])
    assert time.process_time() - begun < 20
    assert (path.parent / "report.html").stat().st_size < 5e6
    page = path.read_text(encoding="utf-8")
    assert "and 170 more in [tables/leaderboard.csv](tables/leaderboard.csv)" in page
    assert "and 1,170 more in [tables/pruned.csv](tables/pruned.csv)" in page
    assert len(page) < 130_000
    assert len(pd.read_csv(path.parent / "tables" / "pruned.csv")) == 1500


def test_bad_input_is_one_line(folder, add):
    with pytest.raises(ValueError, match=r"^no folder given"):
        write_report([])
    with pytest.raises(ValueError, match=r"^b: no such folder$"):
        write_report([folder, Path("b")])
    Path("taken").write_text("")
    with pytest.raises(ValueError, match=r"^taken: is a file; the report needs a folder$"):
        write_report([folder], Path("taken"))


def test_a_gap_that_chance_explains_is_called_tied(folder, add):
    add("a", eval_loss=2.50, quantizer="none", scores=spread(2.50, 0.1))
    add("b", eval_loss=2.51, quantizer="ternary", scores=spread(2.51, -0.1))
    page = report(folder)
    # By hand: the differences are 0.01 +- 0.2, so 0.01 +- 2.0227 * 0.2 * sqrt(40 / 39) / sqrt(40).
    assert (
        "**Nothing is ahead** on this seed: any of 2 quantizers may be the best: full precision and ternary. " in page
    )
    assert "its best configuration found, **a** (quantizer none" in page
    assert "0.0100 nats (0.40 % of its loss) below the next quantizer, ternary: **b** at 2.5100" in page
    assert "(95 % interval of the gap -0.0548 to 0.0748, over 40 paired examples)" in page
    assert "won**" not in page


def test_many_that_are_tied_and_a_long_leaderboard_are_counted(folder, add):
    for number, quantizer in enumerate(("none", "int8", "int4", "twn", "ternary", "binary")):
        loss = 2.5 + number / 1000
        add(f"a{number}", eval_loss=loss, quantizer=quantizer, scores=spread(loss, 0.1 if number else -0.1))
    for number in range(25):
        add(f"b{number:02d}", eval_loss=3.0 + number / 10, rank=number + 20, scores=spread(3.0 + number / 10, 0.1))
    page = report(folder)
    verdict = page.splitlines()[2]
    assert (
        "any of 6 quantizers may be the best: full precision, int8, int4, twn, ternary and binary. The lowest loss is full"
        " precision's: its best configuration found, **a0** (" in verdict
    )
    lines = section(page, "Leaderboard")
    assert lines[0].endswith(
        "all completed. Intervals are those of the best of each quantizer: the others were not tested."
    )
    intervals = [cells(line)[4] for line in lines if re.match(r"\| +\d", line)]
    assert len(intervals) == 31
    assert [place for place, text in enumerate(intervals, 1) if text != "–"] == [2, 3, 4, 5, 6]


def test_over_one_seed_nothing_wins_however_clear_it_is(folder, add):
    add("a", eval_loss=2.50, quantizer="none", scores=spread(2.50, 0.1))
    add("b", eval_loss=2.51, quantizer="ternary", scores=spread(2.51, 0.101))
    page = report(folder)
    assert "**Full precision is ahead on this seed**: its best configuration found, **a** (quantizer none" in page
    assert "(95 % interval of the gap 0.0097 to 0.0103, over 40 paired examples)" in page
    assert "The interval is Student's t" in page


def test_other_examples_give_no_interval(folder, add):
    add("a", eval_loss=2.50, quantizer="none", scores=spread(2.50, 0.1))
    add("b", eval_loss=2.51, quantizer="ternary", scores=spread(2.51, 0.1)[1:])
    page = report(folder)
    assert "95 % interval of the gap 0" not in page
    assert "No interval could be computed" in page


def test_what_a_sweep_cost_where_the_spec_has_a_price(folder, eight):
    """440 seconds of one GPU are 0.122 hours."""
    write_run(folder)
    with (folder / "sweep.yaml").open("a") as spec:
        spec.write("resources: {price_per_hour: 2.5}\n")
    time = next(line for line in report(folder).splitlines() if line.startswith("- Time: "))
    assert time == (
        "- Time: 2026-01-02 03:04 UTC, 8 min in all; 7 min of workers with 1 GPU each; 0.122 GPU hours at 2.5 are 0.31"
    )
