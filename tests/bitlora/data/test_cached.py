"""Rows that are kept are those that were made, found by all that they hang on, and made again where they are damaged."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import CHATML, tokenizer

from bitlora.config.sections import DataConfig
from bitlora.data import cached, rows
from bitlora.data.examples import DataError
from bitlora.data.split import Dataset, prepare_data
from bitlora.files import source_file

Prepare = Callable[..., Dataset]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "SMALL", 10)
    return tmp_path / "cache" / cached.KIND


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"{n} 🙂"}) + "\n" for n in range(40)))
    return path


@pytest.fixture
def prepare(source: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares the data; with `made` it is whether they were made that counts."""
    made: list[int] = []
    inner = cached.tokenize_into

    def counted(*args: Any) -> Any:
        made.append(1)
        return inner(*args)

    monkeypatch.setattr(cached, "tokenize_into", counted)

    def prepare(made_again: bool | None = None, has: Any = None, **keys: Any) -> Dataset:
        made.clear()
        config = DataConfig(**{"source": str(source), "max_length": 64, **keys})
        data = prepare_data(config, has or tokenizer(CHATML), None)
        assert made_again is None or bool(made) == made_again
        return data

    return prepare


def everything(data: Dataset) -> list[Any]:
    found: list[Any] = [data.summary]
    for part in (data.train, data.eval, data.test):
        whole = part.take(np.arange(len(part)))
        arrays = (whole.tokens, whole.learn, whole.offsets, whole.text_bytes, part.lengths, part.learn_tokens)
        found += [*(array.tolist() for array in arrays), list(part.example_ids), list(part.groups)]
    return found


def there(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*") if path.is_dir())


def test_a_second_time_they_are_mapped_and_the_same(
    cache: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(True)
    assert len(there(cache)) == 1
    second = prepare(False)
    assert everything(first) == everything(second)
    assert isinstance(second.train.pool.tokens, np.memmap)  # type: ignore[union-attr]
    monkeypatch.setattr(cached, "SMALL", 1000)
    for entry in there(cache):
        entry.rename(cache / "elsewhere")
    assert everything(prepare(True)) == everything(first)


def test_what_splits_them_is_no_reason_to_make_them_again(cache: Path, prepare: Prepare) -> None:
    one = prepare(True)
    other = prepare(False, seed=3, eval_fraction=0.4, eval_rows=5, rows=30)
    assert other.summary.fingerprint != one.summary.fingerprint
    assert len(there(cache)) == 1


def test_all_else_is(cache: Path, prepare: Prepare, source: Path) -> None:
    prepare(True)
    prepare(True, max_length=32)
    prepare(True, broken_rows="skip")
    prepare(True, columns={"prompt": "prompt"})
    prepare(True, chat_template="{# another #}" + CHATML)
    prepare(True, has=tokenizer(CHATML, bos="<s>"))
    assert len(there(cache)) == 6
    content = source.read_text()
    source.write_text(content.replace("say 7", "ask 7"))  # as long, and perhaps within one tick of the clock
    changed = prepare(True)
    assert changed.summary.fingerprint != prepare(False).summary.fingerprint or len(there(cache)) == 7
    source.write_text(content)
    prepare(False)


def test_an_edit_that_keeps_length_and_time_is_seen(
    cache: Path, prepare: Prepare, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_file, "LARGE", 0)
    monkeypatch.setattr(source_file.timeouts, "FILE_CLOCK_S", -1.0)
    prepare(True)
    before = source.stat()
    monkeypatch.setattr(source_file, "_computed", lambda _: pytest.fail("read again"))
    prepare(False)
    monkeypatch.undo()
    monkeypatch.setenv("BITLORA_CACHE", str(cache.parent))
    monkeypatch.setattr(source_file, "LARGE", 0)
    time.sleep(timeouts_tick())
    source.write_text(source.read_text().replace("say 7", "ask 7"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    assert source_file.digest(source) == source_file._computed(source)


def timeouts_tick() -> float:
    return 0.02


@pytest.mark.parametrize("harm", ["cut", "gone", "no json", "other"])
def test_what_is_damaged_is_made_again(cache: Path, prepare: Prepare, harm: str) -> None:
    first = everything(prepare(True))
    [entry] = there(cache)
    tokens, about = entry / "tokens", entry / "about.json"
    if harm == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif harm == "gone":
        tokens.unlink()
    elif harm == "no json":
        about.write_bytes(b"\0" * about.stat().st_size)
    else:
        about.write_text(json.dumps({"sizes": {}}))
    assert everything(prepare(True)) == first
    assert everything(prepare(False)) == first


def test_errors_are_said_each_time_and_nothing_is_kept(cache: Path, prepare: Prepare, source: Path) -> None:
    with source.open("a") as file:
        file.write("not JSON\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows\.jsonl:41: not JSON"):
            prepare()
    assert there(cache) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    cache: Path, prepare: Prepare, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner, calls = cached.tokenize_into, []

    def changing(*args: Any) -> Any:
        if not calls:
            source.write_text(source.read_text().replace("say 7", "ask 7"))
        calls.append(1)
        return inner(*args)

    monkeypatch.setattr(cached, "tokenize_into", changing)
    data = prepare()
    assert there(cache) == []
    assert "changed while they were read" in caplog.text
    assert len(calls) == 2
    monkeypatch.setattr(cached, "tokenize_into", inner)
    assert everything(prepare()) == everything(data)


def test_without_a_place_to_keep_them_they_are_in_memory(
    prepare: Prepare, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = everything(prepare(True))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "file"))
    data = prepare(True)
    assert everything(data) == kept
    assert data.train.pool.kept is None  # type: ignore[union-attr]


def test_they_travel_as_their_place(cache: Path, prepare: Prepare) -> None:
    data = prepare()
    sent = pickle.dumps(data.train)
    assert len(sent) < 2000
    assert everything(pickle.loads(pickle.dumps(data))) == everything(data)
    there(cache)[0].rename(cache / "elsewhere")
    with pytest.raises(rows.ArraysError, match="is not there"):
        pickle.loads(sent)


def test_two_that_begin_at_once_make_them_once(cache: Path, source: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from families import CHATML, tokenizer\n"
        "from bitlora.config.sections import DataConfig\n"
        "from bitlora.data import cached\n"
        "from bitlora.data.split import prepare_data\n"
        "cached.SMALL, inner = 10, cached.tokenize_into\n"
        "cached.tokenize_into = lambda *args: print('made') or inner(*args)\n"
        "print(prepare_data(DataConfig(source=sys.argv[1]), tokenizer(CHATML)).summary.fingerprint)"
    )
    helpers = str(Path(__file__).parents[2] / "helpers")
    command = [sys.executable, "-c", program, str(source), helpers]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(one.communicate()[0].split() for one in both)
    assert [len(each) for each in said] in ([1, 2], [2, 1])
    assert len({each[-1] for each in said}) == 1
    assert len(there(cache)) == 1
