"""What a report says of the data files that running it again needs."""

import json

from constructed import page_of

from reports.load.sweep import load_sweep
from reports.sections.repeat import repeat
from reports.statistics.findings import findings

SHA = "0123456789abcdef" * 4


def noted(folder, *files):
    (folder / "data").mkdir()
    (folder / "data" / "kept.json").write_text(json.dumps(files))


def test_copies_and_what_is_too_large_for_one(folder, add):
    add("t0", eval_loss=2.5)
    without = page_of(folder)
    assert "copies" not in without
    assert "SHA-256 0123" not in without
    large = {"name": "big `file`.jsonl", "bytes": 99_000_000, "sha256": SHA, "kept": None}
    noted(folder, {"name": "rows.jsonl", "bytes": 5, "sha256": SHA, "kept": "0-rows.jsonl"}, large)
    page = page_of(folder)
    assert "`data/` has copies of its data files, which are read where they are no longer under their names." in page
    (line,) = [line for line in page.splitlines() if line.startswith("Too large to be copied")]
    assert "big `file`.jsonl" in line
    assert f"(SHA-256 {SHA[:16]}…)." in line


def test_notes_that_cannot_be_read_are_a_problem_on_disk(folder, add):
    add("t0", eval_loss=2.5)
    noted(folder)
    (folder / "data" / "kept.json").write_text("{")
    sweep = load_sweep(folder)
    assert sweep.data_files == ()
    assert any(problem.startswith("data/kept.json: ") for problem in sweep.problems)
    assert repeat(findings(sweep)).blocks
