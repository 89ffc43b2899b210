"""One worker of two: what telling the others costs, on top of the sum of the gradients that is needed anyway.

Both ways in turn, so that whatever else the machine does falls on both. Prints the medians in milliseconds.
"""

import json
import statistics
import sys
import time

import torch
from torch import distributed as dist

from bitlora.engine.workers import Workers

PARAMS = 200_000  # few, so that what is looked for does not drown in the sum itself
ROUNDS = 400


def main(rank, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    workers = Workers(rank, 2)
    grads = [torch.randn(PARAMS // 4) for _ in range(4)]

    def silent():
        flat = torch.cat([part.reshape(-1) for part in grads])
        dist.all_reduce(flat)
        start = 0
        for part in grads:
            part.copy_(flat[start : start + part.numel()])
            start += part.numel()

    def agreeing():
        workers.sum(grads)

    took = {silent: [], agreeing: []}
    for _ in range(ROUNDS):
        for way, times in took.items():
            dist.barrier()
            began = time.perf_counter()
            way()
            times.append(1e3 * (time.perf_counter() - began))
    if rank == 0:
        print(json.dumps({way.__name__: statistics.median(times) for way, times in took.items()}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
