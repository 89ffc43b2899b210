"""How to run the sweep again, and how to go on with what it left."""

from __future__ import annotations

import shlex
from typing import Any

from bitlora.files.record import DATA, RECORD, TRIALS
from reports.document.cells import folder_name
from reports.document.document import Block, Code, Inline, Listing, Paragraph, plain
from reports.load.folder import SPEC
from reports.load.values import as_text
from reports.sections.parts import Section, section
from reports.statistics.findings import Findings


def repeat(findings: Findings) -> Section:
    """The command that runs the sweep again, how to go on with its files, and with its best adapter."""
    sweep, best = findings.sweep, findings.best
    folder = folder_name(sweep.folder)
    again = f"bitlora sweep {shlex.quote(f'{folder}/{SPEC}')} --out {shlex.quote(f'{folder}-again')}\n"
    code = f"""\
import json, pathlib, pandas as pd
trials = pd.json_normalize([json.loads(p.read_text()) for p in pathlib.Path({folder!r}).glob("{TRIALS}/*/{RECORD}")])
"""
    blocks: list[Block] = [
        Listing("sh", again)
        if sweep.spec
        else Paragraph((f"{SPEC} cannot be read, so there is nothing to run again.",)),
        *_data(sweep.data_files),
        Paragraph(("Every trial is a line of ", Code("trials.csv"), ", beside this report. Or from the records:")),
        Listing("python", code),
    ]
    files: tuple[Inline, ...] = (
        *("Beside each record stand ", Code("metrics.jsonl"), " (a line per evaluation), ", Code("eval.parquet")),
        *(" (the loss of each example) and ", Code("adapter/"), ". "),
        *(Code("optuna-dashboard"), f" opens {folder}/study.journal."),
    )
    blocks.append(Paragraph(files))
    if best is not None:
        name = str(best["name"])
        trial = shlex.quote(f"{folder}/{TRIALS}/{name}")
        # With 8-bit activations an adapter is more than its weights.
        form = "packed" if best.get("config.activations") == "int8" else "peft"
        what = "in its true bits" if form == "packed" else "as ordinary LoRA weights for PEFT, vLLM or llama.cpp"
        lines = [
            f'bitlora generate {trial} "a prompt"',
            f"bitlora export {trial} --to {form} --out {shlex.quote(f'{name}-{form}')}",
        ]
        blocks += [
            Paragraph((f"The best adapter: tried at once, and handed on {what}.",)),
            Listing("sh", "\n".join(lines) + "\n"),
        ]
    return section("How to repeat it", *blocks, folded="Commands, and where every file is")


def _data(files: tuple[dict[str, Any], ...]) -> list[Block]:
    """Where its data files are by now: copied beside the spec, or to be there."""
    away = [one for one in files if not isinstance(one.get("kept"), str)]
    blocks: list[Block] = []
    if len(files) > len(away):
        copies = " has copies of its data files, which are read where they are no longer under their names."
        blocks.append(Paragraph((Code(f"{DATA}/"), copies)))
    if away:
        named: list[Inline] = []
        for one in away:
            sha = plain(as_text(one.get("sha256"))[:16])
            named += [", " * bool(named), Code(plain(as_text(one.get("name")), 80)), f" (SHA-256 {sha}…)"]
        blocks.append(Paragraph(("Too large to be copied, so to be there as it was: ", *named, ".")))
    return blocks
