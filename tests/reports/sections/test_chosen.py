"""A report says that a confirmation's seeds and rows were chosen, from what first look; each of its numbers is recomputed
from the scores, by formulas of its own."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import pytest
from recount import recount

from reports.design.first_look import Asked, Candidate, choose
from reports.load.chosen import ChosenDesign
from reports.load.scores import load_scores
from reports.load.sweep import load_sweep
from reports.report import write_report
from reports.statistics.full_precision import Margin

LEFT = "confirm: {top: 1, by: quantizer, seeds: auto, rows: auto, margin: {share: 0.02, of: loss}}"
SEARCHED = {"t0000": ("none", 2.50), "t0001": ("binary", 2.51), "t0002": ("ternary", 2.52)}
DATA = {"source": "pydoc", "train_rows": 2585, "eval_rows": 60, "test_rows": 200}


def losses(centre, number, rows):
    draw, shared = random.Random(number), random.Random(99)
    return [centre + shared.gauss(0, 0.4) + draw.gauss(0, 0.05) for _ in range(rows)]


@pytest.fixture
def confirmed(folder, add):
    """A sweep with what the search's seeds, the margin and the test rows lead to."""

    def make(seeds=(0,), margin=0.02, test_rows=200, confirm=LEFT):
        spec = folder / "sweep.yaml"
        spec.write_text(spec.read_text() + confirm.replace("0.02", f"{margin:g}") + "\n")
        held, looked_at = [], []
        for name, (quantizer, centre) in SEARCHED.items():
            scores = {}
            for seed in seeds:
                trial = name if not seed else f"{name[:-1]}{int(name[-1]) + 3 * seed}"
                own = losses(centre, hash_of(name, seed), 60)
                own = [each + random.Random(hash_of(name, seed)).gauss(0, 0.01) for each in own]
                add(trial, eval_loss=sum(own) / 60, scores=own, quantizer=quantizer, seed=seed, record={"data": DATA})
                scores[seed] = load_scores(folder, trial, "eval.parquet")
                looked_at.append(trial)
            held.append(Candidate(quantizer, scores))
        choice = choose(held, Asked(Margin(margin, "loss"), "auto", "auto", 20, 3, test_rows, 128))
        design = ChosenDesign(
            seeds=choice.design.seeds,
            rows=choice.design.rows,
            looked_at=looked_at,
            eval_rows=60,
            shows=choice.shows,
            least=choice.least,
            apart=choice.known.apart,
            freedom=choice.known.freedom,
            untold="",
        )
        (folder / "confirm.json").write_text(json.dumps(asdict(design)))
        for number, (name, (quantizer, centre)) in enumerate(SEARCHED.items()):
            for seed in range(10, 10 + design.seeds):
                own, test = (losses(centre, hash_of(name, seed) + at, n) for at, n in ((0, 60), (500, design.rows)))
                add(
                    f"t{100 * (number + 1) + seed:04}", eval_loss=sum(own) / 60, scores=own, test=test, seed=seed,
                    quantizer=quantizer, confirms=name, confirm_rows=design.rows, record={"data": DATA},
                )  # fmt: skip
        return design, write_report([folder]).read_text()

    return make


def hash_of(name, seed):
    return 1000 * int(name[-1]) + seed


def test_of_one_seed_it_says_what_was_assumed(confirmed, folder):
    design, page = confirmed()
    assert recount(folder) == []
    assert (
        "Seeds and rows were chosen by `auto` when the search had ended, from a first look at the 60 eval rows on which it"
        f" had scored t0000, t0001, t0002: {design.seeds} seeds and {design.rows} test rows for each, the cheapest that"
        " show 2 % of the loss of equals in four of five cases. A seed was taken to put two 0.3 % of the loss apart, which"
        " was assumed, since the search tried each on one seed."
    ) in page
    kept = folder / "confirm.json"
    kept.write_text(kept.read_text().replace(f'"seeds": {design.seeds}', f'"seeds": {design.seeds + 1}'))
    write_report([folder])
    (wrong,) = recount(folder)
    assert wrong.startswith(f"chosen, seeds: printed {design.seeds + 1}, recomputed {design.seeds}")


def test_seeds_that_were_searched_are_what_it_is_taken_from(confirmed, folder):
    design, page = confirmed(seeds=(0, 1, 2))
    assert design.freedom == 4
    assert recount(folder) == []
    assert "as it had done in the search, with 4 degrees of freedom." in page


def test_a_margin_that_nothing_shows_is_said_with_what_is_shown(confirmed, folder):
    design, page = confirmed(margin=0.0001)
    assert not design.shows
    assert recount(folder) == []
    assert f"They show {100 * design.least:.2g} % of equals in four of five cases; no number that may be" in page
    assert "may be taken shows 0.01 % of the loss." in page


def test_where_the_spec_says_them_nothing_is_said(confirmed, folder):
    _, page = confirmed()
    assert "chosen by" in page
    (folder / "confirm.json").unlink()
    assert "chosen by" not in write_report([folder]).read_text()
    assert recount(folder) == []


def test_a_file_that_cannot_be_used_is_a_line_among_the_problems(confirmed, folder):
    confirmed()
    for text in ("{", "[]", '{"seeds": 3}', json.dumps({"seeds": "many"})):
        (folder / "confirm.json").write_text(text)
        sweep = load_sweep(folder)
        assert sweep.chosen is None
        assert any(line.startswith("confirm.json") for line in sweep.problems)
