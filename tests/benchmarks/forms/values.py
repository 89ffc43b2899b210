"""A step over NF4 with its values kept in the compute dtype, against one that dequantizes each layer twice: the ratio of
their times, in turn; on a CPU of the seconds that the process had of it, which others beside it change less.

    OMP_NUM_THREADS=1 PYTHONPATH=tests/helpers:tests/benchmarks \\
        python tests/benchmarks/forms/values.py [DTYPE] [SLOTSxTOKENS,...] [ROUNDS]

SmolLM2-135M, rank 16 on all linear layers. Keeping and letting go is not timed.
"""

import statistics
import sys
import time

import torch
from adapters import trial
from bases import RANK, base, batch

from bitlora.engine.engine import Engine

dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
cells = sys.argv[2] if len(sys.argv) > 2 else "1x32,1x128,4x32,4x128,8x64"
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
clock = time.perf_counter if device.type == "cuda" else time.process_time
loaded = base("smollm2", dtype, device)
print(f"{loaded.values_bytes / 1e9:.2f} GB in {dtype}, {torch.get_num_threads()} threads", flush=True)
for cell in cells.split(","):
    slots, tokens = map(int, cell.split("x"))
    engine = Engine(loaded, slots)
    for number in range(slots):
        engine.attach(trial("none", rank=RANK, seed=number, learning_rate=1e-4))
    given = {number: batch(tokens, 128, loaded.vocab_size, number) for number in range(slots)}
    ratios, times = [], {True: [], False: []}
    for turn in range(rounds + 1):
        took = {}
        for kept in (True, False) if turn % 2 else (False, True):
            loaded.keep_values(kept)
            for timed in (False, True):  # the first after the change finds other numbers in the caches
                began = clock()
                engine.step(given)
                if timed:
                    took[kept] = clock() - began
        if turn:
            ratios.append(took[True] / took[False])
            for kept, seconds in took.items():
                times[kept].append(seconds)
    low, high = min(ratios), max(ratios)
    medians = " / ".join(f"{1000 * statistics.median(times[kept]):.0f}" for kept in (True, False))
    shortest = f"{min(times[True]) / min(times[False]):.2f}"
    print(f"{cell}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}), {medians} ms; of the shortest {shortest}",
          flush=True)  # fmt: skip
    for number in range(slots):
        engine.detach(number)
