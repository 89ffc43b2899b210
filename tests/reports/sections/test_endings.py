"""What a report says of a sweep that a person steered."""

import json

from constructed import add_extended, page_of

from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable


def act(what, *trials, **more):
    told = {"id": "0123abcd", "at": "2026-11-28T09:00:00+00:00", "by": "anna@box", "what": what, "trials": trials}
    return json.dumps(told | {"result": f"done: {what}"} | more) + "\n"


def test_who_did_what_and_when(folder, add):
    add("t0", eval_loss=2.5)
    assert "## Steered" not in page_of(folder)
    (folder / "steered.jsonl").write_text(act("stop t1", "t1") + act("add | 3", result="<b>"))
    page = page_of(folder)
    section = page.split("## Steered")[1].split("\n## ")[0]
    assert "2026-11-28T09:00:00 | anna@box | stop t1" in section
    assert "done: stop t1" in section
    assert "<b>" not in section.replace(r"\<b", "")


def test_lines_that_cannot_be_read_are_a_problem_on_disk(folder, add):
    add("t0", eval_loss=2.5)
    (folder / "steered.jsonl").write_text("{")
    assert any(line.startswith("steered.jsonl: ") for line in load_sweep(folder).problems)


def test_a_trial_that_was_given_more_steps_does_not_unrank_the_others(folder, add):
    add("t0", eval_loss=2.5)
    add("t1", eval_loss=2.6, rank=8)
    add_extended(add, "t2", 2.1)
    add("t3", eval_loss=2.2, warm_start="t0@32")
    sweep = load_sweep(folder)
    found = comparable(sweep)
    assert list(found.ranked["trial_id"]) == ["t0", "t1"]
    assert list(found.other["trial_id"]) == ["t2", "t3"]
    page = page_of(folder)
    assert "did not train for as many steps as those above or began with another trial's weights" in page
