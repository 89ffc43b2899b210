"""What is known of a sweep before Ray starts."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bitlora import timeouts
from sweeps.driver import reading_bar
from sweeps.driver.prepare import Prepared
from sweeps.driver.reading_bar import ReadingBar
from sweeps.spec.spec import load_spec

SPACE = {
    "quantizer": ["none", "ternary"],
    "rank": {"by": "quantizer", "none": [4, 64], "default": {"low": 8, "high": 16}},
    "batch_size": [2, 32, 8],
    "learning_rate": {"low": 1e-4, "high": 1e-3},
}


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, {"rank": 16, "batch_size": 4, "quantizer": "none", "activations": "full", "dropout": 0.25}),
        (SPACE, {"rank": 64, "batch_size": 32, "quantizer": "ternary", "dropout": 0.25}),
        (
            {"activations": ["int8", "full"], "quantizer": ["double_binary", "none", "int4"], "dropout": [0.0, 0.5]},
            {"activations": "int8", "quantizer": "double_binary", "dropout": 0.5, "rank": 16},
        ),
    ],
)
def test_the_widest_trial_takes_the_most_of_each_axis(write_spec, space, expected):
    spec = load_spec(
        write_spec("quick", search={"space": space}, train={"batch_size": 4}, adapter={"dropout": 0.25, "rank": 16})
    )
    prepared = Prepared(None, SimpleNamespace(train=range(100)))
    found = prepared.widest(spec).model_dump()
    assert {axis: found[axis] for axis in expected} == expected


def shown(monkeypatch, terminal, seconds):
    """What is written when it is told at these seconds that 1,000 more rows are read."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(reading_bar.time, "monotonic", lambda: next(clock))
    output = io.StringIO()
    bar = ReadingBar(Console(file=output, force_terminal=terminal, width=100))
    for number, _ in enumerate(seconds, 1):
        bar.told(1000 * number, number / 10 if number < 5 else None)
    bar.end()
    return output.getvalue()


def test_in_a_file_it_is_a_line_now_and_then(monkeypatch):
    assert timeouts.READING_LINE_S <= 15
    assert shown(monkeypatch, False, [1, 9, 11, 12, 22]).splitlines() == [
        "[    11 s] reading data: 3,000 rows, 30% of the data",
        "[    22 s] reading data: 5,000 rows",
    ]
    assert shown(monkeypatch, False, [1, 2, 3]) == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    output = io.StringIO()
    bar = ReadingBar(Console(file=output, force_terminal=True, width=100))
    bar.told(12000, 0.25)
    bar.end()
    assert "12,000 rows" in output.getvalue()
    assert "25%" in output.getvalue()
