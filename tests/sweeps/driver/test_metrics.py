"""Sweeps that are searched by a user's own function over generated text, and by exact match, to their reports."""

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
        search={"metric": "digits", "trials": 4, "sampler": "gp", "startup": 2},
        scheduler={"name": "asha", "grace": 4},
        confirm={"top": 1, "seeds": 1},
        resources={"slots": 2},
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


def test_a_sweep_searched_by_exact_match_ends_in_a_report(bitlora, write_spec, tmp_path):
    """All answers are the same one: whoever learns anything writes it, and the base does not."""
    rows = [{"prompt": f"{a}+0=", "completion": "7"} for a in range(100)]
    (tmp_path / "sevens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rates = [1e-7, 2e-2]
    spec = write_spec(
        data={"source": "sevens.jsonl"},
        metrics={"exact": "exact_match"},
        generation={"max_tokens": 4},
        search={
            "metric": "exact",
            "trials": 2,
            "space": {"learning_rate": {"low": 1e-7, "high": 2e-2, "log": True}},
            "first": [{"learning_rate": rate} for rate in rates],
        },
    )
    ended = bitlora("sweep", spec, cwd=tmp_path)
    assert ended.code == 0, ended.err
    folder = tmp_path / "quick"
    found = contract.holds(folder)
    exact = {record["config"]["learning_rate"]: record["metrics"]["exact"] for record in found.values()}
    assert exact == {1e-7: 0.0, 2e-2: 1.0}
    (best,) = [trial for trial, record in found.items() if record["config"]["learning_rate"] == 2e-2]
    searched = json.loads((folder / "report" / "summary.json").read_text())["searched"]
    assert searched == {"metric": "exact", "higher_is_better": True, "best": best, "value": 1.0}
    page = (folder / "report" / "report.md").read_text()
    assert page.split("\n\n")[1].startswith("**Searched by** `exact` (higher is better; over the eval split)")
    status = json.loads(bitlora("status", folder, "--json").out)
    assert (status["best"]["trial"], status["best"]["exact"]) == (best, 1.0)
    assert recount(folder) == []
