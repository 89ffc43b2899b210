"""What `search` has beside its space, as a spec has it: bounds, budgets, earlier sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.spec.errors import SpecError
from sweeps.spec.spec import Spec, dump_spec, load_spec


def load(folder: Path, where: str) -> Spec:
    file = folder / "small.yaml"
    file.write_text(f"base: {{model: a}}\ndata: {{source: b}}\nsearch:\n  where: {where}\n", encoding="utf-8")
    return load_spec(file)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("1MB", 1_000_000),
        ("500KB", 500_000),
        ("1.5 mb", 1_500_000),
        ("2MiB", 2 * 1024 * 1024),
        ("0.5GB", 500_000_000),
        ("1e6", 1_000_000),
        ("4096", 4096),
        ("'4096'", 4096),
    ],
)
def test_a_size_is_a_number_or_has_a_unit(tmp_path: Path, written: str, found: int) -> None:
    spec = load(tmp_path, f"{{adapter_bytes: {{max: {written}}}}}")
    assert spec.search.where is not None
    assert spec.search.where.adapter_bytes is not None
    assert spec.search.where.adapter_bytes.max == found
    assert spec.search.where.adapter_params is None
    (tmp_path / "sweep.yaml").write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(tmp_path / "sweep.yaml") == spec


@pytest.mark.parametrize(
    ("written", "found"), [("2M", 2_000_000), ("500k", 500_000), ("3", 3), ("1.2B", 1_200_000_000)]
)
def test_parameters_are_counted(tmp_path: Path, written: str, found: int) -> None:
    spec = load(tmp_path, f"{{adapter_params: {{max: {written}}}}}")
    assert spec.search.where is not None
    assert spec.search.where.adapter_params is not None
    assert spec.search.where.adapter_params.max == found


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("{adapter_bytes: {max: 1 elephant}}",
         "search.where.adapter_bytes.max: found '1 elephant'; give a number, or a size such as 1MB, 500KB or 2MiB"),
        ("{adapter_bytes: {max: 0MB}}",
         "search.where.adapter_bytes.max: found '0MB'; give a number, or a size such as 1MB, 500KB or 2MiB"),
        ("{adapter_bytes: {max: 0}}", "search.where.adapter_bytes.max: found 0; give a number of at least 1"),
        ("{adapter_params: {max: 1MB}}",
         "search.where.adapter_params.max: found '1MB'; give a number, or a size such as 500K or 2M"),
        ("{adapter_params: {max: 10.5}}", "search.where.adapter_params.max: found 10.5; give a whole number"),
        ("{adapter_bytes: {max: true}}", "search.where.adapter_bytes.max: found true; give a whole number"),
        ("{adapter_bytes: 1MB}", "search.where.adapter_bytes: found '1MB'; give a mapping"),
        ("{adapter_bytes: {}}", "search.where.adapter_bytes.max: required key is missing"),
        ("{adapter_bytes: {max: 1MB, min: 1KB}}", "search.where.adapter_bytes.min: unknown key"),
        ("{adapter_byte: {max: 1MB}}", "search.where.adapter_byte: unknown key; did you mean adapter_bytes?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, where: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, where)
    (found,) = caught.value.lines
    assert found.partition(": ")[2].startswith(line)


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ("{sampler: random, from: [runs/earlier]}",
         "search.from: sampler random models nothing, so that it learns nothing of earlier sweeps; give "
         "search.sampler: tpe or gp, or leave it out"),
        ("{from: runs/earlier}", "search.from: found 'runs/earlier'; give a list"),
        ("{hours: 0}", "search.hours: found 0; give a number above 0"),
        ("{tokens: 1.5}", "search.tokens: found 1.5; give a whole number"),
        ("{patience: 0}", "search.patience: found 0; give a number of at least 1"),
    ],
)  # fmt: skip
def test_budgets_and_earlier_sweeps_that_are_none(tmp_path: Path, search: str, line: str) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(f"base: {{model: a}}\ndata: {{source: b}}\nsearch: {search}\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    (found,) = caught.value.lines
    assert found.partition(": ")[2] == line
