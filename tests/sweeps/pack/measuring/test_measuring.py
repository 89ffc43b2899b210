"""What trials come to on a split: scored, measured, turned for the search, written."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bitlora.data.rows import Rows
from bitlora.data.split import Dataset
from bitlora.engine.engine import EvalResult
from bitlora.files import record
from bitlora.files.origin import Origin
from sweeps.pack.measuring.measures import Measured
from sweeps.pack.measuring.measuring import Measuring, Scored, write_scored
from sweeps.search.metric import Objective


def rows(count, groups=()):
    learn = np.tile([False, True], count)
    ids = tuple(f"r{number}" for number in range(count))
    return Rows(
        np.arange(2 * count, dtype=np.int32), learn, np.arange(0, 2 * count + 1, 2), ids, np.full(count, 3), groups
    )


DATASET = Dataset(rows(4), rows(3), rows(2), None, {"picked": rows(4, ("q", "q", "p", "p"))})


class Engine:
    def evaluate(self, slots, batch, hits=False):
        count = len(batch.lengths)
        return {
            slot: EvalResult([float(slot)] * count, [1] * count, hits=[1] * count if hits else None) for slot in slots
        }


class Share:
    """Slot 2 cannot be measured."""

    hits = True

    def measure(self, engine, results, split, sets):
        assert all(result.hits == [1] * len(split) for result in results.values())
        return {
            slot: Measured({"exact": slot / 10}, {"exact": [slot / 10] * len(split)}, {}, "no" * (slot == 2))
            for slot in results
        }


def test_slots_are_scored_and_measured_on_both_splits():
    measuring = Measuring(DATASET, Engine(), None, Share(), Objective("exact", True))
    found = measuring.evaluate({1: None, 2: None})
    assert {slot: (each.loss, each.measured.failed) for slot, each in found.items()} == {1: (1.0, ""), 2: (2.0, "no")}
    assert measuring.value(found[1]) == -0.1  # more is better, and what is searched is lower where it is better
    assert len(measuring.test([1])[1].measured.columns["exact"]) == 2
    assert measuring.test([]) == {}
    assert Measuring(DATASET, Engine()).value(Scored(EvalResult([3.0], [2]))) == 1.5


def test_what_is_written_has_a_column_for_each_metric_and_a_file_for_each_set(tmp_path):
    measured = Measured(
        {"exact": 1 / 3}, {"exact": [1.0, 0.0, 0.0]}, {"picked": EvalResult([1.0, 2.0, 2.0, 1.0], [1] * 4)}
    )
    on_test = Scored(EvalResult([4.0, 8.0], [1, 1]), Measured({}, {"exact": [1.0, 1.0]}))
    origin = Origin(dtype="float32")
    files = write_scored(tmp_path, DATASET, Scored(EvalResult([1.0, 2.0, 3.0], [1] * 3), measured), on_test, origin)
    assert files == ["eval.parquet", "test.parquet", "eval-picked.parquet"]
    found = {name: pd.read_parquet(tmp_path / name) for name in files}
    assert found["eval.parquet"]["exact"].tolist() == [1.0, 0.0, 0.0]
    assert found["eval-picked.parquet"]["group"].tolist() == ["q", "q", "p", "p"]
    assert record.means_of(tmp_path / "test.parquet", {"exact": False, "hits": True}) == {"exact": 1.0}
    assert record.means_of(tmp_path / "eval.parquet", {"exact": True}) == {"exact": 1 / 3}
    write_scored(tmp_path, DATASET, Scored(EvalResult([1.0, 2.0, 3.0], [1] * 3)), None, origin)
    assert list(pd.read_parquet(tmp_path / "eval.parquet")) == ["example_id", "loss", "tokens", "bytes", "group"]


def test_lines_and_records_of_sweeps_without_metrics_are_as_before(tmp_path):
    line = record.Metrics(step=1, tokens=2, train_loss=3.0, eval_loss=4.0, learning_rate=5.0, seconds=6.0)
    record.append_metrics(tmp_path, line)
    assert "metrics" not in (tmp_path / record.METRICS).read_text()
    record.append_metrics(
        tmp_path,
        record.Metrics(
            step=2, tokens=2, train_loss=3.0, eval_loss=4.0, learning_rate=5.0, seconds=6.0, metrics={"exact": 0.5}
        ),
    )
    record.keep_metrics(tmp_path, 2)
    assert [each.metrics for each in record.read_metrics(tmp_path)] == [None, {"exact": 0.5}]
