"""A sweep whose packs train nothing: `trivial.py SPEC ADDRESS` runs it, and prints as JSON what it cost.

All but the engine is the product's: pool, Tune, searcher, recorder, report. A pack is an actor in a placement group of the
pack's name, on a machine with a GPU, that answers for every trial at once, when all packs of the sweep are up: what it
costs until then is the packs', and not the trials'.
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

from bitlora.config.trial import TrialConfig
from bitlora.files import record, writing
from bitlora.files.opening import open_storage
from sweeps.driver.prepare import prepare
from sweeps.driver.run import run_sweep
from sweeps.onray.cluster import HEAD
from sweeps.pool.messages import Attach, StepProgress, Stop, TrialResult
from sweeps.pool.pool import POOL
from sweeps.spec.spec import load_spec


@ray.remote(num_cpus=0, resources=HEAD)
class Host:
    def run(self, name):
        settings = ray.get(ray.get_actor(POOL).settings.remote())
        assert isinstance(settings.dataset, ray.ObjectRef)  # the pool does not hand the data to every pack
        group = placement_group([settings.resources], name=name)
        ray.get(group.ready())
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        worker = Worker.options(num_gpus=settings.resources["GPU"], scheduling_strategy=strategy).remote()
        ray.get(worker.run.remote(name, settings.storage.folder))


@ray.remote(num_cpus=0)
class Worker:
    def run(self, name, folder):
        pool = ray.get_actor(POOL)
        ray.get(pool.pack_started.remote(name))
        self._wait_for_the_others(name, folder)
        ray.get(pool.pack_ready.remote(name))
        received = 0
        while True:
            commands = ray.get(pool.commands.remote(name, received))
            received += len(commands)
            for command in commands:
                if isinstance(command, Stop):
                    return
                if isinstance(command, Attach):
                    self._train(pool, name, folder, command.trial_id, command.config)

    def _wait_for_the_others(self, name, folder):
        up = folder / "logs" / "up"
        up.mkdir(exist_ok=True)
        (up / name).touch()
        packs = load_spec(folder / "sweep.yaml").resources.packs.max
        while len(list(up.iterdir())) < packs:
            time.sleep(0.2)

    def _train(self, pool, name, folder, trial_id, config):
        trial = TrialConfig(**config)
        own = folder / "trials" / trial_id
        writing.write_json(own / record.CONFIG, config)
        for step in range(trial.eval_every, trial.steps + 1, trial.eval_every):
            loss = 1 / step + trial.rank / 1000
            metrics = record.Metrics(
                step=step, tokens=step, train_loss=loss, eval_loss=loss, learning_rate=0.1, seconds=time.monotonic()
            )
            record.append_metrics(own, metrics)
            record.write_scores(own / record.EVAL, ["all"], [loss], [1], [1])
            pool.progress.remote(name, {trial_id: StepProgress(step, loss)})
            status = "completed" if step == trial.steps else "running"
            result = TrialResult(trial_id=trial_id, status=status, step=step, eval_loss=loss, metrics=metrics)
            pool.report.remote(name, result)
        pool.slot_released.remote(name, trial_id)


def follow(samples, folder):
    """Resident MB of driver and pool and the CPU seconds they took, twice a second, beside how many records there are."""
    pool = None
    while True:
        time.sleep(0.5)
        for process in psutil.process_iter(["cmdline"]) if pool is None else ():
            if "ray::Pool" in " ".join(process.info["cmdline"] or []) and related(process):
                pool = process
        if pool is None:
            continue
        try:
            both = psutil.Process(), pool
            resident = [process.memory_info().rss / 1e6 for process in both]
            busy = [sum(process.cpu_times()[:2]) for process in both]
        except psutil.Error:
            return
        samples.append([time.time(), len(list(folder.glob("trials/*/record.json"))), *resident, *busy])


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
