"""The tables' own arithmetic, and that what is for a GPU works here up to the GPU."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import measuring  # noqa: E402
import run  # noqa: E402


def test_bench_gpu_says_what_it_would_do_up_to_the_first_call_of_cuda(tmp_path):
    (tmp_path / "some-1.0-py3-none-any.whl").write_bytes(b"")
    command = [sys.executable, str(HERE / "run.py"), "gpu", "--dry", "--wheels", str(tmp_path)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "a dry run" in ended.stdout
    assert "some-1.0-py3-none-any.whl" in ended.stdout
    assert "tests/gpu/test_packs.py" in ended.stdout
    for part in run.GPU:
        assert f"{part.table}, about {part.seconds} s:" in ended.stdout
    assert "16 configurations over 1B" in ended.stdout


def test_the_shares_of_the_time_are_within_what_is_promised():
    assert sum(part.seconds for part in run.CPU) <= 12 * 60 - 120  # two minutes for loading
    assert sum(part.seconds for part in run.GPU) + run.TESTS_S <= 8 * 60 - 30
    for part in (*run.CPU, *run.GPU):
        assert (HERE / f"{part.table}.py").is_file()


def test_a_ratio_is_of_rounds_and_not_of_means(tmp_path):
    about = {"table": "t", "model": "m", "dtype": "d", "slots": 1, "tokens": 2, "what": "a / b", "unit": "s"}
    found = measuring.ratio([2.0, 30.0, 3.0], [1.0, 10.0, 2.0], **about)
    assert (found.ratio, found.lowest, found.highest, found.rounds) == (2.0, 1.5, 3.0, 3)
    with pytest.raises(ValueError, match="argument 2 is"):
        measuring.ratio([1.0], [1.0, 2.0], **about)
    measuring.write(tmp_path / "new" / "t.csv", [found])
    measuring.write(tmp_path / "new" / "t.csv", [found])
    with (tmp_path / "new" / "t.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["ratio"] for row in rows] == ["2", "2"]
    assert rows[0]["machine"]


def test_all_ways_run_equally_often_and_once_before():
    ran = []
    took = measuring.in_turn({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 10, most=3)
    assert ran[:2] == ["a", "b"]
    assert {name: len(each) for name, each in took.items()} == {"a": 3, "b": 3}
    assert ran.count("a") == ran.count("b") == 4


def test_the_pages_have_the_measured_numbers():
    """`.venv/bin/python tests/benchmarks/measuring.py` puts them there."""
    for page, whole in measuring.PAGES.items():
        assert measuring.markdown(measuring.DATA / "cpu.csv", whole) in page.read_text()
