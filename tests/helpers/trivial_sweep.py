"""A sweep whose packs train nothing: `trivial.py SPEC ADDRESS` runs it, and prints as JSON what it cost.

All but the engine is the product's: pool, Tune, searcher, recorder, report. A pack is an actor in a placement group of the
pack's name, on a machine with a GPU, that answers for every trial at once.
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console

from bitlora import record
from bitlora.config import TrialConfig
from bitlora.storage import open_storage
from sweeps.cluster import HEAD
from sweeps.pool import POOL
from sweeps.prepare import prepare
from sweeps.run import run_sweep
from sweeps.spec import load_spec


@ray.remote(num_cpus=0, resources=HEAD)
class Host:
    def run(self, name):
        settings = ray.get(ray.get_actor(POOL).settings.remote())
        group = placement_group([settings.resources], name=name)
        ray.get(group.ready())
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        worker = Worker.options(num_gpus=settings.resources["GPU"], scheduling_strategy=strategy).remote()
        ray.get(worker.run.remote(name, settings.storage.folder))


@ray.remote(num_cpus=0)
class Worker:
    def run(self, name, folder):
        pool = ray.get_actor(POOL)
        ray.get([pool.pack_begun.remote(name), pool.pack_ready.remote(name)])
        while True:
            for what, about in ray.get(pool.commands.remote(name)):
                if what == "stop":
                    return
                if what == "attach":
                    self._train(pool, name, folder, *about[:2])

    def _train(self, pool, name, folder, trial_id, config):
        trial = TrialConfig(**config)
        own = folder / "trials" / trial_id
        record.write_json(own / record.CONFIG, config)
        for step in range(trial.eval_every, trial.steps + 1, trial.eval_every):
            loss = 1 / step + trial.rank / 1000
            record.append_metrics(
                own,
                record.Metrics(
                    step=step, tokens=step, train_loss=loss, eval_loss=loss, learning_rate=0.1, seconds=time.monotonic()
                ),
            )
            record.write_scores(own / record.EVAL, ["all"], [loss], [1], [1])
            pool.progress.remote(name, {trial_id: (step, loss)})
            status = "completed" if step == trial.steps else "running"
            result = {"trial_id": trial_id, "status": status, "reason": "", "step": step, "eval_loss": loss}
            pool.report.remote(name, result)
        pool.let_go.remote(name, trial_id)


def follow(samples, folder):
    """Resident MB of the driver and of the pool, four times a second, beside how many records there are."""
    pool = None
    while True:
        time.sleep(0.25)
        for process in psutil.process_iter(["cmdline"]) if pool is None else ():
            if "ray::Pool" in " ".join(process.info["cmdline"] or []) and related(process):
                pool = process
        if pool is None:
            continue
        try:
            resident = [process.memory_info().rss / 1e6 for process in (psutil.Process(), pool)]
        except psutil.Error:
            return
        samples.append([time.time(), len(list(folder.glob("trials/*/record.json"))), *resident])


def related(process):
    """Is it of the cluster that this process talks to?"""
    return any(sys.argv[3] in " ".join(parent.cmdline()) for parent in process.parents())


if __name__ == "__main__":
    spec = load_spec(Path(sys.argv[1]))
    storage = open_storage(spec.place)
    samples = []
    threading.Thread(target=follow, args=(samples, storage.folder), daemon=True).start()
    code = run_sweep(spec, prepare(spec), storage, Console(file=sys.stderr), sys.argv[2], host=Host)
    print(json.dumps({"code": code, "samples": samples}))
