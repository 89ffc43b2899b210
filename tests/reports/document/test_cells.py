from __future__ import annotations

import pandas as pd
import pytest

from reports.document import cells


@pytest.mark.parametrize(
    ("key", "given", "drawn"),
    [
        ("learning_rate", 2e-4, "2e-4"),
        ("learning_rate", 0.00146779, "1.47e-3"),
        ("learning_rate", 0.5, "5e-1"),
        ("weight_decay", 0.001, "1e-3"),
        ("weight_decay", 0.0, "0"),
        ("alpha", 16.0, "16"),
        ("dropout", 0.05, "0.05"),
        ("rank", 8, "8"),
        ("flag", True, "true"),
        ("quantizer", "a|b", "a|b"),
        ("quantizer", "", "–"),
        ("rank", None, "–"),
        ("rank", pd.NA, "–"),
        ("alpha", float("nan"), "–"),
        ("alpha", float("inf"), "–"),
    ],
)
def test_values(key, given, drawn):
    assert cells.value(key, given) == drawn


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (19_537_920, "19.5 MB"),
        (None, "–"),
        (pd.NA, "–"),
    ],
)
def test_sizes_in_powers_of_1000(given, drawn):
    assert cells.size(given) == drawn


def test_a_small_gap_is_not_printed_as_zero():
    assert [cells.gap(g) for g in (0.0, 4e-5, 6e-5, 0.25, None)] == ["0.0000", "under 0.0001", "0.0001", "0.2500", "–"]
