"""The verdict in a line, and summary.json; what they say of constructed sweeps stands in tests/reports/golden."""

from __future__ import annotations

import json

from constructed import spread

from reports.load.sweep import load_sweep
from reports.pages.summary import LONGEST, line_of, quantizer_lines
from reports.report import write_report
from reports.statistics.findings import findings


def test_the_line_is_one_line_of_at_most_200_characters_whatever_the_names_are(folder, add):
    (folder / "sweep.yaml").write_text(f"name: {'long ' * 40}\nsearch: {{space: {{quantizer: [none, binary]}}}}\n")
    for number in range(9):
        add(
            f"{number}-{'name ' * 12}",
            eval_loss=2.5,
            quantizer=f"q{number}{'x' * 70}",
            scores=spread(2.5, 0.1 + number),
        )
    line = line_of(findings(load_sweep(folder)))
    assert 100 < len(line) <= LONGEST == 200
    assert line.isprintable()


def test_the_numbers_are_those_of_the_records(folder, add):
    add("t0", eval_loss=2.5, quantizer="none", scores=spread(2.5, 0.2), record={"adapter_bytes": 1600})
    add("t1", eval_loss=2.75, quantizer="binary", scores=spread(2.75, 0.2), record={"adapter_bytes": 100})
    add("t2", "pruned", eval_loss=2.9, steps=8, quantizer="ternary")
    told = json.loads((write_report([folder]).parent / "summary.json").read_text())
    assert told["outcome"] == "ahead"
    assert told["on"] == "eval"
    assert (told["best"]["trial"], told["best"]["loss"], told["best"]["bytes"]) == ("t0", 2.5, 1600)
    assert told["best"]["config"]["rank"] == 16
    assert told["trials"] == {"completed": 2, "pruned": 1}
    assert [(each["quantizer"], each["trial"], each["gap"]) for each in told["quantizers"]] == [
        ("none", "t0", 0.0),
        ("binary", "t1", 0.25),
        ("ternary", None, None),
    ]
    assert told["line"].startswith(
        "quickstart: full precision is ahead on this seed, 10.00 % below binary: eval loss 2.5000"
    )
    lines = quantizer_lines(told)
    assert [line.split()[0] for line in lines] == ["quantizer", "none", "binary", "ternary"]
    assert "0.2500" in lines[2]
    assert "100 B" in lines[2]
