"""What a sweep would take of this machine: memory by calculation, or memory and time by trying it here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitlora.config.explain import one_line
from bitlora.data.batches import batch_rows
from sweeps.driver.prepare import Prepared
from sweeps.driver.resources import SLOTS
from sweeps.spec import space as spaces
from sweeps.spec.keys.resources import PacksConfig
from sweeps.spec.spec import Spec

if TYPE_CHECKING:
    import torch

    from bitlora.engine.engine import Engine

TIMED: int = 2
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How fast an engine was, with a trial in each of its slots."""

    slots: int
    step: float
    """Seconds."""
    tokens: float
    """Of all trials in a step."""
    evaluation: float
    """Seconds, of all trials at once."""

    def hours(self, trials: int, steps: float, evaluations: float) -> float:
        """Of a pack that has all trials, each of so many steps and evaluations."""
        return trials * (steps * self.step + evaluations * self.evaluation) / self.slots / 3600


def estimated(spec: Spec, prepared: Prepared) -> list[str]:
    """What fits here, from shapes alone."""
    from bitlora.base.load import resolve_dtype
    from bitlora.engine.estimate import estimate
    from bitlora.engine.gauge import budget
    from bitlora.engine.memory import LongestRow, rows_at_once
    from sweeps.pack.memory import Values, describe_fit

    device = _device(spec)
    widest, longest = prepared.widest(spec), LongestRow.of(prepared.dataset)
    dtype = resolve_dtype(spec.train.dtype, device)
    try:
        needs = estimate(spec.base, dtype, device, spec.train.gradient_checkpointing, widest, longest)
    except Exception as error:  # what a model's own code can do without weights has no end
        return [f"memory: cannot be estimated for this base ({one_line(error)}); try --measure"]
    may = budget(device, _sharing(spec, device))
    slots, given = _slots(spec, device)
    rows = rows_at_once(widest)
    entries = sum(layer.in_features * layer.out_features for layer in prepared.base.linears)
    values = Values.of(spec.base.cache, entries * dtype.itemsize * (spec.base.quantization != "none"), dtype)
    found, kept = values.fit(needs, may.bytes, slots, rows, given)
    return describe_fit(needs, found, may, rows * longest.tokens, "estimated", values.describe(kept))


def measured(spec: Spec, prepared: Prepared) -> list[str]:
    """What fits here and how long the sweep takes, by loading the base and trying. Starts no Ray, writes nothing.

    Raises:
        BaseError: the base cannot be loaded.
    """
    from bitlora.base.load import resolve_dtype
    from bitlora.engine.engine import Engine
    from bitlora.engine.memory import LongestRow
    from bitlora.forward.inject import load_base
    from sweeps.pack.memory import settle_memory

    device = _device(spec)
    widest, longest = prepared.widest(spec), LongestRow.of(prepared.dataset)
    dtype = resolve_dtype(spec.train.dtype, device)
    base = load_base(spec.base, dtype, device, spec.train.gradient_checkpointing, longest.tokens)
    slots, given = _slots(spec, device)
    engine = Engine(base, slots)
    lines = settle_memory(engine, widest, longest, given, _sharing(spec, device), cache=spec.base.cache)
    return [*lines, *_time(spec, prepared, _calibrate(spec, prepared, engine))]


def _device(spec: Spec) -> torch.device:
    import torch

    gpu = torch.cuda.is_available() and spec.resources.gpus_per_worker != 0
    return torch.device("cuda" if gpu else "cpu")


def _slots(spec: Spec, device: torch.device) -> tuple[int, bool]:
    """How many there may be, and whether the spec says so."""
    slots = spec.resources.slots
    return (SLOTS["gpu" if device.type == "cuda" else "cpu"], False) if slots == "auto" else (slots, True)


def _sharing(spec: Spec, device: torch.device) -> float:
    """How many workers share the GPU; or this machine, as if all were on it."""
    resources = spec.resources
    if device.type == "cuda":
        return 1.0 if resources.gpus_per_worker == "auto" else max(1.0, 1 / resources.gpus_per_worker)
    packs = resources.packs.max if isinstance(resources.packs, PacksConfig) else resources.packs
    return float((1 if packs == "auto" else packs) * resources.workers_per_pack)


def _calibrate(spec: Spec, prepared: Prepared, engine: Engine) -> Calibration:
    """A few steps and an evaluation of trials drawn at random from the space."""
    import optuna

    from bitlora.engine.batch import Batch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=spec.search.seed))
    train = prepared.dataset.train
    trials: dict[int, Any] = {}
    for _ in range(engine.size):
        config = prepared.trial(spec, spaces.suggest(study.ask(), spec.search.space))
        trials[engine.attach(config)] = config
    tokens, began = 0, 0.0
    for step in range(1 + TIMED):
        if step == 1:
            began, tokens = time.monotonic(), 0
        batches = {
            slot: Batch.of(train.take(batch_rows(len(train), config.batch_size, config.seed, step)))
            for slot, config in trials.items()
        }
        stats = engine.step(batches)  # its losses are numbers here, so what is computed there has been
        tokens += sum(each.tokens for each in stats.values())
    stepped = time.monotonic()
    engine.evaluate(list(trials), Batch.of(prepared.dataset.eval))
    evaluation = time.monotonic() - stepped
    for slot in trials:
        engine.detach(slot)
    return Calibration(len(trials), (stepped - began) / TIMED, tokens / TIMED, evaluation)


def _time(spec: Spec, prepared: Prepared, found: Calibration) -> list[str]:
    """In words, with what a scheduler saves at most."""
    from sweeps.cli.plan import make_plan

    plan = make_plan(spec, prepared)
    trials = plan.trials + plan.confirming
    whole = found.hours(trials, plan.steps, plan.evaluations)
    lines = [
        f"speed: {found.tokens / found.step:,.0f} tokens/s; {found.step:.2f} s for a step of {found.slots} trials, "
        f"{found.evaluation:.2f} s to evaluate them",
        f"time: {_hours(whole)} in one pack where every trial takes all its steps, beside the pack's start",
    ]
    if spec.scheduler.name != "none" and not spec.scheduler.population and plan.trials > 1:
        grace = min(spec.scheduler.grace, plan.steps)
        stopped = found.hours(plan.trials - 1, plan.steps - grace, plan.evaluations * (1 - grace / plan.steps))
        lines[-1] += f"; of that {spec.scheduler.name} saves at most {_hours(stopped)}"
    return lines


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
