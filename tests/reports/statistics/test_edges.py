from __future__ import annotations

import pytest

from reports.statistics.edges import edges

RATES = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.mark.parametrize(
    ("space", "config", "expected"),
    [
        ({"rank": [8, 4, 16]}, {"rank": 4}, {"rank": "lowest"}),
        ({"rank": [8, 4, 16]}, {"rank": 16}, {"rank": "highest"}),
        ({"rank": [8, 4, 16]}, {"rank": 8}, {}),
        ({"rank": [8]}, {"rank": 8}, {}),  # nothing to choose
        ({"quantizer": ["none", "binary"]}, {"quantizer": "none"}, {}),  # no order
        # Of two decades in logarithms a twentieth is a tenth of a decade: 1.26e-4 and 7.94e-3.
        ({"learning_rate": RATES}, {"learning_rate": 1.25e-4}, {"learning_rate": "lowest"}),
        ({"learning_rate": RATES}, {"learning_rate": 1.27e-4}, {}),
        ({"learning_rate": RATES}, {"learning_rate": 8e-3}, {"learning_rate": "highest"}),
        ({"dropout": {"low": 0.0, "high": 0.2}}, {"dropout": 0.01}, {"dropout": "lowest"}),
        ({"dropout": {"low": 0.0, "high": 0.2}}, {"dropout": 0.02}, {}),
        ({"learning_rate": RATES}, {"learning_rate": 0.1}, {"learning_rate": "highest"}),  # asked for outside of it
        ({"learning_rate": RATES}, {}, {}),
        ({"rank": "nonsense", "alpha": {"low": "a", "high": 3}}, {"rank": 4, "alpha": 2}, {}),
    ],
)
def test_what_lies_at_the_end_of_its_range(space, config, expected):
    assert edges({f"config.{key}": value for key, value in config.items()}, space) == expected


def test_a_range_that_hangs_on_another_axis_is_that_of_the_branch():
    space = {"learning_rate": {"by": "quantizer", "none": [1e-4, 2e-4], "default": [1e-3, 2e-3, 3e-3]}}
    found = [
        edges({"config.quantizer": name, "config.learning_rate": rate}, space).get("learning_rate")
        for name, rate in (("none", 1e-4), ("none", 2e-4), ("binary", 1e-3), ("ternary", 2e-3))
    ]
    assert found == ["lowest", "highest", "lowest", None]
