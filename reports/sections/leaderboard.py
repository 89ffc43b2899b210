"""The leaderboard: the configurations that were confirmed, those that rank, and the trials that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from reports.document.cells import cell, counted, gap, loss, missing, names, size, whole
from reports.document.document import Cell, Code, Column, Paragraph, Table, plain
from reports.load.sweep import Sweep
from reports.load.values import mapping
from reports.sections.parts import (
    Section,
    configuration_cells,
    configuration_columns,
    interval_cell,
    kept_cell,
    kept_columns,
    loss_cell,
    section,
)
from reports.statistics.comparable import Row, rows
from reports.statistics.edges import edges
from reports.statistics.findings import DRAWN, Findings
from reports.statistics.gain import Gains
from reports.statistics.verdict import RIVALS, Verdict

SEARCHED: Final = "The search, by the loss that it was tuned on"
"""The line over a leaderboard that a confirmation has overtaken."""


def confirmed(findings: Findings) -> Section | None:
    """The configurations that were run again on fresh seeds; nothing where none was."""
    if not findings.confirmed:
        return None
    return section(
        "Confirmed",
        "The best of the search once more, on seeds that it had not used, scored on the test split:"
        f" {_test_rows(findings.sweep)} that nobody was tuned on.",
        _chosen(findings),
        confirmed_table(findings),
        _test_note(findings),
    )


def _chosen(findings: Findings) -> Paragraph | None:
    """That seeds and rows were chosen, from what first look and what for; nothing where the spec says them."""
    chosen, margin = findings.sweep.chosen, findings.margin
    if chosen is None or margin is None:
        return None
    spec = mapping(findings.sweep.spec, "confirm")
    left = [key for key in ("seeds", "rows") if spec.get(key) == "auto"]
    wanted = f"{100 * margin.share:g} % of the {margin.of}"
    what = " and ".join(left).capitalize() or "They"
    look = f" when the search had ended, from a first look at the {counted(chosen.eval_rows, 'eval row')} on which it"
    look += f" had scored {names([plain(name, 30) for name in chosen.looked_at])}:"
    design = f" {counted(chosen.seeds, 'seed')} and {counted(chosen.rows, 'test row')} for each"
    if chosen.untold or chosen.least is None:
        why = f", which are the usual ones: how many it takes to show {wanted} was not known, since {plain(chosen.untold)}."
    elif chosen.shows:
        why = f", the cheapest that show {wanted} of equals in four of five cases."
    else:
        why = (
            f". They show {100 * chosen.least:.2g} % of equals in four of five cases; no number that may be taken shows"
        )
        why += f" {wanted}."
    if chosen.apart is not None and chosen.seeds > 1:
        how = (
            f"as it had done in the search, with {counted(chosen.freedom, 'degree')} of freedom"
            if chosen.freedom
            else "which was assumed, since the search tried each on one seed"
        )
        why += f" A seed was taken to put two {100 * chosen.apart:.2g} % of the loss apart, {how}."
    return Paragraph((f"{what} were chosen by ", Code("auto"), f"{look}{design}{why}"))


def leaderboard(findings: Findings) -> Section | None:
    """The configurations that rank, the best first; nothing where none does."""
    ranked = findings.groups.ranked
    if ranked.empty:
        return None
    held = sum(len(group) for group in ranked["trials"])
    budget = ranked["budget"].iloc[0]
    words = f"{counted(held, 'trial')} at equal budget: {budget:,} optimizer steps, all completed."
    if "kept" in ranked:
        words += " Each has its best evaluation, which need not be its last."
    if findings.search.rivals and len(ranked) > 1 + len(findings.search.rivals):
        which = "the best of each quantizer" if findings.search.across else f"the first {1 + RIVALS}"
        words += f" Intervals are those of {which}: the others were not tested."
    if kept_columns(findings.gains) and len(ranked) > DRAWN:
        words += f" Those of the gain kept are of the first {DRAWN}, and of whoever stands in another table."
    table = ranked_table(ranked, findings.axes.varying, findings.search, findings.gains)
    return section("Leaderboard", words, table, folded=SEARCHED if findings.confirmed else "")


def other_budgets(findings: Findings) -> Section | None:
    """The trials that completed with fewer steps; nothing where none did."""
    other = findings.groups.other
    if other.empty:
        return None
    began = other["trial_id"].isin(findings.sweep.warm_started).any()
    warm = " or began with another trial's weights" if began else ""
    why = f"Not ranked: they did not train for as many steps as those above{warm}."
    table = unranked_table("other", other, findings.axes.varying)
    return section("Completed at another budget", why, table, folded="Trials that do not rank")


def pruned(findings: Findings) -> Section | None:
    """The trials that were stopped early; nothing where none was."""
    stopped = findings.groups.pruned
    if stopped.empty:
        return None
    why = "Not ranked: each stopped early, so its loss compares only with others at the same step."
    if _in_part(stopped):
        why += " Where fewer rows are named, it was clear on those that it would be stopped, and its loss is over them."
    table = unranked_table("pruned", stopped, findings.axes.varying)
    return section("Pruned", why, table, folded="Trials that were stopped early, the furthest first")


def _test_note(findings: Findings) -> str | None:
    """Against what the gain is, or why none is told; nothing where the base was not scored on these rows."""
    found = findings.test_gains
    if found is None:
        return None
    if found.untold:
        return f"No share of the gain over the base is told: {found.untold}."
    return f"Gain kept: over the base without an adapter, whose test loss is {loss(found.base)}."


def _test_rows(sweep: Sweep) -> str:
    found = sweep.data.get("test_rows", ())
    asked = sweep.trials.get("config.confirm_rows", pd.Series(dtype=object)).dropna().unique()
    if len(found) != 1 or not found[0].isdigit() or len(asked) > 1:
        return "rows"
    return counted(min([int(found[0]), *map(int, asked)]), "row")


def confirmed_table(findings: Findings) -> Table:
    """The configurations that were tried again: their test loss, and how they stood in the search."""
    groups, verdict = findings.groups, findings.verdict
    leader = rows(groups.confirmed.head(1))[0]
    keys = [key for key in findings.axes.varying if key != "seed"]
    searched = {trial: row for row in rows(groups.ranked) for trial in row["trials"]}
    lines = []
    for row in rows(groups.confirmed):
        apart = row["test_loss"] - leader["test_loss"]
        before = searched.get(findings.sweep.firsts.get(row["name"], ""), {})
        lines.append(
            (
                cell(str(row["place"]), row["place"]),
                cell(plain(row["name"], 60)),
                cell(str(row["seeds"]), row["seeds"]),
                loss_cell(row, "test_loss"),
                cell(gap(apart), apart),
                interval_cell(verdict.interval(row)),
                *kept_cell(findings.test_gains, row, "test_loss"),
                cell(loss(row["eval_loss"]), row["eval_loss"]),
                cell(loss(before.get("eval_loss")), before.get("eval_loss")),
                *configuration_cells(row, keys, edges(row, findings.space)),
                cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
            )
        )
    columns = [
        *(Column("place", True), Column("configuration of"), Column("seeds", True)),
        *(Column(n, True) for n in ("test loss", "gap to best", "95 % interval of the gap")),
        *kept_columns(findings.test_gains),
        *(Column(n, True) for n in ("eval loss on these seeds", "in the search")),
        *(*configuration_columns(keys, groups.confirmed), Column("packed size", True)),
    ]
    return Table("confirmed", tuple(columns), tuple(lines))


def ranked_table(ranked: pd.DataFrame, varying: Sequence[str], search: Verdict, gains: Gains | None = None) -> Table:
    """The leaderboard: `Comparable.ranked`, with the intervals of those that the verdict on the search compares."""
    lowest = ranked["eval_loss"].min()
    seeds = bool((ranked["seeds"] > 1).any())
    keys = [key for key in varying if not (seeds and key == "seed")]
    lines = [
        (
            cell(str(row["place"]), row["place"]),
            cell(names(row["trials"], 3)),
            loss_cell(row),
            cell(gap(row["eval_loss"] - lowest), row["eval_loss"] - lowest),
            interval_cell(search.interval(row)),
            *kept_cell(gains, row, "eval_loss"),
            *([cell(str(row["seeds"]), row["seeds"])] if seeds else []),
            *configuration_cells(row, keys),
            cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
        )
        for row in rows(ranked)
    ]
    columns = [
        *(Column("place", True), Column("trials" if seeds else "trial")),
        *(Column(name, True) for name in ("eval loss", "gap to best", "95 % interval of the gap")),
        *kept_columns(gains),
        *([Column("seeds", True)] if seeds else []),
        *(*configuration_columns(keys, ranked), Column("packed size", True)),
    ]
    return Table("leaderboard", tuple(columns), tuple(lines), DRAWN)


def unranked_table(name: str, trials: pd.DataFrame, varying: Sequence[str]) -> Table:
    """Trials that stopped at different steps: `Comparable.pruned` or `Comparable.other`."""
    in_part = _in_part(trials)
    lines = [
        (
            cell(plain(row["trial_id"], 60)),
            cell(f"{whole(row['steps'])} of {whole(row['budget'])}", row["steps"]),
            loss_cell(row),
            *(_part_cells(row) if in_part else ()),
            *configuration_cells(row, varying),
        )
        for row in rows(trials)
    ]
    columns = (
        *(Column("trial"), Column("step reached", True), Column("eval loss there", True)),
        *((Column("on fewer rows", True), Column("rows", True)) if in_part else ()),
        *configuration_columns(varying, trials),
    )
    return Table(name, columns, tuple(lines))


def _in_part(trials: pd.DataFrame) -> bool:
    """Was one of them scored on some rows alone?"""
    return "eval_rows" in trials and bool(trials["eval_rows"].notna().any())


def _part_cells(row: Row) -> tuple[Cell, Cell]:
    scored = None if missing(row["eval_rows"]) else int(row["eval_rows"])
    return cell(loss(row["part_loss"]), row["part_loss"]), cell(whole(scored), scored)
