"""How much a search spends until it has found what it looked for: builds, rules and stock Ray over the recorded curves.

PYTHONPATH=tests/benchmarks/search python tests/benchmarks/search/compare.py [--seeds 200] [--listed] [--trials 12]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import replace

import optuna
from simulator import ByPromotion, ByRay, ByRule, Nobody, Search, Table, Way, made_up, table

from sweeps.search.rules import Halving, HyperBand, MedianRule
from sweeps.search.sampling import prior

WAYS = [
    Way("stock Ray, 4 at once", lambda budget: ByRay(6, 2, budget), every=6, stock=True),
    Way("7bab3ae: quickstart", lambda budget: ByRay(6, 2, budget), every=6),
    Way("asha", lambda budget: ByRule(Halving(6, 2, budget)), every=6, once=True),
    Way("hyperband/bohb", lambda budget: ByRule(HyperBand(6, 2, budget)), every=6, once=True),
    Way("median", lambda budget: ByRule(MedianRule(6)), every=6, once=True),
    Way("promotion", lambda budget: ByPromotion(6, 2, budget), every=6, once=True, sets_aside=True),
    Way("asha, prior", lambda budget: ByRule(Halving(6, 2, budget)), every=6, once=True, prior=True),
    Way("median, prior", lambda budget: ByRule(MedianRule(6)), every=6, once=True, prior=True),
    Way("gp", lambda budget: Nobody(), every=3, once=True, prior=True, sampler="gp"),
    Way("gp, no prior", lambda budget: Nobody(), every=3, once=True, sampler="gp"),
    Way("gp, asha", lambda budget: ByRule(Halving(6, 2, budget)), every=6, once=True, prior=True, sampler="gp"),
    Way("7bab3ae, grace 3", lambda budget: ByRay(3, 2, budget), every=3),
    Way("asha, grace 3", lambda budget: ByRule(Halving(3, 2, budget)), every=3, once=True),
    Way("asha, prior, grace 3", lambda budget: ByRule(Halving(3, 2, budget)), every=3, once=True, prior=True),
    Way("hyperband/bohb, grace 3", lambda budget: ByRule(HyperBand(3, 2, budget)), every=3, once=True),
    Way("median, grace 3", lambda budget: ByRule(MedianRule(3)), every=3, once=True),
    Way("promotion, grace 3", lambda budget: ByPromotion(3, 2, budget), every=3, once=True, sets_aside=True),
]


def compare(known: Table, seeds: int, listed: bool, slots: int | None, packs: int, trials: int, only: str) -> None:
    head = f"{'tokens':>8} {'work':>8} {'trials':>7} {'trained':>8} {'found':>6} {'off the best':>12}"
    print(f"{'':<28} {head}   (medians of {seeds} seeds)")
    for way in (way for way in WAYS if only in ("", way.name)):
        began = time.monotonic()
        if not way.stock and (slots or packs > 1):
            way = replace(way, slots=slots or way.slots, packs=packs)
        runs = [Search(known, way, seed, listed, trials).until_found() for seed in range(seeds)]
        middle = [
            statistics.median(getattr(run, key) for run in runs) for key in ("tokens", "work", "trials", "trained")
        ]
        found = sum(run.found for run in runs) / seeds
        cells = " ".join(f"{value:>8,.0f}" for value in middle)
        off = statistics.median(run.best for run in runs) / known.best - 1
        print(f"{way.name:<28} {cells} {found:>6.0%} {off:>12.1%}   {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--listed", action="store_true", help="learning rates out of the eight recorded, not between")
    parser.add_argument("--trials", type=int, default=200, help="a search has no more; 12 are the quickstart's")
    parser.add_argument("--only", default="", help="the name of one line")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--packs", type=int, default=1)
    parser.add_argument("--made-up", action="store_true", help="another table, to try this out")
    parser.add_argument("--literature", action="store_true", help="the prior without what was recorded here")
    given = parser.parse_args()
    if given.literature:
        vars(prior).update(POWER=0.75, LOW_BITS=1.0)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = made_up() if given.made_up else table()
    compare(known, given.seeds, given.listed, given.slots, given.packs, given.trials, given.only)
