#!/usr/bin/env bash
# Ray 2.60.0 with Optuna 5.0.0: OptunaSearch tells the study that a trial which a scheduler stopped is COMPLETE, with its last
# value, as if it had had the whole budget; and of a trial that is stopped at its first result no intermediate value is told.
#
# Optuna has a state for that, PRUNED, and its samplers look at it: TPE puts pruned trials behind all complete ones, by the step
# that they reached. Here a loss at the first of four iterations stands beside losses at the fourth, and what the sampler
# learns of a stopped configuration is what it would have learned of one that is that bad at the end.
# Where: ray/tune/search/optuna/optuna_search.py, on_trial_complete knows an error (FAIL) and no other end but COMPLETE;
# ray/tune/execution/tune_controller.py calls it with the result at which the scheduler said STOP.
#
# Seen on 2026-11-28, Python 3.11 (state, x, value, intermediate values):
#   COMPLETE 0.417 0.667 {1: 1.417, 2: 0.917, 3: 0.75, 4: 0.667}
#   COMPLETE 0.72 1.72 {}
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d /tmp/finding.XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[tune]==2.60.0" "optuna==5.0.0"
cd "$folder"
RAY_TMPDIR="$folder/ray" "$folder/venv/bin/python" - <<'PYTHON'
import os

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch


class StopsTheWorseHalf(FIFOScheduler):
    def on_trial_result(self, controller, trial, result):
        first = result["training_iteration"] == 1
        return TrialScheduler.STOP if first and trial.config["x"] > 0.5 else TrialScheduler.CONTINUE


def train(config):
    for step in range(4):
        tune.report({"loss": config["x"] + 1 / (step + 1)})


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
search = OptunaSearch(metric="loss", mode="min", seed=1)
tune.Tuner(
    train,
    param_space={"x": tune.uniform(0, 1)},
    tune_config=tune.TuneConfig(
        search_alg=search, scheduler=StopsTheWorseHalf(), num_samples=4, max_concurrent_trials=1
    ),
    run_config=tune.RunConfig(storage_path=os.getcwd(), verbose=0),
).fit()
stopped = 0
for trial in search._ot_study.trials:
    x, known = trial.params["x"], {step: round(value, 3) for step, value in trial.intermediate_values.items()}
    print(trial.state.name, round(x, 3), round(trial.value, 3), known)
    assert trial.state.name == "COMPLETE"
    if x > 0.5:
        stopped += 1
        assert abs(trial.value - (x + 1)) < 1e-9 and known == {}
    else:
        assert abs(trial.value - (x + 0.25)) < 1e-9 and sorted(known) == [1, 2, 3, 4]
assert stopped, "no trial was stopped: another seed is needed"
ray.shutdown()
PYTHON
echo "as described"
