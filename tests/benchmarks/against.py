"""An optimizer step of this code against the same step of an earlier commit: the ratios of their times, in turn, and of
what they take of memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/against.py COMMIT [--cells 4x4x64,8x4x64] [--rounds 15] [--dtype float32]

Cells are slots, rows of each and tokens of a row. SmolLM2-135M in NF4, rank 16 on all linear layers, full precision. Each
code runs in a process of its own, over its own tree's base and helpers; a round is a step of each, the first to go being
the last of the round before. On a CPU the seconds are those that the process had of it, which others beside it change less;
memory is the most that was resident in any step, above what was before the adapters came (Linux).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVE = "--serve"


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def serve(dtype: str) -> None:
    """Take steps as they are asked for, with whatever code is to be found: a line of JSON for each."""
    import torch
    from adapters import trial
    from bases import RANK, base, batch

    from bitlora.engine.engine import Engine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    loaded = base("smollm2", getattr(torch, dtype), device)
    for line in sys.stdin:
        slots, rows, tokens, count = json.loads(line)
        gc.collect()
        held = resident("VmRSS")
        forget_peak()
        engine = Engine(loaded, slots)
        for number in range(slots):
            engine.attach(trial("none", rank=RANK, seed=number, learning_rate=1e-4))
        given = {number: batch(rows * tokens, tokens, loaded.vocab_size, number) for number in range(slots)}
        for _ in range(count):
            sys.stdin.readline()
            began = clock()
            engine.step(given)  # which ends with what the device has computed
            print(json.dumps([clock() - began, resident("VmHWM") - held]), flush=True)
        for number in range(slots):
            engine.detach(number)


def served(tree: Path, dtype: str) -> subprocess.Popen[str]:
    """A process that runs the code of `tree`."""
    folders = [tree, tree / "tests" / "helpers", tree / "tests" / "benchmarks"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-P", __file__, SERVE, dtype]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], question: object, answered: bool = True) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return list(json.loads(process.stdout.readline())) if answered else []


def main() -> None:
    if sys.argv[1:2] == [SERVE]:
        serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("commit")
    parser.add_argument("--cells", default="4x4x64,8x4x64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", before, given.commit], cwd=ROOT, check=True)
        try:
            codes = {"now": served(ROOT, given.dtype), "before": served(before, given.dtype)}
            for cell in given.cells.split(","):
                took: dict[str, list[float]] = {name: [] for name in codes}
                peak = dict.fromkeys(codes, 0.0)
                for code in codes.values():
                    ask(code, [*map(int, cell.split("x")), given.rounds + 1], answered=False)
                names = [*codes]
                for turn in range(given.rounds + 1):
                    for name in names:
                        seconds, peak[name] = ask(codes[name], "step")
                        if turn:  # the first warms up
                            took[name].append(seconds)
                    names.reverse()
                ratios = [now / then for now, then in zip(took["now"], took["before"], strict=True)]
                middle = " / ".join(f"{statistics.median(took[name]):.4g}" for name in codes)
                spread = f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
                shortest = min(took["now"]) / min(took["before"])
                print(f"{cell}: {statistics.median(ratios):.3f} {spread}, {middle} s; of the shortest {shortest:.3f}")
                held = " / ".join(f"{peak[name] / 1e9:.3f}" for name in codes)
                print(f"{cell}: memory {peak['now'] / peak['before']:.3f}, {held} GB", flush=True)
            for code in codes.values():
                code.communicate()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
