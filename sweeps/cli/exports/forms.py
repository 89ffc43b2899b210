"""The forms in which a trial's adapter is handed on: each writes it, reads it again as a user would, and checks what it
does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sweeps.cli.exports.holding import ExportError, compare
from sweeps.cli.trial_folder import TrialFolder
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.data.rows import Rows
    from bitlora.gguf.model_file import Stored

Form = Literal["packed", "peft", "gguf", "gguf-f16", "gguf-q8_0", "gguf-f32", "merged"]
"""`gguf` is an adapter, the three after it are whole models."""
WHOLE: Final[tuple[Form, ...]] = ("gguf-f16", "gguf-q8_0", "gguf-f32", "merged")
"""Those that bring the base."""
ROUNDED: Final = {"f16": 1e-3, "q8_0": 2e-2, "f32": 0.0}
"""How far what a model's matrices are stored in may move its loss, relative to it."""


def _packed(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    from bitlora.adapter.codes_file import PACKED, save_packed

    save_packed(part, trial.latent, trial.config, trial.spec.base.model)
    size = (part / PACKED).stat().st_size
    findings = [f"{PACKED}: {size:,} bytes, {8 * size / trial.record.adapter_params:.2f} bits a parameter"]
    if rows is not None:
        from bitlora.adapter.apply import load_packed_adapter

        findings.append(compare(trial, load_packed_adapter(trial.model(), part), rows))
    return findings


def _peft(trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    from bitlora.adapter.peft_folder import adapted_experts, as_parameter, save_lora_adapter

    experts = adapted_experts(trial.latent, trial.config)
    taken = next((name for name in trial.latent if name not in experts and as_parameter(name, experts)), None)
    if taken is not None and trial.base.quantization != "none":
        raise InputError(
            [
                f"--to peft: beside adapters of routed experts stock PEFT takes {taken} for one of theirs too, and over "
                "a quantized base it cannot be told otherwise; give --to packed or --to merged"
            ]
        )
    latent = {name: layer.map(lambda part: part.float()) for name, layer in trial.latent.items()}
    modules, routed, findings = _modules(trial)
    routed = routed and trial.base.quantization == "none"  # over codes PEFT can be told no parameter
    save_lora_adapter(part, latent, trial.config, *trial.hub_base, modules, routed)
    if rows is None:
        return findings
    from peft import PeftModel

    return [*findings, compare(trial, PeftModel.from_pretrained(trial.model(), str(part)), rows)]


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
    from bitlora.adapter.latent import quantized_weights
    from bitlora.base.describe import read_model_config
    from bitlora.gguf.adapter_check import compare_gguf, load_gguf
    from bitlora.gguf.adapter_file import GGUF, save_gguf

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
        findings.append(compare(trial, attach_weights(trial.model(), found, unscaled), rows))
    return findings


def _gguf_model(stored: Stored, trial: TrialFolder, part: Path, rows: Rows | None) -> list[str]:
    """What llama.cpp reads in the file is held against the merged model in any case; over rows it runs here as it is read
    there, its codes dequantized."""
    import torch

    from bitlora.adapter.apply import merge
    from bitlora.adapter.latent import quantized_weights
    from bitlora.base.describe import read_model_config
    from bitlora.base.licence import base_licence
    from bitlora.gguf.architecture import architecture
    from bitlora.gguf.model_check import compare_model, load_model_file
    from bitlora.gguf.model_file import MODEL, save_model

    base, weights = trial.base, quantized_weights(trial.latent, trial.config)
    name = f"{trial.spec.name}-{trial.record.trial_id}"
    try:
        architecture(read_model_config(base.model, base.revision).config)  # before it is loaded
        model = merge(trial.model(), weights, trial.config, torch.float32)
        save_model(part / MODEL, model, trial.tokenizer(), stored, name, base_licence(base.model, base.revision))
    except InputError:
        raise
    except ValueError as error:
        raise InputError([f"--to gguf --merged: {error}"]) from None
    tied = bool(model.config.tie_word_embeddings)
    expected = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    try:
        found = load_model_file(part / MODEL, model.config)
        compare_model(found, expected, stored)
    except ValueError as error:
        raise ExportError(f"{error}; nothing was kept") from None
    findings = [f"{MODEL}: read back, every tensor is the merged model's within what {stored} rounds away"]
    if rows is not None:
        model.load_state_dict(found, strict=not tied)
        findings.append(compare(trial, model, rows, ROUNDED[stored]))
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
        return [compare(trial, _load_merged(trial, part), rows)]
    except ExportError:
        if torch.finfo(stored).bits >= 32:
            raise
    _empty(part)
    _save_merged(trial, part, torch.float32)
    compared = compare(trial, _load_merged(trial, part), rows)
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
    "gguf-f16": partial(_gguf_model, "f16"),
    "gguf-q8_0": partial(_gguf_model, "q8_0"),
    "gguf-f32": partial(_gguf_model, "f32"),
    "merged": _merged,
}
"""Each writes into a folder, checks it over the given rows if there are any, and gives what there is to say."""
