"""Quality against size: what no other configuration beats."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.document.cells import cell, size, whole
from reports.document.document import Column, Table, plain
from reports.figures import figures
from reports.sections.parts import (
    Section,
    configuration_cells,
    configuration_columns,
    kept_cell,
    kept_columns,
    loss_cell,
    section,
)
from reports.statistics.comparable import rows
from reports.statistics.findings import Findings
from reports.statistics.gain import Gains


def quality_size(findings: Findings) -> Section | None:
    """Eval loss against bytes as packed, and the Pareto front; nothing where no configuration ranks."""
    ranked = findings.groups.ranked
    if ranked.empty:
        return None
    what = "eval loss and packed size" if findings.seeks_front else "eval loss, packed size and tokens trained"
    return section(
        "Quality against size",
        figures.quality_size(ranked),
        f"What no other beats in {what} at once:",
        front_table(findings.unbeaten, findings.axes.varying, findings.gains),
    )


def front_table(front: pd.DataFrame, varying: Sequence[str], gains: Gains | None = None) -> Table:
    """The configurations that no other beats in loss, bytes and training at once."""
    lines = [
        (
            cell(plain(row["trial_id"], 60)),
            loss_cell(row),
            *kept_cell(gains, row, "eval_loss"),
            cell(size(row["adapter_bytes"]), row["adapter_bytes"]),
            cell(whole(row["tokens"]), row["tokens"]),
            *configuration_cells(row, varying),
        )
        for row in rows(front)
    ]
    columns = (
        *(Column("trial"), Column("eval loss", True), *kept_columns(gains)),
        *(Column("packed size", True), Column("tokens trained", True)),
        *configuration_columns(varying, front),
    )
    return Table("pareto", columns, tuple(lines))
