"""What was found of a sweep that more than one section of its report speaks of, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from bitlora.files.record import EVAL, TEST
from bitlora.quantizers.weights import QUANTIZERS
from reports.load.scores import scores_of
from reports.load.sweep import Sweep
from reports.load.values import finite, mapping
from reports.statistics.axes import Axes, axes
from reports.statistics.comparable import Comparable, Row, ScoresOf, comparable, pareto, rows
from reports.statistics.full_precision import Margin
from reports.statistics.gain import Gains, gains
from reports.statistics.verdict import Verdict, verdict

ORDER: Final = tuple(QUANTIZERS)
COSTS: Final = ("eval_loss", "adapter_bytes", "tokens")
"""What a configuration on the Pareto front is not beaten in: loss, bytes as packed, training; where loss and bytes were
searched for, the first two."""
DRAWN: Final = 30
"""Rows of the leaderboard that are drawn at once: these have an interval of the gain that they keep."""


@dataclass(frozen=True, slots=True)
class Findings:
    """A sweep, and what was found of it."""

    sweep: Sweep
    space: dict[str, Any]
    """The search space of its spec, as plain data; {} where there is none that can be read."""
    searched: pd.DataFrame
    """The trials of the search that were trained: `Sweep.trained` without those that confirm."""
    groups: Comparable
    """The trials by what they may be compared with."""
    axes: Axes
    """What varies between the trials of the search, trained or not."""
    on_eval: ScoresOf
    """Reads a configuration's scores on the eval split."""
    on_test: ScoresOf
    """The same on the test split."""
    verdict: Verdict
    """What is on top of the page: of the confirmed, where there are any."""
    search: Verdict
    """The same of the search alone."""
    unbeaten: pd.DataFrame
    """Of the configurations that rank those that no other beats in all `COSTS`, by their bytes, then their loss."""

    gains: Gains | None
    """Of the search, over the base on the eval split; None where the base was not scored."""
    test_gains: Gains | None
    """Of the confirmed, on the test split; None also where none was confirmed."""

    margin: Margin | None
    """That `confirm` of the spec asks for."""

    @property
    def confirmed(self) -> bool:
        """Whether any configuration was confirmed: then these decide, by their test loss."""
        return len(self.groups.confirmed) > 0

    @property
    def seeks_front(self) -> bool:
        """Were small adapters searched for beside a low loss?"""
        return _seeks_front(self.sweep)

    @property
    def front(self) -> tuple[Row, ...]:
        """Of the configurations in the contest those that no other is as good as in loss or bytes and better in the other,
        by their loss; none where the loss alone was searched for."""
        if not self.seeks_front:
            return ()
        known = self.groups.contest[self.groups.contest["adapter_bytes"].notna()]
        return rows(known[pareto(known, ("loss", "adapter_bytes"))].sort_values(["loss", "adapter_bytes"]))

    def not_in(self, of: Verdict) -> tuple[str, ...]:
        """Quantizers that were searched, or asked for, and of which a verdict says nothing."""
        return tuple(name for name in self.asked if name not in of.quantizers)

    @property
    def asked(self) -> tuple[str, ...]:
        """Quantizers of the search, and of its spec, in the order of `QUANTIZERS`."""
        choices = self.space.get("quantizer", mapping(self.sweep.spec, "adapter").get("quantizer"))
        named = [name for name in (choices if isinstance(choices, list) else [choices]) if isinstance(name, str)]
        held = {*named, *(str(name) for name in self.searched["config.quantizer"].dropna())}
        return tuple(sorted(held, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))

    @property
    def best(self) -> Row | None:
        """The configuration that leads; None where none ranks."""
        return self.verdict.best[0] if self.verdict.best else None


def findings(sweep: Sweep) -> Findings:
    """Find all of it in `sweep`."""
    groups = comparable(sweep)
    begun, searched = (trials[trials["config.confirms"].isna()] for trials in (sweep.trials, sweep.trained))
    space = mapping(sweep.spec, "search", "space")
    on_eval, on_test = scores_of(sweep, EVAL), scores_of(sweep, TEST)
    confirmed = len(groups.confirmed) > 0
    ranked = groups.ranked.assign(loss=groups.ranked["eval_loss"])
    search = verdict(ranked, on_eval)
    top = verdict(groups.contest, on_test, confirmed) if confirmed else search
    bare = sweep.bare
    unbeaten = _unbeaten(sweep, ranked)
    drawn = [*search.held, *rows(ranked.head(DRAWN)), *rows(unbeaten)]
    return Findings(
        sweep=sweep,
        space=space,
        searched=searched,
        groups=groups,
        axes=axes(begun, space),
        on_eval=on_eval,
        on_test=on_test,
        verdict=top,
        search=search,
        unbeaten=unbeaten,
        gains=gains(bare.eval if bare else None, _in_full(ranked), drawn, on_eval),
        test_gains=gains(bare.test if bare else None, _in_full(groups.contest), top.held, on_test)
        if confirmed
        else None,
        margin=_margin(sweep),
    )


def _seeks_front(sweep: Sweep) -> bool:
    return mapping(sweep.spec, "search").get("objectives") == ["loss", "bytes"]


def _unbeaten(sweep: Sweep, ranked: pd.DataFrame) -> pd.DataFrame:
    known = ranked[ranked["adapter_bytes"].notna() & ranked["tokens"].notna()]
    known = known[pareto(known, COSTS[:2] if _seeks_front(sweep) else COSTS)]
    return known.sort_values(["adapter_bytes", "eval_loss"])


def _margin(sweep: Sweep) -> Margin | None:
    asked = mapping(sweep.spec, "confirm", "margin")
    share, of = finite(asked.get("share")), asked.get("of")
    return Margin(share, of) if share is not None and 0 < share < 1 and of in ("loss", "gain") else None


def _in_full(contest: pd.DataFrame) -> Row | None:
    """The best in full precision."""
    return next(iter(rows(contest[contest["config.quantizer"] == "none"].head(1))), None)
