"""Arrays of a folder are those that were written, and names are strings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlora.tokenized.arrays import ArraysError, ArrayWriter, Names, let_go, open_arrays, read_about

DTYPES = {"numbers": np.int64, "empty": np.int32}


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_was_written_is_there(tmp_path: Path, in_memory: bool) -> None:
    writer = ArrayWriter(DTYPES, None if in_memory else tmp_path)
    for value in range(5):
        writer.add("numbers", np.array([value], np.int64).tobytes())
    arrays = writer.close({"notes": ["one"]})
    assert arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["empty"].tolist() == []
    if not in_memory:
        assert read_about(tmp_path)["notes"] == ["one"]
        assert not arrays["numbers"].flags.writeable


def test_what_is_let_go_of_takes_no_memory_and_can_be_read_again(tmp_path: Path) -> None:
    writer = ArrayWriter({"numbers": np.int64}, tmp_path)
    writer.add("numbers", np.arange(10_000_000, dtype=np.int64).tobytes())
    numbers = writer.close({})["numbers"]
    before = mapped()
    assert int(numbers.sum()) == sum(range(10_000_000))
    assert mapped() - before > 70e6
    let_go(numbers)
    assert mapped() - before < 10e6
    assert numbers[-1] == 9_999_999


def mapped() -> int:
    """Bytes of files that are mapped, and in memory."""
    return psutil.Process().memory_info().shared


def test_what_is_not_whole_is_said(tmp_path: Path) -> None:
    writer = ArrayWriter(DTYPES, tmp_path)
    writer.add("numbers", bytes(16))
    writer.close({})
    (tmp_path / "numbers").write_bytes(bytes(8))
    with pytest.raises(ArraysError, match="numbers has 8 bytes, not 16"):
        open_arrays(tmp_path, DTYPES)
    (tmp_path / "numbers").write_bytes(bytes(16))
    with pytest.raises(ArraysError, match="it holds numbers, empty"):
        open_arrays(tmp_path, {"numbers": np.int64})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), st.data())
def test_names_are_strings(names: list[str], data: st.DataObject) -> None:
    texts = [name.encode() for name in names]
    made = Names(np.frombuffer(b"".join(texts), np.uint8), np.cumsum([len(text) for text in texts], dtype=np.int64))
    assert list(made) == names
    assert made == tuple(names)
    assert made[-2:] == tuple(names[-2:])
    if not names:
        return
    index = data.draw(st.lists(st.integers(0, len(names) - 1)))
    some = made.at(np.array(index, np.int64))
    assert list(some) == [names[place] for place in index]
    assert list(some.at(np.arange(len(index))[::-1])) == [names[place] for place in reversed(index)]
    assert made[-1] == names[-1]
    with pytest.raises(IndexError):
        made[len(names)]
