#!/usr/bin/env bash
# Ray 2.60.0: MedianStoppingRule counts the result at which it stopped a trial twice, in that trial's running mean.
#
# A trial's running mean is what later trials are held against. The result of a step is appended when the rule judges it; if
# the rule stops the trial there, Tune tells the scheduler of the trial's end with that same result, and it is appended once
# more. A trial that ends by itself has each result once (its last goes to the end alone). So the mean of a stopped trial
# leans towards its last value, by a third where it had two results: here it is 11.67 where the two values, 9 and 13, mean 11.
# Where: ray/tune/schedulers/median_stopping_rule.py, on_trial_result and on_trial_complete both append;
# ray/tune/execution/tune_controller.py calls the second with trial.last_result when a decision was STOP.
#
# Seen on 2026-11-27, Python 3.11:
#   good-0  iterations [1, 2, 3, 4]
#   good-1  iterations [1, 2, 3, 4]
#   good-2  iterations [1, 2, 3, 4]
#   bad     iterations [1, 2, 2]      mean over the first two 11.67
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d /tmp/finding.XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[tune]==2.60.0"
cd "$folder"
RAY_TMPDIR="$folder/ray" "$folder/venv/bin/python" - <<'PYTHON'
import os

import ray
from ray import tune
from ray.tune.schedulers import MedianStoppingRule

VALUES = {"good-0": [12, 1, 1, 1], "good-1": [13, 1, 1, 1], "good-2": [14, 1, 1, 1], "bad": [9, 13, 13, 13]}


class Curve(tune.Trainable):
    def setup(self, config):
        self.values = iter(VALUES[config["name"]])

    def step(self):
        return {"loss": next(self.values)}

    def save_checkpoint(self, folder):
        pass


rule = MedianStoppingRule(
    time_attr="training_iteration", metric="loss", mode="min", grace_period=1, min_samples_required=3, min_time_slice=100
)
kept = {}
complete = rule.on_trial_complete


def remember(controller, trial, result):
    complete(controller, trial, result)
    kept[trial.config["name"]] = trial


rule.on_trial_complete = remember
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
tune.Tuner(
    Curve,
    param_space={"name": tune.grid_search(list(VALUES))},
    tune_config=tune.TuneConfig(scheduler=rule, max_concurrent_trials=1),
    run_config=tune.RunConfig(stop={"training_iteration": 4}, storage_path=os.getcwd(), verbose=0),
).fit()
for name in VALUES:
    results = rule._results[kept[name]]
    iterations = [result["training_iteration"] for result in results]
    line = f"{name:<8}iterations {iterations}"
    if name == "bad":
        line += f"      mean over the first two {rule._running_mean(kept[name], 2):.2f}"
    print(line)
    assert iterations == ([1, 2, 2] if name == "bad" else [1, 2, 3, 4])
ray.shutdown()
PYTHON
echo "as described"
