"""The model card of an adapter: what it is, how good it is and how sure that is, where it comes from, how to use it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bitlora.files.record import EVAL, TEST
from reports.document.cells import counted, loss, size, value, whole
from reports.document.document import (
    NOTHING,
    Block,
    Bullets,
    Cell,
    Column,
    Document,
    Heading,
    Listing,
    Paragraph,
    Table,
    plain,
)
from reports.load.scores import load_scores
from reports.load.sweep import Sweep
from reports.statistics.comparable import comparable, rows
from reports.statistics.paired import standard_error
from reports.writers.markdown import markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LEFT_OUT: Final = ("confirms", "eval_every", "micro_batch")
"""Keys of a configuration that say nothing of an adapter."""


@dataclass(frozen=True, slots=True)
class Score:
    """A loss with its standard error, and what both are over."""

    split: str
    loss: float
    error: float
    over: str


def model_card(
    sweep: Sweep, trial_id: str, form: str, use: str, library: str = "peft", language: str = "python"
) -> str:
    """The card of a trial's adapter as it is handed on: the hub's metadata, then Markdown.

    Args:
        form: what was exported, in a few words.
        use: the lines that load and run it.
        library: what the hub is told that does so.
        language: what those lines are written in.

    Raises:
        KeyError: the sweep has no such trial.
    """
    from huggingface_hub import ModelCard

    about = next((row for row in rows(sweep.trials) if row["trial_id"] == trial_id), None)
    if about is None:
        raise KeyError(trial_id)
    scores = _scores(sweep, trial_id)
    name = f"{sweep.name}-{trial_id}"
    data = _data(sweep, about, scores, name, library)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(sweep, about, scores, name, form, Listing(language, use))}")
    return str(card)


def _scores(sweep: Sweep, trial_id: str) -> list[Score]:
    found = []
    for split, file, key in (("eval", EVAL, "eval_loss"), ("test", TEST, "test_loss")):
        table = load_scores(sweep.folder, trial_id, file)
        row = sweep.trials.loc[sweep.trials["trial_id"] == trial_id, key]
        if table is not None and len(row) and math.isfinite(row.iloc[0]):
            over = f"{counted(len(table), 'example')}, this run alone"
            found.append(Score(split, float(row.iloc[0]), standard_error(table), over))
    for one in rows(comparable(sweep.trials).confirmed):
        if trial_id in (one["name"], *one["trials"]):
            over = f"{counted(one['seeds'], 'fresh seed')}, a mean of runs of this configuration"
            found.append(Score("test", float(one["test_loss"]), float(one["error"]), over))
    return found


def _data(sweep: Sweep, about: dict[str, Any], scores: list[Score], name: str, library: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base = " ".join(sweep.base.get("model", ()))
    source = " ".join(sweep.data.get("source", ()))
    tags = ["lora", "bitlora", f"quantizer:{about.get('config.quantizer')}"]
    return ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        model_name=name,
        base_model=base if HUB_ID.fullmatch(base) else None,
        datasets=source if HUB_ID.fullmatch(source) else None,
        eval_results=[_result(score, source) for score in scores] or None,
    )


def _result(score: Score, source: str) -> EvalResult:
    from huggingface_hub import EvalResult

    error = f" ± {score.error:.4f}" if math.isfinite(score.error) else ""
    return EvalResult(
        task_type="text-generation",
        dataset_type=source or "unknown",
        dataset_name=source or "unknown",
        dataset_split=score.split,
        metric_type="loss",
        metric_name=f"cross-entropy in nats per completion token{error} (standard error over {score.over})",
        metric_value=round(score.loss, 6),
    )


def _body(sweep: Sweep, about: dict[str, Any], scores: list[Score], name: str, form: str, use: Listing) -> str:
    config = {str(key).removeprefix("config."): each for key, each in about.items() if str(key).startswith("config.")}
    entries = [(key, value(key, each)) for key, each in config.items() if key not in LEFT_OUT]
    lines = tuple((Cell(plain(key).replace("_", " ")), Cell(text)) for key, text in entries if text != NOTHING)
    results = tuple((f"{score.split}: {loss(score.loss, score.error)} (over {score.over})",) for score in scores)
    base, data = (", ".join(found) for found in (sweep.base.get("model", ()), sweep.data.get("source", ())))
    rows_ = " and ".join(whole(int(n)) if n.isdigit() else n for n in sweep.data.get("train_rows", ()))
    blocks: list[Block] = [
        Paragraph((f"{form} Trial {plain(about['trial_id'])} of a sweep of LoRA adapters.",)),
        Heading(2, "How good it is"),
        Paragraph(("Cross-entropy in nats per completion token, with its standard error; lower is better.",)),
        Bullets(results) if results else Paragraph(("No score could be read.",)),
        Heading(2, "How to use it"),
        use,
        Heading(2, "How it was trained"),
        Bullets(
            (
                (f"Base: {plain(base)}, {' and '.join(sweep.base.get('quantization', ('?',)))} while training",),
                (f"Data: {plain(data)}, {rows_} rows; the loss is on completions alone",),
                (f"{whole(about.get('steps'))} optimizer steps, {whole(about.get('tokens'))} tokens",),
                (f"{whole(about.get('adapter_params'))} parameters, {size(about.get('adapter_bytes'))} as packed",),
                (f"Versions: {', '.join(f'{key} {each[0]}' for key, each in sorted(sweep.versions.items()))}",),
            )
        ),
        Table("configuration", (Column("key"), Column("value")), lines, shown=len(lines)),
        Heading(2, "What is not known"),
        Paragraph(
            ("Only the losses above were measured. Nothing is known of other tasks, languages, or of harmful output.",)
        ),
    ]
    return markdown(Document(plain(name), tuple(blocks)))
