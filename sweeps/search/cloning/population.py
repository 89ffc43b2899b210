"""Population-based training (PBT, arXiv 1711.09846), in step: all trials of a sweep train at once, and at each rung the
worst go on as copies of the best, with values that have moved. Rules over steps and losses alone, which know no Ray.

Nothing hangs on who reports first: a rung is decided when all have come to it, by their losses, the rung and the sweep's
seed. A member that becomes a copy takes the other's whole configuration, since weights fit no other shape or quantizer, its
seed with it, and then moves what can be moved under way (`bitlora.config.sections.MOVED`). The steps that it has behind it
are then the other's, with the values that those had: they are `stages` of its configuration, which says all that its
weights went through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final

from bitlora.config.sections import MOVED
from bitlora.config.trial import TrialConfig
from sweeps.search.cloning.explore import perturbed, resampled
from sweeps.search.cloning.place import Place, Source
from sweeps.spec.space import domain_of

if TYPE_CHECKING:
    from sweeps.spec.spec import Spec

Changes = Mapping[str, Mapping[str, Any]]
"""Members that have become copies: our id -> `from`, our id of the other one, and `config`, which they have now."""


_RUNG: Final = "rung "
"""Attributes of a study that begin so, and end in a step, are what was decided there."""


def attribute(rung: int, changes: Changes) -> dict[str, Any]:
    """The attribute by which a study keeps a decision, in one line of its journal."""
    return {f"{_RUNG}{rung}": changes}


def decided(attributes: Mapping[str, Any]) -> dict[int, Changes]:
    """What a study with these attributes has kept, by rung."""
    return {int(name.removeprefix(_RUNG)): kept for name, kept in attributes.items() if name.startswith(_RUNG)}


def became(attributes: Mapping[str, Any], trial_id: str) -> dict[str, Any]:
    """The configuration of a member that has become a copy, as it last was; nothing of any other trial."""
    kept = [changes[trial_id] for _, changes in sorted(decided(attributes).items()) if trial_id in changes]
    return dict(kept[-1]["config"]) if kept else {}


class Population:
    """See the module.

    Args:
        budget: steps of a full trial; there is no rung there.
        size: members; nothing is decided before all of them have begun.
        decided: what an earlier run of the sweep has decided, by rung.
    """

    def __init__(
        self,
        spec: Spec,
        budget: int,
        size: int,
        decided: Mapping[int, Changes],
    ) -> None:
        self._asked, self._space, self._size, self._seed = spec.scheduler, spec.search.space, size, spec.search.seed
        interval = self._asked.interval
        self._rungs = [step for step in range(interval, budget, interval) if step not in decided]
        """Those that are to be decided."""
        self._decided = dict(decided)
        self._last = max(decided, default=None)
        self.decides: Callable[[int, Changes], object] = lambda rung, changes: None
        """Told of each decision before anybody goes on by it; whoever is to keep it says it here."""
        self._configs: dict[str, TrialConfig] = {}
        self._losses: dict[int, dict[str, float]] = {}
        """By rung, of those that have come to it; infinite: it has diverged."""
        self._gone: set[str] = set()

    def begin(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """A member is there. `config`: what was suggested for it."""
        changed = [changes[trial_id] for _, changes in sorted(self._decided.items()) if trial_id in changes]
        self._configs[trial_id] = TrialConfig(**(changed[-1]["config"] if changed else config))

    def enter(self, trial_id: str, step: int, loss: float | None) -> None:
        """A member was evaluated at `step`, or (None) has diverged on its way there."""
        if step in self._rungs:
            self._losses.setdefault(step, {}).setdefault(trial_id, math.inf if loss is None else loss)

    def end(self, trial_id: str) -> None:
        """A member has ended, however that was: nobody waits for it, and nobody becomes a copy of it."""
        self._gone.add(trial_id)

    def place(self, trial_id: str) -> Place:
        """Where a member begins, or goes on from the last rung that was decided."""
        if trial_id not in self._configs:  # it is none: it confirms another
            return Place()
        config = self._configs[trial_id].model_dump(mode="json")
        until = self._rungs[0] if self._rungs else None
        if self._last is None:
            return Place(None, until, config)
        other = self._decided[self._last].get(trial_id, {}).get("from", trial_id)
        return Place(Source(other, self._last), until, config)

    def decide(self) -> bool:
        """Decide the next rung, where all have come to it: `place` then says how each goes on."""
        members = self._configs.keys() - self._gone
        losses = self._losses.get(self._rungs[0], {}) if self._rungs else {}
        if len(self._configs) < self._size or not members or not members <= losses.keys():
            return False
        rung = self._rungs[0]
        changes = self._changes(rung, {trial_id: losses[trial_id] for trial_id in members})
        self.decides(rung, changes)
        for trial_id, change in changes.items():
            self._configs[trial_id] = TrialConfig(**change["config"])
        self._decided[rung], self._last = changes, rung
        del self._rungs[0]
        if all(math.isinf(losses[trial_id]) for trial_id in members):  # and so they end
            self._rungs.clear()
        return True

    @property
    def members(self) -> list[str]:
        """Those that have begun and not ended."""
        return [trial_id for trial_id in self._configs if trial_id not in self._gone]

    def _changes(self, rung: int, losses: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        ranked = sorted(losses, key=lambda trial_id: (losses[trial_id], len(trial_id), trial_id))
        diverged = sum(math.isinf(loss) for loss in losses.values())
        few = min(math.ceil(self._asked.quantile * len(ranked)), len(ranked) // 2)
        best = ranked[: max(1, min(few, len(ranked) - diverged))]
        worst = [trial_id for trial_id in ranked[-max(few, diverged) :] if trial_id not in best] if few else []
        if diverged == len(ranked):
            return {}
        chance = Random(f"{self._seed} {rung}")
        changes = {}
        for trial_id in sorted(worst, key=lambda trial_id: (len(trial_id), trial_id)):
            other = chance.choice(best)
            config = self._moved(self._configs[other], chance).after(self._configs[other], rung, other)
            changes[trial_id] = {"from": other, "config": config.model_dump(mode="json")}
        return changes

    def _moved(self, config: TrialConfig, chance: Random) -> TrialConfig:
        chosen = {axis: getattr(config, axis) for axis in self._space}
        moved = {}
        for axis in MOVED:
            if axis in self._space:
                domain = domain_of(self._space, axis, chosen)
                again = chance.random() < self._asked.resample
                moved[axis] = resampled(domain, chance) if again else perturbed(domain, chosen[axis], chance)
        return config.model_copy(update=moved)
