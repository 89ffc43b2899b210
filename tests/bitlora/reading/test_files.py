"""Files of every format, compressed and in folders: the same rows, as they were written, or a line that says why not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from families import CHATML, tokenizer
from file_formats import FORMATS, ROWS, csv_of, lines, parquet_of, zstd

from bitlora.config.sections import DataConfig
from bitlora.data.examples import DataError, Example, Reading
from bitlora.data.sources import How, read_examples
from bitlora.data.split import prepare_data
from bitlora.reading.hub import HubSource, _split


def messages(examples: list[Example]) -> list[Any]:
    return [[turn.content for turn in example.messages] for example in examples]


EXPECTED = [[row["prompt"], row["completion"]] for row in ROWS]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("zipped", ["", ".gz", ".zst"])
def test_the_same_rows_in_every_format(name: str, zipped: str, tmp_path: Path) -> None:
    pack: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[zipped]
    path = tmp_path / f"{name}{zipped}"
    path.write_bytes(pack(FORMATS[name]))
    found = read_examples(str(path))
    assert messages(found) == EXPECTED
    assert len({example.example_id for example in found}) == len(ROWS)
    assert all(example.example_id.startswith(f"{name}{zipped}:") for example in found)


def test_ids_are_lines_of_text_and_rows_of_tables(tmp_path: Path) -> None:
    first = {"rows.jsonl": 1, "array.json": 0, "pretty.json": 0, "rows.csv": 2, "rows.parquet": 0, "rows.arrow": 0}
    for name, number in first.items():
        path = tmp_path / name
        path.write_bytes(FORMATS[name])
        assert read_examples(str(path))[0].example_id == f"{name}:{number}"


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("a.jsonl", "b.parquet", "more/c.csv.gz", ".cache/d.jsonl"):
        raw = {
            "a.jsonl": lines(ROWS),
            "b.parquet": parquet_of(ROWS),
            "more/c.csv.gz": gzip.compress(csv_of(ROWS), mtime=0),
        }
        (folder / name).write_bytes(raw.get(name, b"broken"))
    (folder / "README.md").write_text("not data")
    found = read_examples(str(folder))
    assert messages(found) == EXPECTED * 3
    assert [found[n].example_id for n in (0, 5, 10)] == ["data/a.jsonl:1", "data/b.parquet:0", "data/more/c.csv.gz:2"]


def test_of_a_folder_with_splits_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, row in (("train-0", 0), ("train-1", 1), ("test-0", 2), ("val", 3)):
        (folder / f"{name}.jsonl").write_bytes(lines([ROWS[row]]))
    assert messages(read_examples(f"{folder}[train]")) == EXPECTED[:2]
    assert messages(read_examples(f"{folder}[validation]")) == [EXPECTED[3]]
    assert messages(read_examples(str(folder), How(split="test"))) == [EXPECTED[2]]
    for source, line in (
        (str(folder), "holds files of several splits (test, train, validation); give "),
        (f"{folder}[dev0]", "no split 'dev0' in the names of its files (test, train, validation)"),
        (f"{folder}/val.jsonl[train]", "a split is of a folder or of a data set on the hub, and this is a file"),
    ):
        with pytest.raises(DataError) as caught:
            read_examples(source)
        assert line in caught.value.lines[0]


def test_what_datasets_saves_on_a_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    assert messages(read_examples(str(tmp_path / "one"))) == EXPECTED
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "two")
    assert messages(read_examples(f"{tmp_path}/two[test]")) == EXPECTED[:1]
    with pytest.raises(DataError, match=r"holds the splits test, train; give .*two\[test\]"):
        read_examples(str(tmp_path / "two"))


@pytest.mark.parametrize(
    ("name", "raw", "line"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.csv", b"", "a.csv: the file is empty"),
        ("a.parquet", b"", "a.parquet: the file is empty"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: cannot be read as Parquet: "),
        ("a.parquet", b"text", "a.parquet: not a Parquet file"),
        ("a.arrow", b"ARROW1 and no more", "a.arrow: cannot be read as Arrow: "),
        ("a.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "a.jsonl.gz: cannot be decompressed: "),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "a.jsonl.gz: compressed twice"),
        ("a.jsonl.zst", zstd(b"{}" * 9)[:9], "a.jsonl.zst: "),
        ("a.jsonl", gzip.compress(b"{\n", mtime=0), "a.jsonl:1: not JSON: "),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: the header names 'prompt' more than once"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "a.csv:3: 1 cells, and the header names 2 columns"),
        ("a.csv", b'prompt,completion\na,"b\n', "a.csv:2: not CSV: "),
        ("a.csv", b"prompt,completion\na,\xe9\n", "a.csv: not UTF-8: byte 0xe9"),
        ("a.csv", b"prompt,completoin\na,b\n", "a.csv:2: no known shape: found 'prompt', 'completoin'"),
        ("a.json", b'[\n {"prompt": "a",\n "completion"]', "a.json:3: not JSON: Expecting ':' delimiter at column 14"),
        ("a.json", b'[{"prompt": "a", "completion": "b"}, 7]', "a.json: row 1: a number where an object belongs"),
        ("a.json", b'{"data": [\n{"prompt": "a"}]}', "a.json:1: no known shape: found 'data'"),
        ("a.jsonl", b"[1]\n[2]\n", "a.jsonl:1: a list where an object belongs"),
        ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "a.jsonl:1: not JSON that can be read: "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(name: str, raw: bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_examples(str(path))
    assert line in caught.value.lines[0]
    assert "\n" not in caught.value.lines[0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_dates_are_learned_as_they_were_written(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"day {n}", "completion": f"2024-01-{n + 10}"} for n in range(5)]
    raw = {"rows.jsonl": lines(rows), "rows.json": json.dumps(rows).encode(), "rows.csv": csv_of(rows)}
    (tmp_path / name).write_bytes(raw[name])
    assert messages(read_examples(str(tmp_path / name))) == [[f"day {n}", f"2024-01-{n + 10}"] for n in range(5)]


def test_null_and_then_text_mixed_types_and_long_numbers(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"n": 2**63 + 1, "x": 0.1}}}
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    null: list[dict[str, Any]] = [{"prompt": "a", "completion": "b", "system": None, "id": n} for n in range(3000)]
    rows = [*null, {"prompt": "a", "completion": "b", "system": "s", "id": "text"}, {"messages": turns}]
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    found = read_examples(str(tmp_path / "rows.jsonl"))
    assert [turn.role for turn in found[3000].messages] == ["system", "user", "assistant"]
    assert found[3001].messages[1].calls[0].arguments == {"n": 2**63 + 1, "x": 0.1}
    assert type(found[3001].messages[1].calls[0].arguments["n"]) is int


def test_what_a_table_adds_to_an_object_is_not_there(tmp_path: Path) -> None:
    """In a column of a table each object has the keys of all: null, where its row says nothing."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": a}]},
            ]
        }
        for a in ({"city": "Oslo"}, {"unit": "C"})
    ]
    (tmp_path / "rows.parquet").write_bytes(parquet_of(rows))
    found = read_examples(str(tmp_path / "rows.parquet"))
    assert [each.messages[1].calls[0].arguments for each in found] == [{"city": "Oslo"}, {"unit": "C"}]


def test_columns_have_the_names_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Frage,Antwort,prompt\nhi,yo,other\n")
    reading = Reading()
    how = How(columns={"prompt": "Frage", "completion": "Antwort"})
    assert messages(read_examples(str(path), how, reading)) == [["hi", "yo"]]
    assert reading.notes() == []


def test_broken_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    wrong = [b"{broken\n", b'{"a": 1}\n', b'{"messages": [{"role": "user", "content": "x", "weight": 3}]}\n', b"\xff\n"]
    tools = {
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        "tools": [{"name": "f"}],
    }
    path.write_bytes(lines(ROWS) + b"".join(wrong) + lines([tools]))
    data = prepare_data(DataConfig(source=str(path), broken_rows="skip"), tokenizer(CHATML))
    assert len(data.train) + len(data.eval) == len(ROWS)
    [note] = [note for note in data.summary.notes if "skipped" in note]
    assert note.startswith(f"5 rows are broken and were skipped (first: {path}:6: not JSON")
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(source=str(path)), tokenizer(CHATML))
    assert len(caught.value.errors) == 5  # a weight of 3, and no assistant's turn
    with pytest.raises(DataError, match="no such file"):
        prepare_data(DataConfig(source=f"{path}x", broken_rows="skip"), tokenizer(CHATML))


@pytest.mark.parametrize(
    ("splits", "split", "evaluation", "chosen"),
    [
        (["train", "test"], None, False, "train"),
        (["all"], None, False, "all"),
        (["train", "test"], "test", False, "test"),
        (["train", "test"], None, True, None),
        (["train"], None, True, None),
        (["test"], None, True, "test"),
        (["train", "test"], "test", True, "test"),
        (["train", "test"], "train", True, "train"),
        (["train", "test"], "tets", True, None),
        (["a", "b"], None, False, None),
    ],
)
def test_the_split_that_is_asked_for_and_never_train_by_itself(
    splits: list[str], split: str | None, evaluation: bool, chosen: str | None
) -> None:
    errors: list[str] = []
    assert _split(HubSource("o/n", split=split, evaluation=evaluation), splits, errors) == chosen
    assert len(errors) == (chosen is None)
