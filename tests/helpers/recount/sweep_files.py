"""A sweep's folder read with pandas, and the statistics of its report, by code that shares nothing with the product.

The definitions are those of the README, and of the notes that a report prints. Losses are nats per token.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from judged import Gain, Gap, gaps, ratio


@dataclass
class Trial:
    """A folder below trials/: its record (or what stands in for one that cannot be read), curve and scores."""

    id: str
    record: dict[str, Any]
    metrics: pd.DataFrame
    scores: dict[str, pd.DataFrame]  # "eval" and "test", indexed by example
    problem: str = ""

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def reason(self) -> str:
        return self.record.get("reason") or ""

    @property
    def in_part(self) -> bool:
        """It was stopped before all eval rows were scored: its loss is over some of them, and compares with no other."""
        return bool(self.record.get("eval_rows"))

    @property
    def confirms(self) -> str | None:
        return self.config.get("confirms")

    @property
    def begins_bare(self) -> bool:
        """At step 0 it is the base: it has not another trial's weights, with which it was evaluated there."""
        scored = "step" in self.metrics and bool((self.metrics["step"] == 0).any())
        return not scored and not isinstance(self.config.get("warm_start"), str)

    @property
    def usable(self) -> bool:
        """Completed its full budget with a finite eval loss."""
        loss = self.record.get("eval_loss")
        full = self.record["steps"] == self.config.get("steps", self.record["steps"])
        return self.status == "completed" and full and isinstance(loss, int | float) and math.isfinite(loss)

    def loss(self, split: str) -> float:
        """Over the examples where they are there, else the record's word."""
        if split in self.scores:
            return ratio(self.scores[split])
        return self.record.get(f"{split}_loss") or math.nan

    def key(self) -> str:
        """What trials of one configuration have in common: all but the seed."""
        return json.dumps({k: v for k, v in self.config.items() if k not in ("seed", "confirms")}, sort_keys=True)


@dataclass
class Configuration:
    """Trials that differ in their seed alone, and how they did on a split."""

    trials: list[Trial]
    split: str
    confirmed: Trial | None = None  # the trial of the search that these confirm

    @property
    def losses(self) -> list[float]:
        return [trial.loss(self.split) for trial in self.trials]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))

    @property
    def error(self) -> float | None:
        """Standard error over seeds; none of one seed."""
        seeds = len(self.trials)
        return float(np.std(self.losses, ddof=1) / math.sqrt(seeds)) if seeds > 1 else None

    @property
    def config(self) -> dict[str, Any]:
        return self.trials[0].config

    @property
    def quantizer(self) -> str:
        return self.config["quantizer"]

    @property
    def params(self) -> int:
        return self.trials[0].record["adapter_params"]

    @property
    def bytes(self) -> int:
        return self.trials[0].record["adapter_bytes"]

    @property
    def tokens(self) -> float:
        return float(np.mean([trial.record["tokens"] for trial in self.trials]))

    @property
    def ids(self) -> list[str]:
        return [self.confirmed.id] if self.confirmed else [trial.id for trial in self.trials]


def front(points: list[tuple[float, ...]]) -> list[bool]:
    """Of each point: no other is as small in everything and smaller in something."""
    return [
        not any(all(b <= a for a, b in zip(p, q, strict=True)) and q != p for q in points if q is not p) for p in points
    ]


@dataclass
class Sweep:
    folder: Path
    trials: list[Trial] = field(init=False)
    runs: list[dict[str, Any]] = field(init=False)
    spec: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.trials = [read_trial(path) for path in sorted((self.folder / "trials").iterdir()) if path.is_dir()]
        runs = self.folder / "runs.jsonl"
        self.runs = [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []
        self.spec = parse_yaml((self.folder / "sweep.yaml").read_text())

    @cached_property
    def trained(self) -> list[Trial]:
        """Without those whose record names another trial, which is there: they have that one's result."""
        there = {trial.id for trial in self.trials}
        return [trial for trial in self.trials if trial.record.get("same_as") not in there]

    @property
    def begun(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.confirms]

    @property
    def searched(self) -> list[Trial]:
        return [trial for trial in self.trained if not trial.confirms]

    @cached_property
    def ranking(self) -> list[Configuration]:
        """Configurations of the search at equal budget, best first."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.searched:
            if trial.usable:
                groups.setdefault(trial.key(), []).append(trial)
        return sorted((Configuration(group, "eval") for group in groups.values()), key=lambda c: (c.loss, c.ids))

    @cached_property
    def confirmed(self) -> list[Configuration]:
        """The best of the search once more, best first on the test split."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if trial.confirms and trial.usable and "test" in trial.scores:
                groups.setdefault(trial.confirms, []).append(trial)
        of = {trial.id: trial for trial in self.trials}
        found = [Configuration(group, "test", of[name]) for name, group in groups.items()]
        return sorted(found, key=lambda c: (c.loss, c.ids))

    @property
    def headline(self) -> list[Configuration]:
        """What the verdict is about: the confirmed where there are any, else the search."""
        return self.confirmed or self.ranking

    @cached_property
    def compared(self) -> list[Configuration]:
        """What the search's best is held against, itself first: the best of each quantizer, or the first ten of one."""
        bests = list(best_of_each_quantizer(self.ranking).values())
        return bests if len(bests) > 1 else self.ranking[:10]

    @property
    def contest(self) -> list[Configuration]:
        """What the verdict compares: all that were confirmed, else the best of the search."""
        return self.confirmed or self.compared

    @property
    def front(self) -> list[Configuration]:
        """Those that no other is as good as in loss, bytes and tokens (where it was searched so, in the first two) and
        better in one; the smallest first."""
        both = (self.spec.get("search") or {}).get("objectives") == ["loss", "bytes"]
        kept = front([(c.loss, c.bytes) if both else (c.loss, c.bytes, c.tokens) for c in self.ranking])
        best = (c for c, keep in zip(self.ranking, kept, strict=True) if keep)
        return sorted(best, key=lambda c: (c.bytes, c.loss))

    @cached_property
    def behind(self) -> dict[str, Gap | None]:
        """Of each that is compared, by its first trial, the gap to the best: of the search, and of the confirmed."""
        found = {}
        for held in (self.compared, self.confirmed):
            for number, of in gaps(held[0], held[1:]).items() if held else ():
                found[held[1 + number].trials[0].id] = of
        return found

    @cached_property
    def bare(self) -> dict[str, pd.DataFrame]:
        """What the base scored without an adapter, by split; {} where nobody scored it."""
        folder = self.folder / "base"
        if not (folder / "record.json").exists():
            return {}
        return {
            split: read_scores(folder, split) for split in ("eval", "test") if (folder / f"{split}.parquet").exists()
        }

    def bare_loss(self, split: str) -> float:
        return ratio(self.bare[split])

    @cached_property
    def gains(self) -> dict[str, Gain]:
        """By split, the gain over the base of the search and of the confirmed."""
        told = [*self.compared, *self.ranking[:30], *self.front] if self.ranking else []
        of = {"eval": (self.ranking, told), "test": (self.confirmed, self.confirmed)}
        return {
            split: Gain(self.bare[split], next((c for c in ranking if c.quantizer == "none"), None), compared)
            for split, (ranking, compared) in of.items()
            if split in self.bare and ranking
        }

    def gain(self, split: str) -> Gain | None:
        return self.gains.get(split)

    def gap(self, other: Configuration) -> Gap | None:
        return self.behind.get(other.trials[0].id)

    @property
    def unit(self) -> Configuration:
        """Of whose loss gaps are per cent: full precision, where it is compared, else the best."""
        return next((c for c in self.contest if c.quantizer == "none"), self.contest[0])

    @cached_property
    def against_full(self) -> list[tuple[Configuration, Gap | None]]:
        """The best in full precision, then that of each other quantizer, the largest first, each with its gap: of the
        contest where both are in it, else of the search; [] where one of both is missing there too."""
        for held in (self.contest, self.compared):
            by = best_of_each_quantizer(held)
            full = by.pop("none", None)
            if full is not None and by:
                rest = [c for c in held if c is not full]
                of = gaps(full, rest)
                lines = [(c, of[rest.index(c)]) for c in sorted(by.values(), key=lambda c: (-c.bytes, c.loss))]
                return [(full, None), *lines]
        return []

    @cached_property
    def varied(self) -> set[str]:
        """Keys of the configuration that the spec searches, or in which the search's trials differ."""
        keys = {key for trial in self.begun for key in trial.config}
        differ = {key for key in keys if len({json.dumps(t.config.get(key)) for t in self.begun}) > 1}
        return differ | set((self.spec.get("search") or {}).get("space") or {})


def best_of_each_quantizer(ranking: list[Configuration]) -> dict[str, Configuration]:
    """Quantizer -> its best, best first."""
    found: dict[str, Configuration] = {}
    for configuration in ranking:
        found.setdefault(configuration.quantizer, configuration)
    return found


def edge(key: str, config: dict[str, Any], spec: dict[str, Any]) -> str:
    """`lowest` or `highest` where a number is the end of its choices, or within a twentieth of an end of its range."""
    domain = ((spec.get("search") or {}).get("space") or {}).get(key)
    if isinstance(domain, dict) and "by" in domain:
        domain = domain.get(config[domain["by"]], domain.get("default"))
    value = config[key]
    if domain is None or isinstance(value, str | bool):
        return ""
    if isinstance(domain, list):
        at, low, high = value, min(domain), max(domain)
        if low == high:
            return ""
    else:
        scale = math.log if domain.get("log") else float
        begin, end = scale(domain["low"]), scale(domain["high"])
        at, low, high = (scale(value) - begin) / (end - begin), 0.05, 0.95
    return "lowest" if at <= low else "highest" if at >= high else ""


def read_scores(path: Path, split: str) -> pd.DataFrame:
    return pd.read_parquet(path / f"{split}.parquet").set_index("example_id")


def read_trial(path: Path) -> Trial:
    curve = path / "metrics.jsonl"
    lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    scores = {}
    for split in ("eval", "test"):
        if (path / f"{split}.parquet").exists():
            scores[split] = read_scores(path, split)
    problem = ""
    try:
        record = json.loads((path / "record.json").read_text())
        if record["status"] == "completed" and not math.isfinite(record.get("eval_loss") or math.nan):
            problem = "no usable loss"
    except (OSError, json.JSONDecodeError) as error:
        problem = str(error)
        last = lines[-1] if lines else {"step": 0, "tokens": 0, "seconds": 0.0}
        record = {
            "status": "unknown",
            "reason": "its record cannot be read",
            "config": json.loads((path / "config.json").read_text()),
            "steps": last["step"],
            "tokens": last["tokens"],
            "seconds": last["seconds"],
        }
    return Trial(path.name, record, pd.DataFrame(lines), scores, problem)


def parse_yaml(text: str) -> Any:
    """As much YAML as a sweep.yaml needs: mappings and lists in blocks or in a line, and scalars."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines() if line.strip()]
    return _block([line for line in lines if not line[1].startswith("#")])


def _block(lines: list[tuple[int, str]]) -> Any:
    """Lines of one depth and all that hangs below them."""
    if not lines:
        return None
    dash = lines[0][1].startswith("- ")
    depth = lines[0][0]
    parts: list[list[tuple[int, str]]] = []
    for line in lines:
        if line[0] == depth and line[1].startswith("- ") == dash:
            parts.append([line])
        else:
            parts[-1].append(line)
    if dash:
        return [_item([(depth + 2, part[0][1][2:]), *part[1:]]) for part in parts]
    found = {}
    for (_, head), *below in parts:
        key, _, value = head.partition(":")
        found[key.strip()] = _scalar(value.strip()) if value.strip() else _block(below)
    return found


def _item(lines: list[tuple[int, str]]) -> Any:
    if len(lines) == 1 and not (lines[0][1].partition(": ")[1] and lines[0][1][0] not in "{["):
        return _scalar(lines[0][1])
    return _block(lines)


def _scalar(text: str) -> Any:
    if text[:1] in "{[" and text[-1:] in "}]":
        parts = _split(text[1:-1])
        if text[0] == "[":
            return [_scalar(part) for part in parts]
        return {key.strip(): _scalar(value.strip()) for key, _, value in (part.partition(":") for part in parts)}
    if text in ("null", "~", "true", "false"):
        return {"null": None, "~": None, "true": True, "false": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _split(text: str) -> list[str]:
    """At commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
