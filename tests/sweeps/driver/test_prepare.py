"""What is known of a sweep before Ray starts."""

from types import SimpleNamespace

import pytest

from sweeps.driver.prepare import Prepared
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
