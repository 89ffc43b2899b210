"""What earlier sweeps over the same base and data came to: `search.from`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bitlora.base.info import BaseInfo
from bitlora.config.targets import OF_BASE
from bitlora.config.trial import TrialConfig
from bitlora.files import record
from bitlora.files.opening import open_storage
from bitlora.files.record import Record
from bitlora.files.storage import StorageError
from sweeps.search.metric import finite
from sweeps.spec import space as spaces
from sweeps.spec.errors import SpecError
from sweeps.spec.spec import Spec, load_spec

SPEC: Final = "sweep.yaml"
NO_MATTER: Final = frozenset(("seed", "confirms", "confirm_rows", "micro_batch", "eval_every"))
"""Keys of a trial in which one may differ from those of this sweep: seeds apart, they change no number."""


@dataclass(frozen=True, slots=True)
class EarlierTrial:
    """A trial of an earlier sweep that is one of this sweep's space."""

    chosen: dict[str, Any]
    """A value for each axis of the space."""
    eval_loss: float
    """In full."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What an earlier sweep is to be like.

    Args:
        fingerprint: of the data.
        trial: makes a trial's whole configuration of what was chosen.
    """

    spec: Spec
    base: BaseInfo
    fingerprint: str
    trial: Callable[[dict[str, Any]], TrialConfig]

    def of(self, found: Record, begun: Spec) -> EarlierTrial | None:
        """A record of the sweep `begun` as a trial of this one's space; None: it has not completed, or is none."""
        space, loss = self.spec.search.space, finite(found.eval_loss)
        if found.status != "completed" or found.same_as or found.config.get("confirms") or loss is None:
            return None
        if found.schedule:  # it came to that with other values, too
            return None
        if found.config.get("targets", OF_BASE) == OF_BASE and begun.base.targets != self.spec.base.targets:
            return None
        try:
            there = TrialConfig(**found.config).model_dump()
            chosen = {axis: there[axis] for axis in space}
            if not spaces.contains(space, chosen):
                return None
            here = self.trial(chosen).model_dump()
        except ValueError:  # a configuration that this version does not have
            return None
        same = all(there.get(key) == here[key] for key in here.keys() - NO_MATTER)
        return EarlierTrial(chosen, loss) if same else None

    def unlike(self, found: Record) -> str:
        """What differs, in words; nothing where base and data are those of this sweep."""
        base, summary = found.base, f"{self.base.model} ({self.base.quantization}, {self.base.revision})"
        revisions = {self.base.revision, self.base.config_digest} - {""}
        if base.get("revision") not in revisions or base.get("quantization") != self.base.quantization:
            there = f"{base.get('model')} ({base.get('quantization')}, {base.get('revision')})"
            return f"its base is {there}, and this sweep's {summary}; give sweeps over the same base"
        if found.data.get("fingerprint") != self.fingerprint:
            there = f"{found.data.get('source')} ({found.data.get('fingerprint')})"
            return (
                f"its data are not this sweep's: {there}, and here {self.fingerprint}; give sweeps over the same rows"
            )
        return ""


def earlier_trials(likeness: Likeness) -> tuple[list[EarlierTrial], list[str]]:
    """The trials out of `search.from`, those of each sweep by their names; and what is wrong with it, a line for each."""
    found: list[EarlierTrial] = []
    errors: list[str] = []
    for place in likeness.spec.search.from_:
        try:
            begun, records = _look(place)
        except SpecError as error:
            errors.append(f"search.from: {place}: its {SPEC} cannot be read: {error.lines[0]}")
            continue
        except StorageError as error:
            errors.append(f"search.from: {error}")
            continue
        if begun is None:
            errors.append(f"search.from: {place}: there is no sweep; give the folder of one, with its {SPEC}")
            continue
        whys = [why for each in records if (why := likeness.unlike(each))]
        if whys:
            errors.append(f"search.from: {place}: {whys[0]}")
        found += [one for each in records if (one := likeness.of(each, begun)) is not None]
    return found, errors


def _look(place: str) -> tuple[Spec | None, Sequence[Record]]:
    """A sweep's spec and records; a record that cannot be read counts as missing."""
    records: list[Record] = []
    with open_storage(place) as storage:
        storage.check()
        storage.pull("", only=(SPEC, record.RECORD))
        path = storage.folder / SPEC
        begun = load_spec(path) if path.exists() else None
        trials = (storage.folder / record.TRIALS).glob("*/")
        for trial in sorted(trials, key=lambda found: record.in_order(found.name)):
            with contextlib.suppress(OSError, ValueError):
                records.append(record.read_record(Path(trial)))
    return begun, records
