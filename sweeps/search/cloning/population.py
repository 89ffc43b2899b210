"""Population-based training (PBT, arXiv 1711.09846), in step: all trials of a sweep train at once, and at each rung the
worst go on as copies of the best, with values that have moved. Rules over steps and losses alone, which know no Ray.

Nothing hangs on who reports first: a rung is decided when all have come to it, by their losses, the rung and the sweep's
seed. A member that becomes a copy takes the other's whole configuration, since weights fit no other shape or quantizer, its
seed with it, and then moves what can be moved under way (`bitlora.config.sections.MOVED`). The steps that it has behind it
are then the other's, with the values that those had: they are `stages` of its configuration, which says all that its
weights went through.

PB2 (arXiv 2002.02518) differs in where the values move alone (`sweeps.search.cloning.bandit`): by what those of all members
were worth so far, which a study keeps as it keeps decisions. At the first rung they move as in PBT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from bitlora.config.trial import TrialConfig
from sweeps.search.cloning.bandit import Bandit, Came, behind, places
from sweeps.search.cloning.explore import Explore, chosen_of, moved
from sweeps.search.cloning.place import Place, Source

if TYPE_CHECKING:
    from sweeps.spec.spec import Spec

Changes = Mapping[str, Mapping[str, Any]]
"""Members that have become copies: our id -> `from`, our id of the other one, and `config`, which they have now."""


_RUNG: Final = "rung "
"""Attributes of a study that begin so, and end in a step, are what was decided there."""
_CAME: Final = "came to rung "
"""Likewise, what members came to there."""


def attribute(rung: int, changes: Changes) -> dict[str, Any]:
    """The attribute by which a study keeps a decision, in one line of its journal."""
    return {f"{_RUNG}{rung}": changes}


def came_to(rung: int, came: Came) -> dict[str, Any]:
    """The attribute by which it keeps what that was decided by, if anything is needed later. To be kept first: a rung that
    was not decided is decided by it again."""
    return {f"{_CAME}{rung}": came} if came else {}


def decided(attributes: Mapping[str, Any]) -> dict[int, Changes]:
    """What a study with these attributes has kept, by rung."""
    return _kept(attributes, _RUNG)


def came(attributes: Mapping[str, Any]) -> dict[int, Came]:
    """Likewise, of what members came to."""
    return _kept(attributes, _CAME)


def _kept(attributes: Mapping[str, Any], begin: str) -> dict[int, Any]:
    return {int(name.removeprefix(begin)): kept for name, kept in attributes.items() if name.startswith(begin)}


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
        came: what its members came to, by rung.
    """

    def __init__(
        self,
        spec: Spec,
        budget: int,
        size: int,
        decided: Mapping[int, Changes],
        came: Mapping[int, Came] | None = None,
    ) -> None:
        self._asked, self._space, self._size, self._seed = spec.scheduler, spec.search.space, size, spec.search.seed
        interval = self._asked.interval
        self._rungs = [step for step in range(interval, budget, interval) if step not in decided]
        """Those that are to be decided."""
        self._decided = dict(decided)
        self._last = max(decided, default=None)
        self._came = dict(came or {})
        self.decides: Callable[[int, Changes, Came], object] = lambda rung, changes, came: None
        """Told of each decision before anybody goes on by it, and what later ones hang on, if they do; whoever is to keep
        it says it here."""
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
        losses = {trial_id: losses[trial_id] for trial_id in members}
        if self._asked.name == "pb2":
            self._came[rung] = self._came_to(rung, losses)
        changes = self._changes(rung, losses)
        self.decides(rung, changes, self._came.get(rung, {}))
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
        chance, explore = Random(f"{self._seed} {rung}"), self._explore(rung, losses, worst)
        changes = {}
        for trial_id in sorted(worst, key=lambda trial_id: (len(trial_id), trial_id)):
            other = chance.choice(best)
            config = explore(other, self._configs[other], chance).after(self._configs[other], rung, other)
            changes[trial_id] = {"from": other, "config": config.model_dump(mode="json")}
        return changes

    def _explore(self, rung: int, losses: Mapping[str, float], worst: Sequence[str]) -> Explore:
        if self._asked.name == "pb2" and rung > self._asked.interval:
            known = {at // self._asked.interval: kept for at, kept in self._came.items() if at <= rung}
            staying = {trial_id: self._configs[trial_id] for trial_id in losses if trial_id not in worst}
            return Bandit(self._space, known, losses, staying).moved
        return lambda other, config, chance: moved(config, self._space, self._asked.resample, chance)

    def _came_to(self, rung: int, losses: Mapping[str, float]) -> Came:
        """What the members came to. All have begun at one loss, nobody behind: of the first gains it is left out."""
        last = rung - self._asked.interval
        rows = self._came.get(last, {}).items()
        before = {trial_id: math.inf if row["loss"] is None else row["loss"] for trial_id, row in rows}
        found, ranks = {}, behind(before)
        for trial_id, loss in sorted(losses.items()):
            source = self._decided.get(last, {}).get(trial_id, {}).get("from", trial_id)
            gain = before.get(source, 0.0) - loss
            found[trial_id] = {
                "loss": loss if math.isfinite(loss) else None,
                "gain": gain if math.isfinite(gain) else None,
                "behind": ranks.get(source, 0.0),
                "at": places(self._space, chosen_of(self._configs[trial_id], self._space)),
            }
        return found
