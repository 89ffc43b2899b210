"""Questions with choices as data: the right one is learned, and where they are to be compared each is an example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitlora.base.load import load_tokenizer
from bitlora.config.metrics import MetricConfig
from bitlora.config.sections import DataConfig
from bitlora.data.examples import DataError
from bitlora.data.sources import How, read_examples
from bitlora.data.split import prepare_data, with_sets

PLACE = "it must be the place of a choice from 0, its label or its text"


def said(tmp_path: Path, row: dict, choices: bool = False) -> list[list[str]]:
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    found = read_examples(str(tmp_path / "q.jsonl"), How(choices=choices))
    return [[turn.content for turn in example.messages] for example in found]


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["one", "two", "three"], 1),
        (["one", "two", "three"], "B"),
        (["one", "two", "three"], "two"),
        ({"text": ["one", "two", "three"], "label": ["1", "2", "3"]}, "2"),
    ],
)
def test_the_right_choice_is_learned_and_stands_first_among_all(tmp_path, choices, answer):
    row = {"question": "which?", "choices": choices, "answer": answer}
    assert said(tmp_path, row) == [["which?", "two"]]
    assert said(tmp_path, row, choices=True) == [["which?", "two"], ["which?", "one"], ["which?", "three"]]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"choices": ["a"], "answer": 0}, "'choices' is a list; it must be a list of at least two texts"),
        ({"choices": ["a", 2], "answer": 0}, "choice 2 is a number; it must be a string"),
        ({"choices": ["a", "b"], "answer": 2}, f"'answer' is 2; {PLACE}"),
        ({"choices": ["a", "b"], "answer": "c"}, f"'answer' is 'c'; {PLACE}"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_choices_is_said(tmp_path, row, line):
    with pytest.raises(DataError) as caught:
        said(tmp_path, {"prompt": "which?", **row})
    (found,) = caught.value.errors
    assert found.endswith(f"q.jsonl:1: {line}")


def test_an_eval_set_of_choices_needs_them_whole(tmp_path, tiny_base, arithmetic):
    tokenizer = load_tokenizer(str(tiny_base))
    metrics = {"picked": MetricConfig(kind="choice_accuracy", set="which")}

    def sets(source):
        config = DataConfig(source=str(arithmetic), max_length=64, eval_rows=3, eval_sets={"which": source})
        return with_sets(prepare_data(config, tokenizer), config, metrics, tokenizer)

    with pytest.raises(DataError) as caught:
        sets(str(arithmetic))
    assert caught.value.errors[0].endswith("no choices; a set that choice_accuracy is over has 'choices' and 'answer'")
    path = tmp_path / "which.jsonl"
    rows = [{"prompt": f"{n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = sets(str(path))
    assert [*found.sets["picked"].groups[::2]] == [*found.sets["picked"].groups[1::2]]
    assert len(set(found.sets["picked"].groups)) == 3
    assert (
        found.summary.fingerprint
        != prepare_data(DataConfig(source=str(arithmetic), max_length=64, eval_rows=3), tokenizer).summary.fingerprint
    )
    assert [file.name for file in found.summary.files] == [str(arithmetic), str(path)]
    path.write_text(json.dumps({"prompt": "?", "choices": ["yes", "no" * 60], "answer": 0}) + "\n")
    with pytest.raises(DataError, match="1 choices do not fit"):
        sets(str(path))
