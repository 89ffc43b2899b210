"""What a file of scores says of its origin."""

from __future__ import annotations

from pathlib import Path

from bitlora.files import record
from bitlora.files.origin import Origin
from bitlora.files.record import loss_of, origin_of, write_scores

ROWS = (["a", "b"], [1.0, 2.0], [2, 4], [8, 16])


def test_scores_keep_what_computed_them(tmp_path: Path) -> None:
    path = tmp_path / "eval.parquet"
    origin = Origin(dtype="bfloat16", device="NVIDIA Größe", host="node-7", versions={"torch": "2.13.0+cu130"})
    write_scores(path, *ROWS, origin)
    assert origin_of(path) == origin
    assert loss_of(path) == 0.5


def test_what_a_file_does_not_say_is_empty(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "eval.parquet"
    write_scores(path, *ROWS)
    assert origin_of(path) is None
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"dtype": "float32"}), path)  # as it was written before
    assert origin_of(path) == Origin(dtype="float32")


def test_an_example_that_belongs_to_nothing_is_a_group_of_its_own(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "eval.parquet"
    write_scores(path, *ROWS, groups=("a", "a"))
    assert pq.read_table(path)["group"].to_pylist() == ["a", "a"]
    write_scores(path, *ROWS)
    assert pq.read_table(path)["group"].to_pylist() == ["a", "b"]


def test_an_evaluation_before_the_first_step_has_no_train_loss_and_is_read_again(tmp_path: Path) -> None:
    numbers = {"tokens": 0, "eval_loss": 2.5, "learning_rate": 0.0, "seconds": 0.1}
    first = record.Metrics(step=0, train_loss=None, **numbers)
    record.append_metrics(tmp_path, first)
    assert '"train_loss": null' in (tmp_path / record.METRICS).read_text()
    assert record.read_metrics(tmp_path) == [first]
