"""Rows that the driver's machine keeps are mapped by a pack there, and fetched once by another machine."""

import json
import pickle

import numpy as np
import pytest
from families import CHATML, tokenizer

from bitlora.config.sections import DataConfig
from bitlora.data import cached, rows
from bitlora.data.split import prepare_data
from bitlora.tokenized.arrays import ArraysError
from sweeps.pack import travel
from sweeps.pack.travel import arrive, travelling


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "driver"))
    monkeypatch.setattr(cached, "SMALL", 10)
    monkeypatch.setattr(rows, "MOVED", {})
    monkeypatch.setattr(travel, "MOVED", rows.MOVED)
    monkeypatch.setattr(travel, "CHUNK", 100)
    monkeypatch.setattr(travel.ray, "put", lambda piece: piece)
    monkeypatch.setattr(travel.ray, "get", lambda piece: piece)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) + "\n" for n in range(40)))
    return prepare_data(DataConfig(source=str(source)), tokenizer(CHATML))


def tokens(dataset):
    return dataset.train.take(np.arange(len(dataset.train))).tokens.tolist(), list(dataset.train.example_ids)


def test_on_one_machine_nothing_travels(data):
    sent = travelling(data, elsewhere=False)
    assert sent.chunks == {}
    arrive(sent)
    assert rows.MOVED == {}
    assert tokens(pickle.loads(pickle.dumps(data))) == tokens(data)


def test_rows_that_were_removed_meanwhile_are_named(data, tmp_path):
    sent = travelling(data, elsewhere=False)
    (tmp_path / "driver").rename(tmp_path / "away")
    with pytest.raises(ArraysError, match="was removed while the sweep ran"):
        arrive(sent)


@pytest.mark.parametrize("room", [True, False])
def test_another_machine_fetches_them_once_and_keeps_them(data, tmp_path, monkeypatch, room):
    expected, sent, pickled = tokens(data), travelling(data, elsewhere=True), pickle.dumps(data)
    (tmp_path / "driver").rename(tmp_path / "away")
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "other"))
    if not room:
        (tmp_path / "other").write_text("no folder")
    arrive(sent)
    assert tokens(pickle.loads(pickled)) == expected
    rows.MOVED.clear()
    if room:
        monkeypatch.setattr(travel.ray, "get", lambda _: pytest.fail("fetched again"))
        arrive(sent)
        assert tokens(pickle.loads(pickled)) == expected
        [entry] = [path for path in (tmp_path / "other" / cached.KIND).iterdir() if path.is_dir()]
        assert entry.name == sent.folder.name


def test_rows_in_memory_are_pickled_with_the_rest(data, monkeypatch, tmp_path):
    monkeypatch.setattr(cached, "SMALL", 1000)
    small = prepare_data(DataConfig(source=str(tmp_path / "rows.jsonl"), max_length=32), tokenizer(CHATML))
    assert travelling(small, elsewhere=True) is None
    arrive(None)
    assert tokens(pickle.loads(pickle.dumps(small))) == tokens(small)
