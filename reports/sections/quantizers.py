"""The quantizers side by side, and against full precision: what fewer bits cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports.document.cells import bits, cell, gap, head, loss, size, whole
from reports.document.document import NOTHING, Cell, Column, Table, plain
from reports.figures import figures
from reports.sections.parts import (
    Section,
    configuration_cells,
    interval_cell,
    kept_cell,
    kept_columns,
    loss_cell,
    section,
)
from reports.statistics.edges import edges
from reports.statistics.findings import Findings
from reports.statistics.full_precision import Against, Margin, against
from reports.statistics.gain import Gains
from reports.statistics.quantizers import QuantizerBest, quantizer_bests


def side_by_side(findings: Findings) -> Section | None:
    """The best of each quantizer that was tried or asked for; nothing where there is none."""
    lines = quantizer_bests(findings.searched, findings.groups, findings.asked, findings.search)
    if not lines:
        return None
    table, notes = quantizer_table(lines, findings.axes.varying, findings.space, findings.gains)
    figure = figures.gaps(findings.verdict, findings.confirmed, lines)
    return section("Quantizers side by side", table, *notes, gain_note(findings.gains), figure)


def full_precision(findings: Findings) -> Section | None:
    """The best of each quantizer against the best in full precision; nothing where one of the two sides is missing."""
    margin, bare, confirmed = findings.margin, findings.sweep.bare, findings.confirmed
    on_eval = margin, bare.eval if bare else None
    if confirmed:
        bests = against(findings.verdict, findings.on_test, margin, bare.test if bare else None)
    else:
        bests = against(findings.verdict, findings.on_eval, *on_eval)
    split = "test" if confirmed else "eval"
    if not bests and confirmed:  # full precision, or all else, is not among the confirmed
        bests, split = against(findings.search, findings.on_eval, *on_eval), "eval"
    if not bests:
        return None
    return section(
        "Against full precision",
        "The best of each quantizer against the best in full precision: how far its loss is above, in per cent, and its"
        " size in per cent of full precision's.",
        against_table(bests, split, findings.test_gains if split == "test" else findings.gains, margin),
        margin_note(bests, margin),
        figures.size_gaps(bests),
    )


def margin_note(bests: Sequence[Against], margin: Margin | None) -> str | None:
    """What a margin is of, and what this design could have shown; nothing where none was asked for."""
    if margin is None:
        return None
    what = _of_what(margin)
    told = [each.within for each in bests if each.within is not None]
    if not told:
        why = "the base was not scored on these rows" if margin.of == "gain" else "the scores cannot be paired"
        return f"Whether any is worse by less than {what} is not told: {why}, or the rows are too few."
    least = [
        f"{100 * each.within.smallest:.2f} % ({plain(each.row['config.quantizer'], 60)})"
        for each in bests
        if each.within
    ]
    return (
        f"Shown: worse than full precision by less than {what}, if at all, with 95 % (one-sided, each quantizer by itself;"
        " of several configurations of one, the best is held to its part of the 5 %). Not shown is no proof of being worse:"
        f" of quantizers that are truly equal this design would have shown, in four of five cases, {', '.join(least)}."
    )


def _of_what(margin: Margin) -> str:
    of = "its loss" if margin.of == "loss" else "its gain over the base"
    return f"{100 * margin.share:g} % of {of}"


def gain_note(gains: Gains | None) -> str | None:
    """What a share of the gain is, or why none is told; nothing where the base was not scored."""
    if gains is None:
        return None
    if gains.untold or gains.full is None:
        return f"No share of the gain over the base is told: {gains.untold}."
    return (
        f"Gain kept: how far the loss is below that of the base without an adapter ({loss(gains.base)}), in per cent of"
        f" what the best in full precision ({plain(gains.full['name'], 60)}, {loss(gains.full['loss'])}) is below it, with"
        " a 95 % interval of each by itself; above 100 it gains more."
    )


def quantizer_table(
    lines: Sequence[QuantizerBest], varying: Sequence[str], space: dict[str, Any], gains: Gains | None = None
) -> tuple[Table, list[str]]:
    """One line per quantizer: its best configuration. With it the notes on what is not at equal budget, marked by †."""
    keys = ["rank", "alpha", "learning_rate", *(["activations"] if "activations" in varying else [])]
    drawn, notes = [], []
    for line in lines:
        best = line.best or {}
        name = plain(best["trial_id"], 60) if best else "none"
        if best and line.gap is None:
            ended = f"{best['status']} at step {whole(best['steps'])} of {whole(best['budget'])}"
            notes.append(f"† Not at equal budget: {name} was {ended}, so its loss does not compare with the others.")
            name += " †"
        spent = bits(best) if best else None
        drawn.append(
            (
                cell(plain(line.quantizer, 60)),
                cell(f"{line.full:,} of {line.began:,}", line.full),
                cell(name),
                loss_cell(best),
                cell(gap(line.gap), line.gap),
                interval_cell(line.interval),
                *kept_cell(gains, best if line.gap is not None else None, "eval_loss"),
                *configuration_cells(best, keys, edges(best, space) if line.gap is not None else {}),
                cell(whole(best.get("adapter_params")), best.get("adapter_params")),
                cell(size(best.get("adapter_bytes")), best.get("adapter_bytes")),
                cell(NOTHING if spent is None else f"{spent:.2f}", spent),
            )
        )
    columns = [
        Column("quantizer"),
        Column("at full budget", True),
        Column("best trial"),
        *(Column(name, True) for name in ("eval loss", "gap to best", "95 % interval of the gap")),
        *kept_columns(gains),
        *(head(key, True) for key in keys),
        *(Column(name, True) for name in ("parameters", "packed size", "bits per parameter")),
    ]
    return Table("quantizers", tuple(columns), tuple(drawn)), notes


def against_table(
    bests: Sequence[Against], split: str, gains: Gains | None = None, margin: Margin | None = None
) -> Table:
    """Full precision and the others, line by line; `split`: what the loss is on; `gains`: on that split."""
    lines = []
    for each in bests:
        row, spent = each.row, bits(each.row)
        lines.append(
            (
                cell(plain(row["config.quantizer"], 60)),
                cell(plain(row["name"], 60)),
                cell(NOTHING if spent is None else f"{spent:.2f}", spent),
                cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
                cell(NOTHING if each.share is None else f"{each.share:.2f}", each.share),
                loss_cell(row, "loss"),
                cell(f"{each.percent:z.2f}", each.percent),
                interval_cell(each.interval, 2),
                *(_margin_cells(each) if margin else []),
                *kept_cell(gains, row),
            )
        )
    columns = (
        *(Column("quantizer"), Column("best trial"), Column("bits per parameter", True), Column("packed size", True)),
        *(Column("size, %", True), Column(f"{split} loss", True), Column("gap, %", True)),
        Column("95 % interval of the gap, %", True),
        *(
            [
                Column(f"less than {100 * margin.share:g} % of the {margin.of}"),
                Column(f"at most, % of the {margin.of}", True),
            ]
            if margin
            else []
        ),
        *kept_columns(gains),
    )
    return Table("full-precision", columns, tuple(lines))


def _margin_cells(each: Against) -> list[Cell]:
    """Whether the margin is shown to be kept, and what is lost at most, in per cent of what it is of."""
    within = each.within
    if within is None:
        return [Cell(NOTHING), Cell(NOTHING)]
    most = None if within.bound is None else 100 * within.bound
    return [cell("shown" if within.shown else "not shown"), cell(NOTHING if most is None else f"{most:z.2f}", most)]
