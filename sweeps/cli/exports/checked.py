"""Hand a trial's adapter on: written beside its place, read again as a user would, held against the trial's record, and
only then put there."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bitlora.files.writing import write_folder, write_text
from sweeps.cli.exports.forms import WHOLE, WRITERS, Form
from sweeps.cli.exports.holding import ExportError
from sweeps.cli.exports.served import Moved, Over, measured, served_form
from sweeps.cli.exports.using import TEMPLATE, serving, use
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from reports.pages.card import Serving

CARD: Final = "README.md"
LIBRARY: Final[dict[Form, str]] = {
    "packed": "bitlora",
    "peft": "peft",
    "gguf": "gguf",
    "gguf-f16": "gguf",
    "gguf-q8_0": "gguf",
    "gguf-f32": "gguf",
    "merged": "transformers",
}
"""What the hub is told an export is loaded with. The lines that load GGUF are the shell's, the others Python."""
MERGES: Final = "its inputs are normalized and rounded, so no merged weight does what it does"
INT8: Final = {
    "peft": "stock PEFT would run it on full activations, to another result",
    "gguf": "llama.cpp would run it on full activations, to another result",
    **dict.fromkeys(WHOLE, MERGES),
}
"""Why an adapter with `activations: int8` is not handed on so."""


def export(
    trial: TrialFolder,
    form: Form,
    out: Path,
    check: bool,
    say: Callable[[str], object],
    over: Over | None = None,
    hub: str | None = None,
) -> None:
    """Write a trial's adapter into `out`, which appears when it is whole and has been checked.

    Args:
        out: a folder that does not exist, or is empty.
        check: compare its loss over the trial's eval split with the record's.
        say: told what was done, a line at a time.
        over: the base that it is to be served over, where that is another than it was trained over: the loss is measured
            there too.
        hub: where on the hub it will be, so that its card says how it is had.

    Raises:
        InputError: it cannot be handed on so, `out` is taken, or base or data cannot be had any more; nothing is written.
        ExportError: its loss is another than the record's, or it could not be written; nothing is kept.
    """
    from safetensors import SafetensorError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError([f"--out: {out} exists{' and is not empty' if out.is_dir() else ''}; give a new folder"])
    named = form.partition("-")[0]
    if form == "gguf" and trial.config.dora:
        raise InputError(
            ["--to gguf: the trial has dora: true, and llama.cpp has no magnitudes; give --merged with it"]
        )
    if form in INT8 and trial.config.activations == "int8":
        raise InputError([f"--to {named}: the trial has activations: int8: {INT8[form]}; give --to packed"])
    if over is not None and not check:
        raise InputError(["--served-over: is measured over the rows that the check reads; leave --no-check away"])
    other = served_form(trial, form, over)
    rows = trial.eval_rows() if check else None
    findings: list[str] = []
    if over is not None and other is None:
        findings.append(f"served over {over}: what it was trained over, so its loss is the record's")

    def write(part: Path) -> None:
        findings.extend(WRITERS[form](trial, part, rows))
        if trial.spec.data.chat_template is not None:
            write_text(part / TEMPLATE, trial.spec.data.chat_template)
        moved = _moved(trial, other, rows)
        findings.extend([] if moved is None else [f"measured: {moved.text}"])
        _write_card(trial, form, part, out, serving(trial, form, part, out.name, over, moved), hub)
        for file in part.iterdir():
            file.chmod(0o644)  # safetensors' are for their owner alone

    try:
        write_folder(out, write)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{out}: {str(error).splitlines()[0]}") from None
    for line in findings:
        say(line)
    if not check:
        say("not checked: its loss was not compared with the record's")
    say(f"{trial.record.trial_id} as {form}: {out}, {sum(file.stat().st_size for file in out.rglob('*')):,} bytes")


def _moved(trial: TrialFolder, over: Over | None, rows: Rows | None) -> Moved | None:
    return None if over is None or rows is None else measured(trial, over, rows)


def _write_card(trial: TrialFolder, form: Form, part: Path, out: Path, served: Serving | None, hub: str | None) -> None:
    from bitlora.base.licence import base_licence
    from reports.load.sweep import load_sweep
    from reports.pages.card import model_card

    had = "" if hub is None else f"# first, in a shell: hf download {hub} --local-dir {shlex.quote(out.name)}\n"
    card = model_card(
        load_sweep(trial.sweep),
        trial.record.trial_id,
        _about(trial, form),
        had + use(trial, form, out.name),
        LIBRARY[form],
        "sh" if LIBRARY[form] == "gguf" else "python",
        licence=base_licence(trial.base.model, trial.base.revision),
        serving=served,
    )
    write_text(part / CARD, card)


def _about(trial: TrialFolder, form: Form) -> str:
    quantizer = trial.config.quantizer
    whole = "A whole model for llama.cpp: the base with the adapter merged in, its matrices in {}."
    return {
        "packed": f"A LoRA adapter, packed: its `{quantizer}` weights at their true density.",
        "peft": f"An ordinary LoRA adapter for stock PEFT: its weights are the `{quantizer}` ones, in float32.",
        "gguf": f"A LoRA adapter for llama.cpp: its weights are the `{quantizer}` ones, in float32.",
        "gguf-f16": whole.format("float16"),
        "gguf-q8_0": whole.format("Q8_0"),
        "gguf-f32": whole.format("float32"),
        "merged": "A whole model: the base with the adapter merged in.",
    }[form]
