"""What a population comes to with as many tokens as ASHA has: PBT, PB2, ASHA and plain random search, trained for real.

    OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/search/population.py [--seeds 10]

Recorded learning curves cannot say what a copy with moved values comes to, so trials are trained here: the engine without
Ray over a small random Llama, on sums of two numbers, and the rules that the product has. All draw their
configurations at random out of one space, evaluate every `EVERY` steps, and stop asking for trials when `MEMBERS` times
`STEPS` steps are spent, which are as many tokens: all rows are of one length.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.data.batches import batch_rows
from bitlora.data.rows import Rows
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.engine.slots.slot import SlotState
from bitlora.forward.inject import load_base
from sweeps.search.cloning.explore import resampled
from sweeps.search.cloning.population import Population
from sweeps.search.rules import Halving
from sweeps.spec.keys.scheduler import POPULATIONS
from sweeps.spec.space import domain_of
from sweeps.spec.spec import Spec

MEMBERS: Final = 8
STEPS: Final = 96
EVERY: Final = 12
"""Steps between two evaluations: PBT's interval, and ASHA's first rung."""
SPEC: Final = Spec.model_validate(
    {
        "name": "population",
        "base": {"model": "tiny"},
        "data": {"source": "sums"},
        "search": {
            "trials": MEMBERS,
            "space": {
                "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                "weight_decay": {"low": 0.0, "high": 0.3},
                "dropout": [0.0, 0.05, 0.1, 0.2],
                "max_grad_norm": {"low": 0.1, "high": 10.0, "log": True},
            },
        },
        "scheduler": {"name": "pbt", "interval": EVERY, "grace": EVERY},
    }
)


def base_folder(folder: Path) -> Path:
    """A Llama of two small blocks, as it is made; its head is large enough for a loss that can fall."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.15, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sums() -> tuple[Rows, Rows]:
    """`a b = (a + b)`, in two digits of base 8: all pairs below 24, a fifth of them to evaluate."""
    pairs = [(a, b) for a in range(24) for b in range(24)]
    Random(0).shuffle(pairs)

    def rows(chosen: list[tuple[int, int]]) -> Rows:
        tokens = [
            [1 + a // 8, 9 + a % 8, 2 + b // 8, 9 + b % 8, 20, 9 + (a + b) // 8, 9 + (a + b) % 8] for a, b in chosen
        ]
        learn = np.tile([False] * 5 + [True] * 2, len(chosen))
        names = tuple(f"{a}+{b}" for a, b in chosen)
        starts = np.arange(0, 7 * len(chosen) + 1, 7)
        return Rows(np.array(tokens, np.int32).ravel(), learn, starts, names, np.full(len(chosen), 2))

    return rows(pairs[115:]), rows(pairs[:115])


def drawn(chance: Random, seed: int) -> TrialConfig:
    """A configuration, at random."""
    chosen: dict[str, Any] = {}
    for axis in SPEC.search.space:
        chosen[axis] = resampled(domain_of(SPEC.search.space, axis, chosen), chance)
    fixed = {"quantizer": "none", "activations": "full", "rank": 4, "alpha": 8.0, "scaling": "lora", "batch_size": 8}
    recipe = {"micro_batch": None, "schedule": "constant", "warmup": 0.0, "floor": 0.0, "steps": STEPS}
    return TrialConfig(**fixed, **recipe, eval_every=EVERY, seed=seed, **chosen)


class Ground:
    """Trials over one base."""

    def __init__(self, folder: Path) -> None:
        base = load_base(BaseConfig(model=str(folder), quantization="none"), torch.float32, torch.device("cpu"))
        self._engine = Engine(base, MEMBERS)
        self._train, scored = sums()
        self._eval = Batch.of(scored)
        self.spent = 0
        """Steps of trials."""

    def advance(self, configs: dict[str, TrialConfig], states: dict[str, SlotState]) -> dict[str, float | None]:
        """`EVERY` steps of each of these trials from where it is; its loss then, None where it has diverged."""
        engine, came_to = self._engine, dict.fromkeys(configs)
        slots = {name: engine.attach(config.at(0), state=states.get(name)) for name, config in configs.items()}
        for _ in range(EVERY):
            batches = {}
            for name, slot in slots.items():
                config, step = configs[name], engine.slots[slot].step
                chosen = batch_rows(len(self._train), config.batch_size, config.seed, step)
                batches[slot] = Batch.of(self._train.take(chosen))
            engine.step(batches)
        scores = engine.evaluate([*slots.values()], self._eval)
        for name, slot in slots.items():
            if np.isfinite(scores[slot].loss) and not engine.slots[slot].parked:
                came_to[name] = scores[slot].loss
            states[name] = engine.state(slot)
            engine.detach(slot)
        self.spent += EVERY * len(configs)
        return came_to


def trained(ground: Ground, seed: int, name: str) -> float:
    """The best loss of a member at its end. `name`: `pbt` or `pb2`."""
    chance = Random(seed)
    search = SPEC.search.model_copy(update={"seed": seed})
    scheduler = SPEC.scheduler.model_copy(update={"name": name})
    population = Population(SPEC.model_copy(update={"search": search, "scheduler": scheduler}), STEPS, MEMBERS, {})
    configs = {f"t{number:04d}": drawn(chance, seed) for number in range(MEMBERS)}
    states: dict[str, SlotState] = {}
    for name, config in configs.items():
        population.begin(name, config.model_dump())
    losses: dict[str, float | None] = {}
    for step in range(EVERY, STEPS + 1, EVERY):
        held = {name: TrialConfig(**(population.place(name).config or {})) for name in configs}
        losses = ground.advance(
            {name: config.model_copy(update={"stages": ()}) for name, config in held.items()}, states
        )
        for name, loss in losses.items():
            population.enter(name, step, loss)
        if population.decide():
            before = dict(states)
            for name in configs:
                source = population.place(name).source
                assert source is not None
                states[name] = before[source.trial_id]
    return min(loss for loss in losses.values() if loss is not None)


def stopping(ground: Ground, seed: int, rule: Halving | None) -> float:
    """The best loss of a completed trial; a new one begins wherever one has ended, while there is something to spend."""
    chance, budget = Random(seed), MEMBERS * STEPS
    configs: dict[str, TrialConfig] = {}
    states: dict[str, SlotState] = {}
    best, count = float("inf"), 0
    while ground.spent < budget:
        while len(configs) < MEMBERS:
            configs[f"t{count:04d}"] = drawn(chance, seed)
            count += 1
        wave = ground.advance(configs, states)
        for name, loss in wave.items():
            if loss is not None and rule is not None:
                rule.enter(name, states[name].step, loss)
        for name, loss in wave.items():
            ended = states[name].step == STEPS
            best = min(best, loss) if ended and loss is not None else best
            if ended or loss is None or (rule is not None and not rule.goes_on(name, states[name].step)):
                del configs[name], states[name]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    with tempfile.TemporaryDirectory() as folder:
        base = base_folder(Path(folder))
        found: dict[str, list[float]] = {"pbt": [], "pb2": [], "asha": [], "random": []}
        for seed in seeds:
            for name, losses in found.items():
                ground = Ground(base)
                rule = Halving(EVERY, 2, STEPS) if name == "asha" else None
                population = name in POPULATIONS
                losses.append(trained(ground, seed, name) if population else stopping(ground, seed, rule))
            print(seed, *(f"{name} {losses[-1]:.4f}" for name, losses in found.items()), flush=True)
    print(f"best loss at {MEMBERS * STEPS} steps of trials, the middle of {len(seeds)} seeds:")
    for name, losses in found.items():
        better = sum(own < other for own, other in zip(found["pbt"], losses, strict=True))
        print(f"  {name}: {median(losses):.4f}" + ("" if name == "pbt" else f", and PBT's is lower in {better}"))


if __name__ == "__main__":
    main()
