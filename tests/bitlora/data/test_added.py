"""Rows to confirm on, of a sweep that kept none: nobody was trained or tuned on them, and nothing else changes by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import save_tokenizer

from bitlora.config.sections import DataConfig
from bitlora.data.split import DataError, Dataset, prepare_data

Write = Callable[..., str]
Both = Callable[..., tuple[Dataset, Dataset]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(*texts: str, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"prompt": text, "completion": f"the {text}"}) + "\n" for text in texts))
        return str(path)

    return written


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def both(tokenizer: Any) -> Both:
    """A split as it was begun, and with rows to confirm on."""

    def split(most: int | None = None, **config: Any) -> tuple[Dataset, Dataset]:
        data = DataConfig(**config)
        return prepare_data(data, tokenizer), prepare_data(data, tokenizer, most, added=True)

    return split


def texts(rows: Any) -> list[tuple[int, ...]]:
    """Of each row its tokens."""
    ends = rows.take(range(len(rows)))
    return [tuple(ends.tokens[a:b].tolist()) for a, b in zip(ends.offsets, ends.offsets[1:], strict=False)]


def same_but_for_the_test_rows(begun: Dataset, later: Dataset) -> None:
    assert begun.train.example_ids == later.train.example_ids
    assert begun.eval.example_ids == later.eval.example_ids
    assert begun.summary.fingerprint == later.summary.fingerprint
    assert not len(begun.test)
    assert not begun.summary.added
    assert len(later.summary.added) == 16
    assert later.summary.test_rows == len(later.test) > 0
    assert not {*texts(later.test)} & {*texts(later.train), *texts(later.eval)}


@pytest.mark.parametrize(("most", "found"), [(None, 16), (7, 7), (99, 16)])
def test_what_is_left_of_the_eval_split(both: Both, write: Write, tokenizer: Any, most: int | None, found: int) -> None:
    source = write(*(f"n{n}" for n in range(100)))
    begun, later = both(most, source=source, eval_fraction=0.2, eval_rows=4)
    same_but_for_the_test_rows(begun, later)
    whole = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=None), tokenizer)
    assert later.test.example_ids == whole.eval.example_ids[4 : 4 + found]
    _, other = both(found - 1, source=source, eval_fraction=0.2, eval_rows=4)
    assert other.summary.added != later.summary.added


def test_no_row_that_belongs_to_one_that_was_seen(both: Both, write: Write) -> None:
    """Copies of a row stay together; the last evaluated row's copies are no fresh rows."""
    source = write(*(f"n{n // 5}" for n in range(200)))
    begun, later = both(source=source, eval_fraction=0.3, eval_rows=7)
    same_but_for_the_test_rows(begun, later)
    assert len(later.test) == 60 - 10  # 12 groups of five are held out, of which the second is evaluated in part


@pytest.mark.parametrize(("most", "found"), [(None, 4), (9, 9)])
def test_where_nothing_is_left_rows_that_were_not_drawn(both: Both, write: Write, most: int | None, found: int) -> None:
    source = write(*(f"n{n % 60}" for n in range(100)))
    begun, later = both(most, source=source, rows=40, eval_fraction=0.1, eval_rows=None)
    same_but_for_the_test_rows(begun, later)
    assert begun.summary.notes[0] == "40 of 100 rows were drawn at random; no other is used"
    assert len(later.eval) == 4
    assert len(later.test) == found
    assert (
        later.summary.notes[0] == f"40 of 100 rows were drawn at random; what is confirmed on are {found} of the others"
    )


def test_of_an_eval_source_what_is_left_of_it_and_was_not_trained_on(both: Both, write: Write) -> None:
    source = write(*(f"n{n}" for n in range(30)))
    evaluated = write(*(f"n{n}" for n in range(20, 60)), name="eval.jsonl")
    begun, later = both(source=source, eval_source=evaluated, eval_rows=10)
    same_but_for_the_test_rows(begun, later)
    known = {f"eval.jsonl:{n}" for n in range(1, 11)}  # they are trained on too
    assert {*later.test.example_ids} == {f"eval.jsonl:{n}" for n in range(1, 41)} - known - {*begun.eval.example_ids}
    dropped = both(source=source, eval_source=evaluated, eval_rows=10, shared_rows="drop")[1]
    assert {*dropped.test.example_ids} & known


def test_where_there_are_none_it_is_said(both: Both, write: Write) -> None:
    source = write(*(f"n{n}" for n in range(50)))
    with pytest.raises(DataError) as caught:
        both(source=source, eval_fraction=0.2, eval_rows=None)
    (line,) = caught.value.lines
    assert line == (
        "confirm: the sweep was begun without it, and of the 10 rows of its eval split none is left that nobody was "
        "trained or tuned on; begin one with confirm, or with fewer data.eval_rows than that"
    )
    evaluated = write(*(f"n{n}" for n in range(60, 100)), name="eval.jsonl")
    with pytest.raises(DataError, match="of the 40 rows of its eval split none is left"):
        both(source=source, eval_source=evaluated, eval_rows=None, rows=20)


def test_copies_of_rows_that_are_trained_on_are_no_fresh_rows(both: Both, write: Write) -> None:
    """Too much alike for a split: evaluated rows have copies that are trained on, and these are not confirmed on."""
    source = write(*["one"] * 6)
    with pytest.raises(DataError, match="none is left"):
        both(source=source, eval_fraction=0.5, eval_rows=1)
