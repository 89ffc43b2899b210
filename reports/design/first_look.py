"""Seeds and rows for a confirmation that is to show a margin, chosen by what the search has shown of the finalists.

The search has scored them on rows of the same kind, each on one seed or on several: that tells how far apart rows lie, and
where seeds were searched too also how far apart these do. Where they were not, that is assumed (`ASSUMED`), and said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd

from reports.document.cells import counted, seconds
from reports.inference.differences import over_seeds as variance_over_seeds
from reports.inference.differences import ratio
from reports.inference.noninferiority import TAIL, parts_at
from reports.inference.power import Design, FirstLook, cheapest, least
from reports.statistics.full_precision import Margin
from reports.statistics.paired import (
    FEWEST,
    ExampleWeights,
    LossesBySeed,
    Scores,
    groups_in,
    seeds_in_common,
    side_of,
)

ASSUMED: Final = 0.003
"""How far a seed puts two configurations apart, as a share of the loss (one standard deviation), where nothing is known of
it: what the seeds of reports/examples/lowbit come to, rounded up."""
SCORED: Final = 0.5
"""What a row that is scored costs of one that is trained on, which goes forward and backward through the frozen base."""

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that is to be confirmed."""

    quantizer: str
    scores: Scores
    """On the eval split, by seed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a spec says of its confirmation, and what there is."""

    margin: Margin
    seeds: int | Auto
    rows: int | Auto | None
    """Of the test split, at most; None: all."""
    most_seeds: int
    usual_seeds: int
    """Taken where no number can show the margin."""
    test_rows: int
    """That there are."""
    trained: int
    """Rows that a trial is trained on."""

    @property
    def possible_seeds(self) -> Sequence[int]:
        return range(2, self.most_seeds + 1) if self.seeds == "auto" else [self.seeds]

    def cost(self, design: Design) -> float:
        """Of one configuration, in rows that are trained on."""
        return design.seeds * (self.trained + SCORED * design.rows)


@dataclass(frozen=True, slots=True)
class Known:
    """What the search has shown."""

    looks: tuple[FirstLook, ...]
    """Of the best of each quantizer but full precision."""
    apart: float
    """How far a seed puts two configurations apart, as a share of the loss (one standard deviation)."""
    freedom: int
    """Degrees of freedom of that; 0: it is assumed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken, and what is known of it."""

    asked: Asked
    design: Design
    configurations: int
    known: Known | None
    untold: str = ""
    """Why nothing could be computed; empty where it could."""

    @property
    def least(self) -> float | None:
        """The smallest margin that it shows of equals in four of five cases; None: not known."""
        return None if self.known is None else least(self.known.looks, self.design, self.configurations)

    @property
    def shows(self) -> bool:
        """It shows the margin that is asked for."""
        return self.least is not None and self.least <= self.asked.margin.share * (1 + 1e-12)

    def words(self, searched: int = 0, took: float = 0.0) -> list[str]:
        """What a terminal says of it, line by line.

        Args:
            searched: rows that the search has trained on; 0: not known.
            took: seconds that it took; 0: not known.
        """
        seeds, rows = self.design
        trials = counted(seeds * self.configurations, "trial")
        margin = (
            f"{100 * self.asked.margin.share:g} % of {'the loss' if self.asked.margin.of == 'loss' else 'the gain'}"
        )
        each = f"{counted(seeds, 'seed')} and {counted(rows, 'test row')}"
        lines = [f"confirm: {each} for each of {counted(self.configurations, 'configuration')}, {trials}"]
        if self.known is None:
            lines.append(f"how many it takes to show {margin} is not known: {self.untold}")
        elif self.shows:
            lines.append(f"of quantizers that are equal they show {margin} in four of five cases, at the least cost")
        else:
            most = max(self.asked.possible_seeds)
            reached = 100 * (self.least or math.nan)
            lines.append(
                f"not even {counted(most, 'seed')} would show {margin} on the {self.asked.test_rows} test rows there are;"
                f" these show {reached:.2g} % of equals in four of five cases"
            )
        if searched > 0:
            times = self.configurations * self.asked.cost(self.design) / searched
            pace = f", at its pace {seconds(times * took)}" if took > 0 else ""
            lines.append(f"cost: {times:.2g} times what the search trained{pace}")
        if self.known is not None and seeds > 1:
            how = (
                f"as it does in the search, with {counted(self.known.freedom, 'degree')} of freedom"
                if self.known.freedom
                else "which is assumed: the search tried each on one seed"
            )
            lines.append(f"a seed is taken to put two {100 * self.known.apart:.2g} % of the loss apart, {how}")
        return lines


def choose(held: Sequence[Candidate], asked: Asked, bare: pd.DataFrame | None = None) -> Choice:
    """The cheapest seeds and rows that show the margin of equals in four of five cases; where none do, the usual ones.

    Args:
        held: all that are confirmed, the best first.
        bare: what the base scored on the eval split without an adapter.
    """
    most = asked.test_rows if asked.rows in ("auto", None) else min(int(asked.rows), asked.test_rows)
    usual = Design(asked.usual_seeds if asked.seeds == "auto" else asked.seeds, most)
    found = known(held, asked.margin, bare)
    if isinstance(found, str):
        return Choice(asked, usual, len(held), None, found)
    if most < FEWEST:
        return Choice(asked, usual, len(held), None, f"it takes {FEWEST} test rows, and there are {most}")
    fewest = FEWEST if asked.rows == "auto" else most
    design = cheapest(found.looks, asked.margin.share, len(held), asked.possible_seeds, (fewest, most), asked.cost)
    return Choice(asked, design or usual, len(held), found)


def known(held: Sequence[Candidate], margin: Margin, bare: pd.DataFrame | None = None) -> Known | str:
    """What the scores of these tell; or why they tell nothing."""
    full = next((one for one in held if one.quantizer == "none"), None)
    count = Counter(one.quantizer for one in held if one is not full)
    bests = {one.quantizer: one for one in reversed(held) if one.quantizer != "none"}
    if full is None or not bests:
        return "full precision, or all else, is not among those that are confirmed"
    table = next(iter(full.scores.values()), None)
    if table is None:
        return "the scores of full precision cannot be read"
    weights = ExampleWeights(table["tokens"].to_numpy(dtype=float), groups_in(table))
    sides = {name: side_of(one.scores, table, weights, "tokens") for name, one in bests.items()}
    whole, own = (
        side_of(scores, table, weights, "tokens") if scores else None
        for scores in (full.scores, {} if bare is None else {0: bare})
    )
    if whole is None or None in sides.values() or weights.units < FEWEST:
        return "the search scored them on other rows, or on too few"
    if margin.of == "gain" and own is None:
        return "the base was not scored on the same rows"
    loss = whole.mean([])
    amount = loss if margin.of == "loss" or own is None else own.mean([]) - loss
    if (of := float(ratio(amount, weights.total))) <= 0:
        return "full precision gains nothing over the base"
    every = [side_of(one.scores, table, weights, "tokens") for one in held]
    variance, freedom = _over_seeds([side for side in every if side is not None], weights)
    level = float(ratio(loss, weights.total))
    if not freedom:
        variance = (ASSUMED * level) ** 2
    of_seed = ((1 + margin.share) * math.sqrt(variance)) ** 2  # what seeds do to X is taken to be as much
    looks = []
    for name, side in sides.items():
        assert side is not None
        seeds = sorted(whole.losses.keys() & side.losses.keys())
        apart = side.mean(seeds) - whole.mean(seeds)
        ((over_rows, free),) = parts_at(margin.share, apart, amount, weights.total, weights.groups)
        looks.append(
            FirstLook(of, len(weights.total), float(over_rows), float(free), of_seed, TAIL / max(1, count[name]))
        )
    return Known(tuple(looks), math.sqrt(variance) / level, freedom)


def _over_seeds(sides: Sequence[LossesBySeed], weights: ExampleWeights) -> tuple[float, int]:
    """The variance of the difference of two on one seed, and its degrees of freedom; 0: none has several."""
    if (pool := seeds_in_common(sides)) is not None:
        seeds, several = pool
        found, freedom = variance_over_seeds(np.array([side.by_seed(seeds, weights) for side in several]))
        return float(found), freedom
    each = [side.by_seed(sorted(side.losses), weights) for side in sides if len(side.losses) > 1]
    freedom = sum(len(losses) - 1 for losses in each)
    within = sum((len(losses) - 1) * float(np.var(losses, ddof=1)) for losses in each)
    return (2 * within / freedom, freedom) if freedom else (0.0, 0)
