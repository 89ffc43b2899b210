"""Reading examples: every shape, every error with its place, the hub's answers told apart."""

from __future__ import annotations

import inspect
import json
import pickle
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from bitlora.data.examples import DataError, Example, Message, Reading
from bitlora.data.sources import How, hub_ids, read_examples
from bitlora.reading import hub as hub_module
from bitlora.reading.docstrings import docstring_pairs


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def _write(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return _write


def errors_of(source: str | list[str]) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_examples(source)
    return caught.value.lines


def talk(example_id: str, *contents: str) -> Example:
    roles = ("user", "assistant") * len(contents)
    return Example(example_id, tuple(Message(*turn) for turn in zip(roles, contents, strict=False)))


def test_every_shape_becomes_a_conversation(write: Callable[..., str]) -> None:
    path = write(
        {"prompt": "2+2?", "completion": "4", "extra": 1},
        "",
        {"instruction": "Add.", "input": "2 and 2", "output": "4"},
        {"instruction": "Say hi.", "input": None, "output": "hi"},
        {"instruction": "Add.", "instances": [{"input": "1", "output": "2"}, {"input": "", "output": "0"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    assert read_examples(path) == [
        talk("rows.jsonl:1", "2+2?", "4"),
        talk("rows.jsonl:3", "Add.\n\n2 and 2", "4"),
        talk("rows.jsonl:4", "Say hi.", "hi"),
        talk("rows.jsonl:5/1", "Add.\n\n1", "2"),
        talk("rows.jsonl:5/2", "Add.", "0"),
        talk("rows.jsonl:6", "a", "b"),
    ]


def test_an_empty_completion_is_no_error_here(write: Callable[..., str]) -> None:
    assert read_examples(write({"prompt": "a", "completion": " "})) == [talk("rows.jsonl:1", "a", " ")]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{'prompt': 1}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ([1], "a list where an object belongs"),
        (
            {"promt": "a", "completion": "b"},
            "no known shape: found 'promt', 'completion'; known are prompt + completion",
        ),
        ({"promt": "a", "completion": "b"}, "did you mean 'prompt' by 'promt'?"),
        ({}, "no known shape: found no keys"),
        ({"prompt": 3, "completion": "b"}, "'prompt' is a number; it must be a string"),
        ({"prompt": "a", "completion": None}, "'completion' is null; it must be a string"),
        ({"prompt": "a", "completion": "\ud800"}, "'completion' holds half of a surrogate pair"),
        ({"instruction": "a", "input": [], "output": "b"}, "'input' is a list; it must be a string"),
        ({"instruction": "a", "instances": []}, "instances is an empty list; it must be a list of objects"),
        ({"instruction": "a", "instances": [{"output": "b"}, 7]}, "instances: a number at place 2, must be an object"),
        ({"instruction": "a", "instances": [{"input": "b"}]}, "instance 1: no 'output': found 'input'"),
        ({"messages": "a"}, "messages is a string; it must be a list of objects"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "message 1: unknown role 'asistant'"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "did you mean assistant?"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1: 'content' is null"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "begins with the assistant's turn"),
    ],
)
def test_an_error_names_file_and_line(write: Callable[..., str], row: object, error: str) -> None:
    path = write({"prompt": "fine", "completion": "fine"}, "", row)
    [line] = errors_of(path)
    assert line.startswith(f"{path}:3: ")
    assert error in line
    assert "\n" not in line


def test_all_errors_at_once_and_twenty_shown(write: Callable[..., str]) -> None:
    one, two = write(*["x"] * 15, name="one.jsonl"), write(*["x"] * 15, name="two.jsonl")
    with pytest.raises(DataError) as caught:
        read_examples([one, two])
    error = pickle.loads(pickle.dumps(caught.value))  # as it comes out of another process
    assert len(error.errors) == 30
    assert len(error.lines) == 21
    assert error.lines[0].startswith(f"{one}:1: ")
    assert error.lines[19].startswith(f"{two}:5: ")
    assert error.lines[20] == "and 10 more"
    assert str(error).splitlines() == error.lines


def test_bytes_that_are_not_utf8_and_a_byte_order_mark(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "é", "completion": "b"}, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + row)
    assert [each.messages[0].content for each in read_examples(str(path))] == ["é", "é"]
    path.write_bytes(row + b"\n" + row.replace("é".encode(), b"\xe9"))
    assert errors_of(str(path)) == [f"{path}:2: not UTF-8: byte 0xe9 at byte 13 of the line"]


def test_files_that_are_not_there(write: Callable[..., str], tmp_path: Path) -> None:
    path = write("", name="train.jsonl")
    assert errors_of(path) == [f"{path}: the file is empty"]
    assert errors_of(str(tmp_path / "trian.jsonl")) == [f"{tmp_path}/trian.jsonl: no such file; did you mean {path}?"]
    assert errors_of(str(tmp_path / "no" / "a.jsonl"))[0].endswith(f"the folder {tmp_path}/no does not exist")
    assert errors_of(str(tmp_path)) == [f"{tmp_path}/train.jsonl: the file is empty"]


def test_example_ids_stay_unique_over_files_of_one_name(write: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    paths = [write({"prompt": "a", "completion": "b"}), write({"prompt": "a", "completion": "b"}, name="b/rows.jsonl")]
    assert [each.example_id for each in read_examples(paths)] == [f"{path}:1" for path in paths]
    assert errors_of([paths[0], paths[0]]) == [f"{paths[0]}: listed twice"]


def test_pydoc_reads_the_standard_library() -> None:
    examples = {each.example_id: each.messages for each in read_examples("pydoc")}
    assert len(examples) > 2000
    prompt, completion = examples["textwrap.dedent"]
    assert prompt == Message("user", "Write the docstring of\ndef textwrap.dedent(text)")
    assert completion == Message("assistant", inspect.cleandoc(textwrap.dedent.__doc__ or ""))
    assert all(40 <= len(completion.content) <= 1500 for _, completion in examples.values())
    assert not any(" at 0x" in prompt.content for prompt, _ in examples.values())
    assert len({completion.content for _, completion in examples.values()}) == len(examples)


def test_pydoc_does_not_depend_on_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = docstring_pairs()
    monkeypatch.setattr(json, "dumps", json.dump)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert docstring_pairs() == before


def test_importing_the_sources_pays_for_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'huggingface_hub'}"
    code = f"import sys, bitlora.data.sources; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


class Hub:
    """Stands for `datasets.load_dataset`: gives or raises what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Any = None
        self.asked: list[tuple[str, str | None]] = []
        self.configs: list[str | None] = []
        monkeypatch.setattr(datasets, "load_dataset", self)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_module, "hub_answers", lambda: True)

    def __call__(self, name: str, config: str | None = None, revision: str | None = None) -> Any:
        self.asked.append((name, revision))
        self.configs.append(config)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_hub_rows(hub: Hub) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    hub.answer = datasets.DatasetDict(test=rows.select([0]), train=rows)
    assert read_examples("owner/name") == [talk("owner/name:0", "a", "b"), talk("owner/name:1", "c", "d")]
    hub.answer = datasets.DatasetDict(all=rows.select([1]))
    assert read_examples("owner/name") == [talk("owner/name:0", "c", "d")]
    hub.answer = datasets.DatasetDict(a=rows, b=rows)
    assert errors_of("owner/name") == ["owner/name: no split 'train' among its splits 'a', 'b'"]
    hub.answer = datasets.DatasetDict(train=datasets.Dataset.from_list([{"prompt": "a", "completion": None}]))
    assert errors_of("owner/name") == ["owner/name: row 0: 'completion' is null; it must be a string"]


def test_what_of_the_hub_is_read(hub: Hub) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    hub.answer = datasets.DatasetDict(train=rows.select([0]), test=rows.select([1]))
    written = "owner/name:main@v1[test]"
    assert read_examples(written) == [talk("owner/name:main[test]:0", "c", "d")]
    assert (hub.asked[-1], hub.configs[-1]) == (("owner/name", "v1"), "main")
    assert read_examples("owner/name", How(config="socratic", split="test")) == [talk("owner/name:0", "c", "d")]
    assert (hub.asked[-1], hub.configs[-1]) == (("owner/name", None), "socratic")
    assert hub_ids([written, "pydoc", "a.jsonl", "./folder[train]", "x.csv.gz"]) == ["owner/name"]
    with pytest.raises(DataError, match="which split of it to evaluate on"):
        read_examples("owner/name", How(evaluation=True))
    assert read_examples("owner/name[test]", How(evaluation=True)) == [talk("owner/name[test]:0", "c", "d")]


def test_what_lies_behind_a_failure_of_datasets_is_said(hub: Hub) -> None:
    error = datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = TypeError("Couldn't cast array of type string to null in column 'system'")
    hub.answer = error
    [line] = errors_of("owner/name")
    assert line.endswith("while generating the dataset: Couldn't cast array of type string to null in column 'system'")


def test_a_date_that_datasets_made_of_text_is_no_text(hub: Hub) -> None:
    """It reads a column whose strings are all dates as dates: what was written is lost."""
    from datetime import datetime

    rows = [{"prompt": "when?", "completion": datetime(2024, 1, 2), "seen": datetime(2024, 1, 2)}]
    hub.answer = datasets.DatasetDict(train=datasets.Dataset.from_list(rows))
    assert errors_of("owner/name") == ["owner/name: row 0: 'completion' is a date; it must be a string"]


def cached(rows: Any, folder: Path) -> Any:
    """As `datasets` has it of the hub: rows over a file in a folder that is named after the commit."""
    folder.mkdir(parents=True)
    rows.save_to_disk(folder)
    return datasets.DatasetDict(train=datasets.load_from_disk(folder))


def test_the_commit_of_a_data_set_is_found_and_asked_for(hub: Hub, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}])
    then, now = "1" * 40, "2" * 40
    hub.answer = cached(rows, tmp_path / now)
    reading = Reading()
    for revision in (None, "main", now, {"owner/name": now}, {"owner/other": then}):
        assert read_examples("owner/name", How(revision), reading) == [talk("owner/name:0", "a", "b")]
    assert [asked for _, asked in hub.asked] == [None, "main", now, now, None]
    assert reading.commits == {"owner/name": now}
    # Where the hub does not answer, `datasets` gives the newest copy it has, whatever was asked for.
    with pytest.raises(DataError) as wrong:
        read_examples("owner/name", How(then))
    assert wrong.value.lines == [
        f"owner/name: data.revision {then} cannot be had, and the newest copy in the cache is of {now}"
    ]
    hub.answer = datasets.DatasetDict(train=rows)
    assert read_examples("owner/name", How(then)) == [talk("owner/name:0", "a", "b")]  # it does not say


def test_hub_errors_are_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    not_found = datasets.exceptions.DatasetNotFoundError
    for answer, words in [
        (not_found("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."), "does not exist on the hub"),
        (not_found("Dataset 'o/n' is a gated dataset on the Hub. You must be authenticated"), "gated on the hub"),
        (not_found("Revision 'v9' doesn't exist for dataset 'o/n' on the Hub."), "no branch, tag or commit v9 of it"),
        (ConnectionError("Couldn't reach 'o/n' on the Hub (LocalEntryNotFoundError)"), "the hub cannot be reached"),
        (
            ValueError("Config name is missing.\nPlease pick one"),
            "cannot be loaded from the hub: Config name is missing.",
        ),
    ]:
        hub.answer = answer
        with pytest.raises(DataError) as wrong:
            read_examples("o/n", How("v9"))
        [line] = wrong.value.lines
        assert line.startswith("o/n: ")
        assert words in line
    hub.answer = ConnectionError("Couldn't reach 'o/n' on the Hub (OfflineModeIsEnabled)")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert errors_of("o/n") == ["o/n: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"]


def test_a_bug_is_not_taken_for_a_hub_error(hub: Hub) -> None:
    hub.answer = AttributeError("bug")
    with pytest.raises(AttributeError):
        read_examples("o/n")


def test_a_misspelt_pydoc_and_what_is_no_hub_id(hub: Hub) -> None:
    hub.answer = ConnectionError("away")
    assert errors_of("pydocs")[0].endswith("; did you mean pydoc?")
    assert errors_of("my data!") == ["my data!: neither pydoc, nor a file that exists, nor a hub id"]


def test_a_hub_that_does_not_answer_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        start = time.monotonic()
        [line] = errors_of("owner/name")
    assert "owner/name: the hub cannot be reached" in line
    assert time.monotonic() - start < 10


def test_sources_are_mixed_by_weight(write: Callable[..., str]) -> None:
    paths = [
        write(*({"prompt": name, "completion": f"{n}"} for n in range(rows)), name=f"{name}.jsonl")
        for name, rows in (("a", 30), ("b", 10), ("c", 99))
    ]

    def counts(weights: list[float]) -> list[int]:
        examples = read_examples(paths, How(weights=weights))
        assert len({each.example_id for each in examples}) == len(examples)
        return [sum(each.messages[0].content == name for each in examples) for name in "abc"]

    assert counts([1, 1, 1]) == [10, 10, 10]
    assert counts([2, 1, 4]) == [20, 10, 40]
    assert counts([1, 0.1, 0.5]) == [30, 3, 15]
    reading = Reading()
    read_examples(paths[:2], How(weights=[2, 1]), reading)
    assert reading.notes() == ["of the sources 20 of 30 + 10 of 10 examples are used, as data.weights says"]
    one, other = (read_examples(paths, How(weights=[2, 1, 4], seed=seed)) for seed in (0, 1))
    assert one == read_examples(paths, How(weights=[2, 1, 4])) != other
    with pytest.raises(DataError, match=r"data\.weights: 2 for 3 sources; give one for each"):
        read_examples(paths, How(weights=[1, 1]))
