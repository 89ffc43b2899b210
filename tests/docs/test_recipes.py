"""The recipes of CONTRIBUTING.md, carried out as they are written, in memory; also where somebody has carried them out."""

import __future__

import importlib.util
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import formulas
import pytest
import recount as recounts
import recount_tables
import torch

from bitlora.data import shapes
from bitlora.data.examples import DataError, Example, Message
from bitlora.data.sources import read_examples
from bitlora.quantizers import weights
from reports import report as reports

ROOT = Path(__file__).parents[2]


def run(code, names):
    """Code as it would stand in a module of ours that has these names."""
    exec(compile(code, "CONTRIBUTING.md", "exec", __future__.annotations.compiler_flag), names)
    return names


def test_a_new_quantizer(recipe, docs, monkeypatch):
    function, formula = recipe("A new quantizer")
    (name,) = re.findall(r'@quantizer\("(\w+)"', function)
    monkeypatch.setattr(weights, "QUANTIZERS", {n: each for n, each in weights.QUANTIZERS.items() if n != name})
    monkeypatch.setattr(docs, "QUANTIZERS", weights.QUANTIZERS)
    run(function, {**vars(weights)})
    made = weights.QUANTIZERS[name]
    told = eval(f"{{{formula}}}", {**vars(formulas)})[name]
    w = torch.randn(16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for matrix in (w, w[:1], torch.zeros(2, 3, dtype=torch.float64)):
        codes, scales = made.encode(matrix, (0, 1))
        torch.testing.assert_close(codes * scales, told.quantize(matrix), rtol=1e-12, atol=1e-15)
        allowed = {made.levels.lowest + made.levels.step * number for number in range(made.levels.count)}
        assert set(codes.unique().tolist()) <= allowed
    assert len(made.encode(w, (0, 1))[0].unique()) == told.values
    assert 8 / made.levels.per_byte == told.bits
    assert f"| `{name}` |" in docs.quantizers()


of_reports = importlib.util.spec_from_file_location("of_reports", ROOT / "tests" / "reports" / "conftest.py")
fixtures = importlib.util.module_from_spec(of_reports)
of_reports.loader.exec_module(fixtures)
folder, add = fixtures.folder, fixtures.add


def test_a_new_report_section(recipe, folder, add, monkeypatch):
    module, test, recomputed = recipe("A new report section")
    slowest = ModuleType("reports.sections.slowest")
    run(module, vars(slowest))
    monkeypatch.setitem(sys.modules, slowest.__name__, slowest)
    run(test, {})["test_the_slowest_trials_come_first"](folder, add)

    others = [made for made in reports.SECTIONS if made.__name__ != "slowest"]
    monkeypatch.setattr(reports, "SECTIONS", (*others[:-1], slowest.slowest, others[-1]))
    page = reports.write_report([folder])
    assert "## Slowest trials\n\nWhere the time went:\n" in page.read_text()
    assert (folder / "report" / "tables" / "slowest.csv").exists()

    method = run(textwrap.dedent(recomputed), {**vars(recount_tables)})["slowest"]
    of = recounts.Recount(folder)
    method(of)
    told = of.run()
    assert [line for line in told if "slowest" in line or "90 s" in line] == []


def test_a_new_data_shape(recipe, docs, tmp_path, monkeypatch):
    function, test = recipe("A new data shape")
    monkeypatch.setattr(shapes, "SHAPES", [shape for shape in shapes.SHAPES if shape.keys != ("query", "response")])
    monkeypatch.setattr(docs, "SHAPES", shapes.SHAPES)
    run(function, {**vars(shapes)})

    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def talk(example_id, *contents):
        roles = ("user", "assistant") * len(contents)
        return Example(example_id, tuple(Message(*turn) for turn in zip(roles, contents, strict=False)))

    def errors_of(source):
        with pytest.raises(DataError) as caught:
            read_examples(source)
        return caught.value.lines

    given = {"read_examples": read_examples, "talk": talk, "errors_of": errors_of, "Callable": Callable}
    run(test, given)["test_a_query_and_its_response"](write)
    assert "| `query + response` |" in docs.data_shapes()
