#!/usr/bin/env bash
# Ray 2.60.0: with any callback at all, Tuner.fit() imports W&B and MLflow where they are installed; without one it does not.
#
# Before a search begins, Tune counts the callbacks that it was given, by kind, for its usage statistics; to know the kinds it
# imports Ray's own integrations with Comet, MLflow and W&B, which import these packages. A callback of one's own that has
# nothing to do with them is enough. That usage statistics are off (RAY_USAGE_STATS_ENABLED=0), and Tune's own loggers too,
# changes nothing: the count is made first. It happens in the driver, between fit() and the first trial, and takes a second or
# more of its CPU.
# Where: ray/tune/tune.py (run) calls ray/air/_internal/usage.py (tag_callbacks, _count_callbacks).
#
# Seen on 2026-11-28, Python 3.11:
#   fit() without callbacks:          [] imported
#   fit() with a callback of our own: ['mlflow', 'wandb'] imported
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d /tmp/finding.XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[tune]==2.60.0" wandb==0.31.0 mlflow-skinny==3.17.2
cd "$folder"
RAY_TMPDIR="$folder/ray" RAY_USAGE_STATS_ENABLED=0 TUNE_DISABLE_AUTO_CALLBACK_LOGGERS=1 "$folder/venv/bin/python" - <<'PYTHON'
import os
import sys

import ray
from ray import tune


class Constant(tune.Trainable):
    def step(self):
        return {"loss": 1.0, "done": True}

    def save_checkpoint(self, folder):
        pass


def trackers_after(callbacks):
    run = tune.RunConfig(storage_path=os.getcwd(), verbose=0, callbacks=callbacks)
    tune.Tuner(Constant, run_config=run).fit()
    return [name for name in ("mlflow", "wandb") if name in sys.modules]


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
without, with_one = trackers_after(None), trackers_after([tune.Callback()])
print(f"fit() without callbacks:          {without} imported")
print(f"fit() with a callback of our own: {with_one} imported")
assert without == [] and with_one == ["mlflow", "wandb"]
ray.shutdown()
PYTHON
echo "as described"
