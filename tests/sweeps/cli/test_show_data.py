"""`bitlora data`: rows as tokens with what is learned marked, and what became of the others."""

import json
import re
from html import unescape
from io import StringIO

import pytest
from families import CHATML, tokenizer
from rich.console import Console
from typer.testing import CliRunner

from bitlora.config.sections import DataConfig
from bitlora.data.split import beyond, prepare_data
from sweeps.cli.app import app
from sweeps.cli.show_data import draw, page, shown
from sweeps.spec.spec import dump_spec, load_spec

ROWS = [
    *({"prompt": f"say {n}", "completion": f"<b>{n}</b> 🙂"} for n in range(8)),
    {"prompt": "say nothing", "completion": " "},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}], "id": 7},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def prepared(source):
    has = tokenizer(CHATML)
    return prepare_data(DataConfig(source=str(source), eval_fraction=0.25), has), has


def test_the_command_says_what_is_learned_and_what_is_dropped(source, tiny_base, tmp_path):
    spec = tmp_path / "small.yaml"
    spec.write_text(json.dumps({"base": {"model": str(tiny_base)}, "data": {"source": str(source)}}))
    html = tmp_path / "page.html"
    ended = CliRunner().invoke(app, ["data", str(spec), "--rows", "1", "--html", str(html)])
    assert ended.exit_code == 0, ended.output
    lines = ended.output.splitlines()
    assert lines[0].startswith(f"{source}: 10 rows read, 0 truncated, 2 dropped, 0 copies; fingerprint ")
    assert lines[1].startswith("train: 7 rows, ")
    assert "1 row has an empty completion and was dropped (first: rows.jsonl:9)" in lines
    assert (
        "1 row has no turn that is to be learned (weight 0, label false) and was dropped (first: rows.jsonl:10)"
        in lines
    )
    assert "columns not used: id" in lines
    assert [line.split(":")[0] for line in lines if re.match(r"(train|eval) rows", line)] == [
        "train rows.jsonl",
        "eval rows.jsonl",
    ]
    assert html.read_text().count("<h2>") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "rows.jsonl", "small.yaml"]  # nothing else
    ended = CliRunner().invoke(app, ["data", str(spec), "--set", f"data.source={source}x"])
    assert (ended.exit_code, ended.output.count("\n")) == (2, 1)
    assert "no such file" in ended.output


def test_of_a_sweep_that_was_begun_without_confirm_no_row_moves(source, tiny_base, tmp_path):
    """Planned is what `--resume --set confirm=…` would do."""
    spec, folder = tmp_path / "small.yaml", tmp_path / "begun"
    data = {"source": str(source), "eval_fraction": 0.5, "eval_rows": 3}
    spec.write_text(json.dumps({"base": {"model": str(tiny_base)}, "data": data, "out": str(folder)}))
    said = []
    for begun in (False, True):
        if begun:
            folder.mkdir()
            (folder / "sweep.yaml").write_text(dump_spec(load_spec(spec)))
        ended = [CliRunner().invoke(app, ["data", str(spec), *more]) for more in ([], ["--set", "confirm={top: 1}"])]
        assert [one.exit_code for one in ended] == [0, 0]
        said.append([one.output.partition("fingerprint ")[2][:16] for one in ended])
        kept_back = [line for line in ended[1].output.splitlines() if line.startswith("test: ")]
        assert [line.split()[1] for line in kept_back] == ["1" if begun else "2"]
    assert said[0][0] != said[0][1]
    assert said[1] == [said[0][0]] * 2


def test_marks_stand_around_what_is_learned(prepared):
    dataset, has = prepared
    text = StringIO()
    draw(Console(file=text, soft_wrap=True), dataset, has, 99)
    marked = [found.replace("·", "") for found in re.findall("⟦(.*?)⟧", text.getvalue(), re.DOTALL)]
    ids = (*dataset.train.example_ids, *dataset.eval.example_ids)
    assert len(marked) == len(ids)
    for example_id, learned in zip(ids, marked, strict=True):
        number = int(example_id.partition(":")[2]) - 1
        assert learned.startswith(f"<b>{number}</b>")
        assert learned.endswith("<|im_end|>")


def test_colours_tell_a_token_from_the_next(prepared):
    dataset, has = prepared
    text = StringIO()
    draw(Console(file=text, soft_wrap=True, force_terminal=True, color_system="standard"), dataset, has, 1)
    styled = re.findall(r"\x1b\[([\d;]+)m([^\x1b]*)", text.getvalue())
    green = [part for style, part in styled if "42" in style.split(";") or "102" in style.split(";")]
    rows = (dataset.train, dataset.eval)
    expected = [token.text for part in rows for token in shown(part, 0, has) if token.learned]
    assert "".join(green).replace("\n", "") == "".join(expected).replace("\n", "")


def test_the_page_says_the_same(prepared):
    dataset, has = prepared
    found = page(dataset, has, 99)
    spans = re.findall(r'<span class="(learned|read)">(.*?)</span>', found, re.DOTALL)
    rows = [token for part in (dataset.train, dataset.eval) for n in range(len(part)) for token in shown(part, n, has)]
    assert [(unescape(text), kind == "learned") for kind, text in spans] == [tuple(token) for token in rows]
    assert "<b>" not in found  # what is in the data is text


def test_a_token_beyond_the_embedding_is_named(prepared):
    dataset, has = prepared
    high = int(dataset.train.largest_tokens.max())
    assert beyond(dataset, high + 1, has) == []
    [line] = beyond(dataset, high, has)
    assert line.endswith(f"is number {high}, and the base's embedding has {high} rows")
    row = dataset.train.example_ids.index(line.split(": ")[0])
    assert high in dataset.train.take([row]).tokens
