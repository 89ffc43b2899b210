"""A sweep that is searched by a user's own function over generated text, with exact match beside it, to its report."""

import json

import contract
import pandas as pd
import pytest
from recount import recount

pytestmark = pytest.mark.cluster

SCORING = '''
def digits(prompts, references, outputs):
    """The share of the answer's characters that stand where they belong."""
    return [sum(a == b for a, b in zip(one, other)) / len(one) for one, other in zip(references, outputs)]
'''


def test_a_sweep_searched_by_a_users_function_ends_in_a_report(bitlora, write_spec, tmp_path):
    (tmp_path / "own_scoring.py").write_text(SCORING)
    sums = [{"question": f"{a}+1=", "choices": [str(a + 1), str(a + 2)], "answer": 0} for a in range(8)]
    (tmp_path / "which.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    spec = write_spec(
        data={"eval_sets": {"which": "which.jsonl"}},
        metrics={
            "exact": "exact_match",
            "digits": "own_scoring:digits",
            "hits": "token_accuracy",
            "picked": {"kind": "choice_accuracy", "set": "which"},
        },
        generation={"max_tokens": 4},
        search={"metric": "digits", "trials": 3},
        scheduler={"name": "asha", "grace": 4},
        confirm={"top": 1, "seeds": 1},
    )
    ended = bitlora("sweep", spec, cwd=tmp_path)
    assert ended.code == 0, ended.err
    folder = tmp_path / "quick"
    found = contract.holds(folder)
    for trial, record in found.items():
        assert record["metrics"].keys() == {"exact", "digits", "hits", "picked"}
        scores = pd.read_parquet(folder / "trials" / trial / "eval.parquet")
        assert record["metrics"]["digits"] == pytest.approx(scores["digits"].mean(), abs=1e-12)
        assert record["metrics"]["hits"] == pytest.approx(scores["hits"].sum() / scores["tokens"].sum(), abs=1e-12)
        lines = (folder / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["metrics"] == record["metrics"]
        assert (record["test_metrics"] is not None) == (record["test_loss"] is not None)
    # What is confirmed is what was best by the function, of which more is better.
    searched = {t: r for t, r in found.items() if not r["config"].get("confirms") and r["status"] == "completed"}
    (confirmed,) = {r["config"]["confirms"] for r in found.values() if r["config"].get("confirms")}
    assert searched[confirmed]["metrics"]["digits"] == max(r["metrics"]["digits"] for r in searched.values())
    assert json.loads((folder / "base" / "record.json").read_text())["metrics"].keys() == {
        "exact",
        "digits",
        "hits",
        "picked",
    }
    page = (folder / "report" / "report.md").read_text()
    assert page.split("\n\n")[1].startswith("**Searched by** `digits` (higher is better; over the test split)")
    assert recount(folder) == []
