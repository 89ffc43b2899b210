"""Rows that belong together stay on one side of the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import CHATML, FAMILIES, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from bitlora.config.sections import DataConfig
from bitlora.data.examples import DataError
from bitlora.data.rows import Picked, Rows
from bitlora.data.split import Dataset, prepare_data
from bitlora.tokenized.groups import hold_out


@pytest.fixture
def has() -> Any:
    return tokenizer(CHATML)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(part: Picked | Rows) -> set[bytes]:
    rows = part.take(range(len(part)))
    return {rows.tokens[a:b].tobytes() for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)}


def sides(data: Dataset) -> list[set[str]]:
    return [set(part.example_ids) for part in (data.train, data.eval, data.test)]


@pytest.mark.parametrize("test_rows", [0, None])
def test_of_doubled_rows_none_is_on_both_sides(tmp_path: Path, has: Any, test_rows: int | None) -> None:
    rows = [{"prompt": f"say {number}", "completion": f"{number}"} for number in range(40)]
    source = write(tmp_path / "rows.jsonl", rows + rows)
    for seed in range(5):
        data = prepare_data(DataConfig(source=source, seed=seed, eval_fraction=0.2), has, test_rows)
        parts = [texts(part) for part in (data.train, data.eval, data.test)]
        assert not parts[0] & parts[1]
        assert not parts[2] & (parts[0] | parts[1])
        assert len(data.train) + len(data.eval) + len(data.test) == 80
        assert len(data.eval) + len(data.test) == 16
        assert data.summary.copies == 40
        assert "40 rows are copies of others: they are on one side, trained on or evaluated" in data.summary.notes


def test_equal_prompts_instances_and_turns_stay_together(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]  # its turns become rows
    talk = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    rows: list[dict[str, Any]] = [
        *({"prompt": f"p{n}", "completion": f"{n} {m}"} for n in range(10) for m in range(2)),
        *(
            {"instruction": f"i{n}", "instances": [{"input": f"{m}", "output": f"{n}"} for m in range(2)]}
            for n in range(10)
        ),
        *({"messages": [{**turn, "content": f"{n} {turn['content']}"} for turn in talk]} for n in range(10)),
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    data = prepare_data(DataConfig(source=source, eval_fraction=0.3, eval_rows=None), tokenizer(family.jinja), None)
    together = [{f"rows.jsonl:{n}", f"rows.jsonl:{n + 1}"} for n in range(1, 21, 2)]
    together += [{f"rows.jsonl:{n}/1", f"rows.jsonl:{n}/2"} for n in range(21, 31)]
    together += [{f"rows.jsonl:{n}#1", f"rows.jsonl:{n}#2"} for n in range(31, 41)]
    where = [[len(ids & side) for side in sides(data)] for ids in together]
    assert all(sorted(each) == [0, 0, 2] for each in where)
    assert [sum(each) for each in zip(*where, strict=True)] == [len(side) for side in sides(data)] == [42, 8, 10]
    for part in (data.train, data.eval, data.test):
        for ids in together:
            names = {g for i, g in zip(part.example_ids, part.groups, strict=True) if i in ids}
            assert len(names) <= 1
            assert names <= ids


def test_one_prompt_for_all_parts_rows_but_no_copies(tmp_path: Path, has: Any) -> None:
    rows = [{"prompt": "tell me something", "completion": f"{number}"} for number in range(20)]
    data = prepare_data(DataConfig(source=write(tmp_path / "rows.jsonl", rows + rows)), has)
    assert not texts(data.train) & texts(data.eval)
    assert len(data.eval) == 4
    assert any("too many rows have the same prompt" in note for note in data.summary.notes)


def test_rows_that_are_all_one_are_split_and_it_is_said(tmp_path: Path, has: Any) -> None:
    rows = [{"prompt": "count", "completion": "one two"}] * 20
    data = prepare_data(DataConfig(source=write(tmp_path / "rows.jsonl", rows)), has)
    assert (len(data.train), len(data.eval)) == (18, 2)
    assert data.summary.notes == ("the rows are too much alike: copies of a row are trained on and evaluated",)


def test_texts_without_turns_share_no_prompt(tmp_path: Path, has: Any) -> None:
    rows = [{"text": f"the {number}"} for number in range(20)]
    data = prepare_data(DataConfig(source=write(tmp_path / "rows.jsonl", rows)), has)
    assert (len(data.train), len(data.eval), data.summary.notes) == (18, 2, ())


def test_rows_in_both_sources_are_counted_and_kept_dropped_or_refused(tmp_path: Path, has: Any) -> None:
    rows = [{"prompt": f"say {number}", "completion": f"{number}"} for number in range(10)]
    source = write(tmp_path / "rows.jsonl", rows)
    other = write(tmp_path / "eval.jsonl", [*rows[3:5], {"prompt": "new", "completion": "row"}])
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(source=source, eval_source=other, shared_rows="refuse"), has)
    assert caught.value.lines == [
        "data.source: 2 rows of 10 are in data.eval_source too (first: rows.jsonl:4); data.shared_rows: drop does not "
        "train on them, keep does"
    ]
    data = prepare_data(DataConfig(source=source, eval_source=other, shared_rows="drop"), has)
    assert {"rows.jsonl:4", "rows.jsonl:5"}.isdisjoint(data.train.example_ids)
    assert (len(data.train), len(data.eval)) == (8, 3)
    assert data.summary.notes == ("2 rows of 10 are in the eval source too, and not trained on",)
    data = prepare_data(DataConfig(source=source, eval_source=other), has)
    assert (len(data.train), data.summary.shared) == (10, 2)
    assert data.summary.notes == (
        "2 rows of 10 are in the eval source too, and trained on; data.shared_rows: drop would not",
    )
    with pytest.raises(DataError, match="drop leaves none"):
        prepare_data(DataConfig(source=source, eval_source=source, shared_rows="drop"), has)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(1, 12), st.integers(1, 2), st.randoms())
def test_whole_groups_are_held_out(labels: list[int], wanted: int, least: int, random: Any) -> None:
    first = {label: labels.index(label) for label in labels}
    group = np.array([first[label] for label in labels], np.int64)
    order = list(range(len(labels)))
    random.shuffle(order)
    held = hold_out(order, group, min(wanted, len(labels) - 1), least, len(labels) // 2)
    if held is None:
        return
    assert len(set(held.tolist())) == len(held)
    out = {row for row in order if row not in held}
    assert out
    assert not set(group[held].tolist()) & {int(group[row]) for row in out}
    assert len(set(group[held].tolist())) >= least
    if len(set(labels)) == len(labels) and least <= wanted < len(labels):
        assert held.tolist() == order[:wanted]


@pytest.mark.parametrize(("template", "expected"), [(CHATML, "d59a04779e4c2176"), (None, "2913e5e8729f9d06")])
def test_data_of_before_have_the_tokens_masks_and_splits_that_they_had(
    template: str | None, expected: str, tmp_path: Path
) -> None:
    """The fingerprints are of the version before turns, templates and groups were read as they are now."""
    talk = (("system", "one"), ("user", "{}?"), ("assistant", "a {}"), ("user", "more"), ("assistant", "happy {}"))
    rows: list[dict[str, Any]] = [
        *({"prompt": f"say {n} of the user", "completion": f"{n}\n two 🙂"} for n in range(40)),
        *({"messages": [{"role": r, "content": text.format(n)} for r, text in talk]} for n in range(20)),
        *({"instruction": f"the {n}", "instances": [{"input": f"in {n}", "output": f"out {n}"}]} for n in range(20)),
    ]
    source = write(tmp_path / "fixed.jsonl", rows)
    config = DataConfig(source=source, max_length=48, eval_fraction=0.2, eval_rows=9)
    data = prepare_data(config, tokenizer(template), None)
    assert data.summary.fingerprint == expected
    assert (len(data.train), len(data.eval), len(data.test)) == (64, 8, 8)
