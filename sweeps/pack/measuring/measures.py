"""What trials are measured by beside their loss (`metrics` of a spec), computed in a pack at each evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitlora.config.metrics import GenerationConfig, MetricConfig
from sweeps.pack.user_function import ScoringError, UserFunction, packed, scored, unpacked

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from bitlora.engine.engine import Engine, EvalResult
    from bitlora.forward.inject import Base
    from sweeps.pack.settings import PackSettings


@dataclass(frozen=True, slots=True)
class Measured:
    """What one trial came to on one split."""

    values: dict[str, float] = field(default_factory=dict)
    """By metric."""
    columns: dict[str, list[float]] = field(default_factory=dict)
    """By metric of the split itself what each of its rows adds to it: hits of `token_accuracy`, of the others the value."""
    sets: dict[str, EvalResult] = field(default_factory=dict)
    """By metric of an eval set what its rows were scored with."""
    failed: str = ""
    """Why it cannot be measured, in one line."""


class PromptedRow(NamedTuple):
    """A row as what is asked and what is to be said: its last completion, and all that stands before it."""

    prompt: list[int]
    reference: list[int]


def asked_of(rows: Rows) -> list[PromptedRow]:
    """Each row as that."""
    found = []
    for first, last in pairwise(rows.offsets.tolist()):
        learn = rows.learn[first:last]
        stop = int(np.flatnonzero(learn)[-1]) + 1
        gaps = np.flatnonzero(~learn[:stop])
        start = int(gaps[-1]) + 1
        tokens = rows.tokens[first:last].tolist()
        found.append(PromptedRow(tokens[:start], tokens[start:stop]))
    return found


def right_choices(rows: Rows, losses: Sequence[float], by: str) -> list[int]:
    """Of each question, whose choices stand behind each other with the right one first: 1 where that is the likeliest.

    Args:
        losses: summed over the tokens of each choice, in nats.
        by: `sum`: these are compared; `token`: divided by the tokens.
    """
    tokens = rows.learn_tokens.tolist()
    found = []
    for _, group in groupby(zip(rows.groups, losses, tokens, strict=True), key=lambda each: each[0]):
        scores = [loss / (count if by == "token" else 1) for _, loss, count in group]
        found.append(int(scores[0] < min(scores[1:], default=math.inf)))
    return found


def unmeasurable(metrics: Mapping[str, MetricConfig], rows: Rows, tokenizer: Any) -> list[str]:
    """What keeps the eval rows from being measured so, a line each: users' functions are tried on one of them."""
    written = {name: metric for name, metric in metrics.items() if metric.what.generated}
    if not written:
        return []
    first = next((each for each in asked_of(rows) if len(each.prompt) > 1), None)
    if first is None:
        return [
            f"metrics.{name}: the eval rows are plain texts, in which nothing asks for an answer" for name in written
        ]
    prompt, reference = ([tokenizer.decode(part, skip_special_tokens=True)] for part in first)
    errors = []
    for name, metric in written.items():
        if metric.is_function:
            try:
                scored(metric.kind, unpacked(packed(metric.kind)), prompt, reference, reference)
            except ScoringError as error:
                errors.append(f"metrics.{name}: {error}")
    return errors


class Measures:
    """The metrics of a sweep.

    Args:
        metrics, generation: as the spec has them.
        sets: the rows of the eval sets, by metric.
        functions: users' own, by metric.
        tokenizer: transformers'; None where no text is generated.
        ends: tokens that end an output.
    """

    def __init__(
        self,
        metrics: Mapping[str, MetricConfig],
        generation: GenerationConfig,
        sets: Mapping[str, Rows],
        functions: Mapping[str, UserFunction],
        tokenizer: Any,
        ends: frozenset[int],
    ) -> None:
        self._metrics = metrics
        self._generation = generation
        self._sets = sets
        self._functions = functions
        self._tokenizer = tokenizer
        self._ends = ends
        kinds = {metric.kind for metric in metrics.values()}
        self.hits = "token_accuracy" in kinds
        """Are tokens that are the likeliest to be counted?"""
        self._written = {name: metric for name, metric in metrics.items() if metric.what.generated}

    @classmethod
    def of(cls, settings: PackSettings, base: Base) -> Measures:
        """Those of a pack."""
        from bitlora.base.load import load_tokenizer

        written = any(metric.what.generated for metric in settings.metrics.values())
        tokenizer = load_tokenizer(settings.base.model, settings.base.revision) if written else None
        functions = {name: unpacked(function) for name, function in settings.functions.items()}
        return cls(
            settings.metrics, settings.generation, settings.dataset.sets, functions, tokenizer, _ends(base, tokenizer)
        )

    def measure(
        self, engine: Engine, results: Mapping[int, EvalResult], rows: Rows, sets: bool = True
    ) -> dict[int, Measured]:
        """Measure slots on a split. Every worker must call it, with the same.

        Args:
            results: of each slot, on `rows`.
            sets: on the eval sets too.
        """
        found = {slot: Measured(failed=result.failed) for slot, result in results.items()}
        for name, metric in self._metrics.items():
            if metric.kind == "token_accuracy":
                for slot, result in results.items():
                    hits = [float(count) for count in result.hits or ()]
                    found[slot].columns[name] = hits
                    found[slot].values[name] = sum(hits) / sum(result.tokens)
        if sets:
            self._measure_sets(engine, found)
        if self._written:
            self._measure_text(engine, found, rows)
        return found

    def _measure_sets(self, engine: Engine, found: dict[int, Measured]) -> None:
        from bitlora.engine.batch import Batch

        for name, rows in self._sets.items():
            metric = self._metrics[name]
            for slot, result in engine.evaluate(_well(found), Batch.of(rows)).items():
                if result.failed:
                    found[slot] = Measured(failed=result.failed)
                    continue
                found[slot].sets[name] = result
                if metric.kind == "choice_accuracy":
                    right = right_choices(rows, result.losses, metric.by)
                    found[slot].values[name] = sum(right) / len(right)
                else:
                    found[slot].values[name] = math.exp(min(result.loss, 700.0))

    def _measure_text(self, engine: Engine, found: dict[int, Measured], rows: Rows) -> None:
        """Generate once for all metrics that are over text, and score it: in the first worker, since nobody says that a
        user's function gives the same twice."""
        from bitlora.engine.generation.greedy import OutputEnd, generate_all, never

        over = self._is_over if self._generation.stop else never
        asked = asked_of(rows)
        ending = OutputEnd(self._generation.max_tokens, self._ends, over)
        written = generate_all(engine, _well(found), [each.prompt for each in asked], ending)
        texts: dict[int, tuple[dict[str, list[float]], str]] = {}
        if engine.workers.first:
            prompts, references = ([self._text(part) for part in parts] for parts in zip(*asked, strict=True))
            for slot, outputs in written.items():
                texts[slot] = {}, outputs.failed
                if not outputs.failed:
                    given = [self._cut(self._text(tokens)) for tokens in outputs.tokens]
                    texts[slot] = self._score(prompts, references, given)
        for slot, (columns, failed) in engine.workers.broadcast(texts).items():
            if failed:
                found[slot] = Measured(failed=failed)
                continue
            found[slot].columns.update(columns)
            found[slot].values.update({name: math.fsum(each) / len(each) for name, each in columns.items()})

    def _score(
        self, prompts: list[str], references: list[str], outputs: list[str]
    ) -> tuple[dict[str, list[float]], str]:
        """The numbers of each metric over text, by row; or why there are none."""
        columns: dict[str, list[float]] = {}
        for name, metric in self._written.items():
            if metric.is_function:
                try:
                    columns[name] = scored(metric.kind, self._functions[name], prompts, references, outputs)
                except ScoringError as error:
                    return {}, f"metrics.{name}: {error}"
            else:
                equal = (one.strip() == other.strip() for one, other in zip(references, outputs, strict=True))
                columns[name] = [float(each) for each in equal]
        return columns, ""

    def _text(self, tokens: Sequence[int]) -> str:
        found: str = self._tokenizer.decode([*tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def _is_over(self, tokens: Sequence[int]) -> bool:
        text = self._text(tokens)
        return any(stop in text for stop in self._generation.stop)

    def _cut(self, text: str) -> str:
        """The text up to what ends it."""
        return text[: min((at for stop in self._generation.stop if (at := text.find(stop)) >= 0), default=None)]


def _well(found: Mapping[int, Measured]) -> list[int]:
    return [slot for slot, each in found.items() if not each.failed]


def _ends(base: Base, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an output of a base: those of its generation configuration, and the tokenizer's own."""
    own = getattr(base.model, "generation_config", None)
    found: list[int] = []
    for each in (getattr(own, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        found += each if isinstance(each, list) else [] if each is None else [each]
    return frozenset(found)
