"""What a report says of the base without an adapter, and of the gain over it."""

from __future__ import annotations

import json
import math
from typing import Any

from printed_page import LOSS, Cell, count, fixed
from recount_cells import Cells


class Gains(Cells):
    def bare_files(self) -> None:
        """The record of the base is of the rows beside it, which are those of the trials."""
        if not self.sweep.bare:
            return
        record = json.loads((self.sweep.folder / "base" / "record.json").read_text())
        for split, frame in self.sweep.bare.items():
            loss = frame["loss"].sum() / frame["tokens"].sum()
            told = record[f"{split}_loss"]
            self.page.holds(f"base: {split}_loss is {told}, by its rows {loss}", math.isclose(told, loss, rel_tol=1e-9))
            for trial in self.sweep.trials:
                if split in trial.scores:
                    scored = trial.scores[split]["tokens"].sort_index()
                    rows = frame["tokens"]
                    if trial.in_part:
                        rows = rows[rows.index.isin(scored.index)]
                    same = scored.equals(rows.sort_index())
                    self.page.holds(f"base: other {split} rows than {trial.id}", same)
        self.page.holds("base: completion tokens", record["tokens"] == self.sweep.bare["eval"]["tokens"].sum())

    def bare(self) -> None:
        """The set-up's line, and the sentences below the tables."""
        page, sweep = self.page, self.sweep
        cell = page.section("Set-up")
        if not sweep.bare:
            page.holds("set-up: nobody scored the base", "Without an adapter" not in cell.text)
            return
        pattern = rf"Without an adapter: eval loss ({LOSS})(?:, test loss ({LOSS}))?, in nats"
        if match := page.one("set-up", cell, pattern):
            page.check("set-up, eval loss of the base", cell.part(match, 1), sweep.bare_loss("eval"), fixed(4))
            page.holds("set-up: test loss of the base", bool(match[2]) == ("test" in sweep.bare))
            if match[2]:
                page.check("set-up, test loss of the base", cell.part(match, 2), sweep.bare_loss("test"), fixed(4))
        if sweep.ranking:
            cell, of = page.section("Quantizers side by side"), sweep.gain("eval")
            if not self.said(cell, of):
                pattern = (
                    rf"without an adapter \(({LOSS})\), in per cent of .*? \((\S+), ({LOSS})\)[^.]* above (\d+) it"
                )
                if match := page.one("gain kept", cell, pattern):
                    page.check("gain kept, loss of the base", cell.part(match, 1), of.loss, fixed(4))
                    page.holds(f"gain kept: the best in full precision is {of.full.ids}", match[2] in of.full.ids)
                    page.check("gain kept, loss of full precision", cell.part(match, 3), of.full.loss, fixed(4))
                    page.check("gain kept, all of it", cell.part(match, 4), 100, count)
        if sweep.confirmed and "test" in sweep.bare:
            cell, of = page.section("Confirmed"), sweep.gain("test")
            if not self.said(cell, of) and (match := page.one("gain kept", cell, rf"whose test loss is ({LOSS})\.")):
                page.check("gain kept, test loss of the base", cell.part(match, 1), of.loss, fixed(4))

    def said(self, cell: Cell, of: Any) -> bool:
        """Is no share told, and does the page say why?"""
        match = self.page.one("gain", cell, r"is told: (?:\D|(30))*?\.\n") if of.untold else None
        if match:
            self.page.holds(f"gain: should say {of.untold!r}", of.untold in match[0])
            if match[1]:
                self.page.check("gain, fewest", cell.part(match, 1), 30, count)
        return bool(of.untold)
