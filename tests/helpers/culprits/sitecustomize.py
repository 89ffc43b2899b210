"""In a process whose environment has BITLORA_MEMORY, an engine may take so many MB more than it had before its first step.
In one whose environment has BITLORA_CULPRIT, the layers of some trials misbehave: `RANK:STEP:HOW`, a blank between two.

RANK is the trial's (its adapters' rank), STEP the optimizer step from which on (counted from 1), HOW `raise`, `exit`
(`os._exit`), or `rows` (raise, but for a single row). In one whose environment has BITLORA_PACE, `SECONDS:FILE`, a step
takes so long while there is such a file. Python imports a module of this name at its start where it is on its path: so
packs on Ray have it too.
"""

import os
import sys


def misbehave(module):
    culprits = {int(rank): (int(step), how) for rank, step, how in (c.split(":") for c in CULPRITS.split())}
    whole = module.MultiLoraLinear.forward

    def forward(self, x):
        from bitlora.forward.forward_plan import bound_plan

        plan = bound_plan()
        for span in plan.spans:
            slot = self.slots.get(span.slot)
            taken = TAKEN.get(span.slot)
            if slot is None or taken is None or slot.rank not in culprits:
                continue
            step, how = culprits[slot.rank]
            if taken() + 1 < step:
                continue
            if how == "exit":
                os._exit(1)
            if how == "raise" or plan.longest < span.stop - span.start:
                raise RuntimeError(f"the culprit, at step {taken() + 1}")
        return whole(self, x)

    module.MultiLoraLinear.forward = forward


CULPRITS = os.environ.get("BITLORA_CULPRIT", "")
TAKEN = {}
"""Slot -> how many steps it has taken."""


def watch(module):
    whole = module.Engine.attach

    def attach(self, *args, **options):
        slot = whole(self, *args, **options)
        TAKEN[slot] = lambda: self.slots[slot].step
        return slot

    module.Engine.attach = attach


def cap(module):
    whole = module.Engine.step
    capped = []

    def step(self, batches, ahead=None):
        if not capped:
            import resource
            from pathlib import Path

            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limit = now + int(os.environ["BITLORA_MEMORY"]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            capped.append(limit)
        return whole(self, batches, ahead)

    module.Engine.step = step


def slow_down(module):
    import time
    from pathlib import Path

    seconds, file = os.environ["BITLORA_PACE"].split(":")
    whole = module.Engine.step

    def step(self, batches, ahead=None):
        if Path(file).exists():
            time.sleep(float(seconds))
        return whole(self, batches, ahead)

    module.Engine.step = step


WATCHED = {}
"""Module -> what changes it."""
if CULPRITS:
    WATCHED |= {"bitlora.forward.multi_lora": misbehave, "bitlora.engine.engine": watch}
if "BITLORA_MEMORY" in os.environ:
    WATCHED["bitlora.engine.engine"] = cap
if "BITLORA_PACE" in os.environ:
    WATCHED["bitlora.engine.engine"] = slow_down


class Finder:
    """Changes a module as soon as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        sys.meta_path.remove(self)
        try:
            import importlib.util

            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            WATCHED[name](module)

        spec.loader.exec_module = exec_module
        return spec


if WATCHED:
    sys.meta_path.insert(0, Finder())
