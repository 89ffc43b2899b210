"""The CSVs beside a report's page: all digits are there."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd
from printed_page import (
    count,
    duration,
    fixed,
    short,
    size,
)
from recount_cells import Cells
from sweep_files import best_of_each_quantizer, front


class Beside(Cells):
    def frame(self, name: str, key: str) -> pd.DataFrame | None:
        path = self.report / name
        if not path.exists():
            return None
        return pd.read_csv(path, keep_default_na=False, na_values=[""]).set_index(key, drop=False)

    def near(self, where: str, printed: Any, value: Any) -> None:
        """A cell of a CSV: empty for what is not there."""
        missing = isinstance(printed, float) and math.isnan(printed)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or absent:
            right = missing == absent
        elif isinstance(value, bool) or not isinstance(value, int | float):
            right = str(printed) == str(value)
        else:
            right = math.isclose(float(printed), value, rel_tol=1e-9, abs_tol=1e-12)
        self.page.holds(f"{where}: {printed} in the file, recomputed {value}", right)

    def rows(self, name: str, key: str, expected: dict[Any, dict[str, Any]]) -> None:
        """A CSV has the expected rows, and in each the expected cells."""
        table = self.frame(name, key)
        if table is None:
            self.page.holds(f"{name} is missing", not expected)
            return
        self.page.holds(f"{name}: rows {list(table.index)}, not {list(expected)}", list(table.index) == list(expected))
        for label, values in expected.items():
            if label in table.index:
                row = table.loc[label]
                extra = set(table.columns) - set(values) - {key}
                self.page.holds(f"{name}: column {sorted(extra)} is not accounted for", not extra)
                for column, value in values.items():
                    self.near(f"{name}, {label}, {column}", row.get(column, math.nan), value)

    def figures(self) -> None:
        sweep, ranking = self.sweep, self.sweep.ranking
        budget = {}
        for status in dict.fromkeys(row["status"].text for row in self.page.table("", self.page.section("Budget"))):
            those = [trial for trial in sweep.trained if trial.status == status]
            taken = sum(trial.record["steps"] for trial in those)
            budget[status] = {"trials": len(those), "steps_run": taken, "steps_saved": self.saved(those)}
        self.rows("figures/budget.csv", "status", budget if len(budget) > 1 else {})
        self.rows("figures/gaps.csv", "label", self.gaps())
        self.rows("figures/size-gaps.csv", "label", self.size_gaps())
        kept = front([(c.loss, c.bytes) for c in ranking])
        points = {}
        for configuration, keep in zip(ranking, kept, strict=True):
            points[configuration.ids[0]] = {
                "quantizer": configuration.quantizer,
                "eval_loss": configuration.loss,
                "error": configuration.error,
                "adapter_bytes": configuration.bytes,
                "tokens": configuration.tokens,
                "front": keep,
            }
        self.rows("figures/quality-size.csv", "label", points)
        self.curves("learning-curves", "eval_loss")
        self.curves("training-curves", "train_loss")
        self.slices()
        self.shares()

    def gaps(self) -> dict[str, dict[str, Any]]:
        sweep = self.sweep
        shown = sweep.confirmed or list(best_of_each_quantizer(sweep.ranking).values())
        if len(shown) < 2:
            return {}
        found = {}
        for configuration in shown:
            of = sweep.gap(configuration) if configuration is not shown[0] else None
            found[f"{configuration.ids[0]} {configuration.quantizer}"] = {
                "quantizer": configuration.quantizer,
                "difference": configuration.loss - shown[0].loss,
                "low": of.low if of else None,
                "high": of.high if of else None,
            }
        return found

    def size_gaps(self) -> dict[str, dict[str, Any]]:
        found, shown = {}, self.sweep.against_full
        for configuration, of in shown:
            full = shown[0][0]
            found[configuration.ids[0]] = {
                "quantizer": configuration.quantizer,
                "adapter_bytes": configuration.bytes,
                "percent": 100 * (configuration.loss / full.loss - 1),
                "low": 100 * of.low / full.loss if of else None,
                "high": 100 * of.high / full.loss if of else None,
            }
        return found

    def curves(self, figure: str, loss: str) -> None:
        path = self.report / f"figures/{figure}.csv"
        best = self.sweep.headline[0].ids[0] if self.sweep.headline else None
        expected = []
        for trial in self.sweep.trials:
            base = self.sweep.bare and loss == "eval_loss" and trial.begins_bare
            begun = pd.DataFrame([{"step": 0, loss: self.sweep.bare_loss("eval")}]) if base else None
            lines = trial.metrics
            if loss == "eval_loss" and "rows" in lines:  # over some rows it is no point of the curve
                lines = lines[lines["rows"].isna()]
            evaluated = len(lines) and lines[loss].notna().any()
            for _, line in (pd.concat([begun, lines]) if evaluated else lines).iterrows():
                told = {"quantizer": trial.config["quantizer"], "status": trial.status, "best": trial.id == best}
                expected.append({"trial_id": trial.id, "step": int(line["step"]), loss: line[loss], **told})
        expected = [line for line in expected if pd.notna(line[loss])]
        if not path.exists():
            self.page.holds(f"{figure}.csv is missing", not expected)
            return
        table = pd.read_csv(path, keep_default_na=False)
        self.page.holds(f"{figure}.csv: {len(expected)} points, not {len(table)}", len(table) == len(expected))
        for (_, row), values in zip(table.iterrows(), expected, strict=False):
            for column, value in values.items():
                self.near(f"{figure}.csv, {values['trial_id']}, {column}", row.get(column), value)

    def slices(self) -> None:
        table = self.frame("figures/slices.csv", "trial_id")
        if table is None:
            return
        columns = [name for name in table.columns if name not in ("trial_id", "quantizer", "eval_loss", "ranked")]
        expected = {}
        for trial in self.sweep.searched:
            if trial.status in ("completed", "pruned") and not trial.problem and not trial.in_part:
                told = {"quantizer": trial.config["quantizer"], "eval_loss": trial.loss("eval"), "ranked": trial.usable}
                expected[trial.id] = told | {name: trial.config[name] for name in columns}
        self.rows("figures/slices.csv", "trial_id", expected)

    def tables(self) -> None:
        """trials.csv: a row per trial. The CSVs of tables are held against the page, which has been checked."""
        table = self.frame("trials.csv", "trial_id")
        if table is None:
            return
        self.page.holds("trials.csv: a row for each trial", sorted(table.index) == sorted(self.of))
        gain = self.sweep.gain("eval")
        kept = {
            name: of for c in self.sweep.ranking if gain and not gain.untold and (of := gain.kept(c)) for name in c.ids
        }
        places = {name: place for place, c in enumerate(self.sweep.ranking, 1) for name in c.ids}
        for trial in self.sweep.trials:
            if trial.id not in table.index or trial.problem:
                continue
            told = {key: trial.record.get(key) for key in ("status", "eval_loss", "steps", "tokens", "seconds")}
            told |= {key: trial.record.get(key) for key in ("adapter_params", "adapter_bytes", "test_loss")}
            if trial.in_part:
                told |= {"eval_loss": None, "part_loss": told["eval_loss"], "eval_rows": trial.record["eval_rows"]}
            first = trial.record.get("same_as") or trial.id
            told |= {"reason": trial.reason or None, "budget": trial.config.get("steps"), "place": places.get(first)}
            told["same_as"] = trial.record.get("same_as")
            if self.sweep.bare:
                told["base_loss"] = self.sweep.bare_loss("eval")
                share, low, high = kept.get(first, (None, None, None))
                told |= {"gain_kept": share, "gain_kept_low": low, "gain_kept_high": high}
            told |= {f"config.{key}": value for key, value in trial.config.items()}
            for column, value in told.items():
                self.near(f"trials.csv, {trial.id}, {column}", table.loc[trial.id].get(column, math.nan), value)
        self.beside()

    def beside(self) -> None:
        """Each number of tables/*.csv is what the page rounds."""
        share = {"gain kept, %": fixed(2)}
        for name, title, columns in (
            (
                "confirmed",
                "Confirmed",
                {"test loss": fixed(4), "gap to best": fixed(4), "in the search": fixed(4), **share},
            ),
            ("quantizers", "Quantizers side by side", {"eval loss": fixed(4), "gap to best": fixed(4), **share}),
            (
                "full-precision",
                "Against full precision",
                {**share, "size, %": fixed(2), "gap, %": fixed(2), "test loss": fixed(4), "eval loss": fixed(4)},
            ),
            ("leaderboard", "Leaderboard", {"eval loss": fixed(4), "gap to best": fixed(4), **share}),
            ("pareto", "Quality against size", {"eval loss": fixed(4), **share}),
            ("pruned", "Pruned", {"eval loss there": fixed(4), "learning rate": short}),
            (
                "budget",
                "Budget and speed",
                {"steps": count, "steps saved": count, "tokens": count, "in slots": duration},
            ),
            ("endings", "How the trials ended", {"trials": count}),
        ):
            path = self.report / "tables" / f"{name}.csv"
            if not path.exists():
                continue
            table = pd.read_csv(path, keep_default_na=False, na_values=["", "–"])
            rows = self.page.table(name, self.page.section(title))
            self.page.holds(f"tables/{name}.csv has not the page's rows", len(rows) == len(table))
            numbers = columns | {"packed size": size, "parameters": count, "bits per parameter": fixed(2)}
            for (index, values), row in zip(table.iterrows(), rows, strict=False):
                for column, holds in numbers.items():
                    if column not in row or column not in table.columns or pd.isna(values[column]):
                        continue
                    printed, value = re.split(r" ± | \(", row[column].text)[0], values[column]
                    where = f"tables/{name}.csv, row {index}, {column}: {value}, on the page {printed}"
                    self.page.holds(where, holds(printed, float(value)))
