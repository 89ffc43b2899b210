"""The model card of an adapter: what it is, how good it is and how sure that is, where it comes from, how to use it."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bitlora.files.record import EVAL, TEST
from reports.document.cells import counted, gap, loss, names, size, value, whole
from reports.document.document import (
    NOTHING,
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Heading,
    Inline,
    Listing,
    Paragraph,
    Table,
    plain,
)
from reports.load.folder import SPEC
from reports.load.scores import load_scores
from reports.load.sweep import Sweep
from reports.pages.summary import line_of
from reports.statistics.comparable import Row, comparable, rows
from reports.statistics.findings import Findings, findings
from reports.statistics.gain import Gains
from reports.statistics.paired import standard_error
from reports.statistics.verdict import Verdict
from reports.writers.markdown import markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FINGERPRINT: Final = re.compile("[0-9a-f]{16}")
"""The revision of a base in a folder (`bitlora.base.revision`)."""
LEFT_OUT: Final = ("confirms", "eval_every", "micro_batch")
"""Keys of a configuration that say nothing of an adapter."""


@dataclass(frozen=True, slots=True)
class Score:
    """A loss with its standard error, and what both are over."""

    split: str
    loss: float
    error: float
    over: str


@dataclass(frozen=True, slots=True)
class Serving:
    """How servers of adapters run an export."""

    use: str
    """The shell's lines that start them; empty where none can."""
    notes: tuple[str, ...] = ()
    """What is to be known there, a sentence each."""


def model_card(
    sweep: Sweep,
    trial_id: str,
    form: str,
    use: str,
    library: str = "peft",
    language: str = "python",
    *,
    licence: str | None = None,
    serving: Serving | None = None,
) -> str:
    """The card of a trial's adapter as it is handed on: the hub's metadata, then Markdown.

    Args:
        form: what was exported, in a few words.
        use: the lines that load and run it.
        library: what the hub is told that does so.
        language: what those lines are written in.
        licence: the base's; None: it is not known.
        serving: how servers of adapters run it; None: they do not.

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
    blocks = [
        Paragraph((f"{form} Trial {plain(trial_id)} of a sweep of LoRA adapters.",)),
        *_how_good(sweep, trial_id, scores),
        Heading(2, "How to use it"),
        Listing(language, use),
        *_served(serving),
        *_how_trained(sweep, about, licence),
        Heading(2, "What is not known"),
        Paragraph(
            ("Only the losses above were measured. Nothing is known of other tasks, languages, or of harmful output.",)
        ),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{markdown(Document(plain(name), tuple(blocks)))}"))


def _scores(sweep: Sweep, trial_id: str) -> list[Score]:
    found = []
    for split, file, key in (("eval", EVAL, "eval_loss"), ("test", TEST, "test_loss")):
        table = load_scores(sweep.folder, trial_id, file)
        row = sweep.trials.loc[sweep.trials["trial_id"] == trial_id, key]
        if table is not None and len(row) and math.isfinite(row.iloc[0]):
            over = f"{counted(len(table), 'example')}, this run alone"
            found.append(Score(split, float(row.iloc[0]), standard_error(table), over))
    for one in rows(comparable(sweep).confirmed):
        if trial_id in (one["name"], *one["trials"]):
            over = f"{counted(one['seeds'], 'fresh seed')}, a mean of runs of this configuration"
            found.append(Score("test", float(one["test_loss"]), float(one["error"]), over))
    return found


def _data(sweep: Sweep, about: dict[str, Any], scores: list[Score], name: str, library: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base = " ".join(sweep.base.get("model", ()))
    local = any(FINGERPRINT.fullmatch(revision) for revision in sweep.base.get("revision", ()))
    source = " ".join(sweep.data.get("source", ()))
    tags = ["lora", "bitlora", f"quantizer:{about.get('config.quantizer')}"]
    return ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        model_name=name,
        base_model=base if HUB_ID.fullmatch(base) and not local else None,
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


def _how_good(sweep: Sweep, trial_id: str, scores: list[Score]) -> list[Block]:
    results = tuple((f"{score.split}: {loss(score.loss, score.error)} (over {score.over})",) for score in scores)
    return [
        Heading(2, "How good it is"),
        Paragraph(("Cross-entropy in nats per completion token, with its standard error; lower is better.",)),
        *([] if results else [Paragraph(("No score could be read.",))]),
        Bullets((*results, *((line,) for line in standing(findings(sweep), trial_id)))),
    ]


def standing(found: Findings, trial_id: str) -> list[str]:
    """The sweep's verdict, and where a trial stands in it: tied with whom, and what share of the gain it keeps."""
    lines = [f"The sweep: {line_of(found)}."]
    own = {trial_id, found.sweep.firsts.get(trial_id)}
    for split, groups, verdict, gains in (
        ("test", found.groups.confirmed, found.verdict, found.test_gains),
        ("eval", found.groups.ranked, found.search, found.gains),
    ):
        row = next((row for row in rows(groups) if {row["name"], *row["trials"]} & own), None)
        if row is not None:
            row |= {"loss": row[f"{split}_loss"]}
            return [*lines, f"On the {split} rows {_place(verdict, row, len(groups))}.", _kept(gains, row)]
    return [*lines, "The trial is not compared with others: it did not train as long as they did."]


def _place(verdict: Verdict, row: Row, of: int) -> str:
    lead = [plain(each["name"], 30) for each in verdict.best]
    if any(each["trial_id"] == row["trial_id"] for each in verdict.best):
        others = [plain(each.row["name"], 30) for each in verdict.rivals if each.tied]
        also = [name for name in lead if name != plain(row["name"], 30)]
        tied = f"; it ties exactly with {names(also)}" if also else ""
        return f"this configuration has the lowest loss{tied}" + (f"; tied with it: {names(others)}" if others else "")
    rival = next((each for each in verdict.rivals if each.row["trial_id"] == row["trial_id"]), None)
    if rival is None:
        return f"this configuration is number {row['place']} of {of} by its loss; the verdict is about others"
    ends = rival.interval
    sure = "" if ends is None else f" (95 %: {ends.low:z.4f} to {ends.high:z.4f}{', tied' if rival.tied else ''})"
    return f"this configuration is {gap(rival.gap)} nats above {names(lead)}{sure}"


def _kept(gains: Gains | None, row: Row) -> str:
    if gains is None:
        return "What share of the gain over the base it keeps is not known: the base was not scored on these rows."
    kept = gains.kept(row)
    if kept is None:
        return f"What share of the gain over the base it keeps is not told: {gains.untold}."
    if gains.full is not None and gains.full["trial_id"] == row["trial_id"]:
        return f"It is the best in full precision, and gains {gap(gains.base - row['loss'])} nats over the base."
    ends = "" if kept.low is None or kept.high is None else f" (95 %: {100 * kept.low:z.2f} to {100 * kept.high:z.2f})"
    return f"It keeps {100 * kept.share:z.2f} % of the gain over the base of the best in full precision{ends}."


def _served(serving: Serving | None) -> list[Block]:
    if serving is None:
        return []
    lines: list[Block] = [Listing("sh", serving.use)] if serving.use else []
    return [Heading(2, "How to serve it"), *lines, Bullets(tuple((note,) for note in serving.notes))]


def _how_trained(sweep: Sweep, about: dict[str, Any], licence: str | None) -> list[Block]:
    config = {str(key).removeprefix("config."): each for key, each in about.items() if str(key).startswith("config.")}
    entries = [(key, value(key, each)) for key, each in config.items() if key not in LEFT_OUT]
    lines = tuple((Cell(plain(key).replace("_", " ")), Cell(text)) for key, text in entries if text != NOTHING)
    base, data = (", ".join(found) for found in (sweep.base.get("model", ()), sweep.data.get("source", ())))
    rows_ = " and ".join(whole(int(n)) if n.isdigit() else n for n in sweep.data.get("train_rows", ()))
    again = f"bitlora sweep {SPEC} --out {shlex.quote(plain(sweep.name, 60))}"
    command: list[tuple[Inline, ...]] = [
        ("Sweep: ", Code(again), f", {SPEC} being the sweep's own (its SHA-256 begins with {sweep.spec_hash})")
    ]
    return [
        Heading(2, "How it was trained"),
        Bullets(
            (
                (f"Base: {plain(base)}, {' and '.join(sweep.base.get('quantization', ('?',)))} while training",),
                (f"Licence of the base: {plain(licence, 60) if licence else 'unknown; look at its own card'}",),
                (f"Data: {plain(data)}, {rows_} rows; the loss is on completions alone",),
                *(command if sweep.spec_hash else []),
                (f"{whole(about.get('steps'))} optimizer steps, {whole(about.get('tokens'))} tokens",),
                (f"{whole(about.get('adapter_params'))} parameters, {size(about.get('adapter_bytes'))} as packed",),
                (f"Versions: {', '.join(f'{key} {each[0]}' for key, each in sorted(sweep.versions.items()))}",),
            )
        ),
        Table("configuration", (Column("key"), Column("value")), lines, shown=len(lines)),
    ]
