"""What a pack needs to know; the pool hands it to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from bitlora.config.metrics import GenerationConfig, MetricConfig
from bitlora.config.sections import BaseConfig, Dtype
from bitlora.config.trial import TrialConfig
from sweeps.pack.user_function import packed
from sweeps.search.metric import Objective

if TYPE_CHECKING:
    from bitlora.data.split import Dataset
    from bitlora.files.storage import Storage
    from sweeps.pack.travel import TravellingRows
    from sweeps.search.rungs.sequential import Rungs
    from sweeps.spec.spec import Spec


FAKE_GPUS: Final = "BITLORA_FAKE_GPUS"
"""In the environment, as "1": a test's GPUs are numbers that Ray counts; packs reserve them and compute on the CPU."""


def measuring(spec: Spec) -> dict[str, Any]:
    """What of the settings says by what trials are measured, and by which of it the sweep searches.

    Raises:
        ScoringError: a user's function cannot be had, or cannot travel.
    """
    return {
        "metrics": spec.metrics,
        "generation": spec.generation,
        "functions": {name: packed(metric.kind) for name, metric in spec.metrics.items() if metric.is_function},
        "objective": Objective.of_spec(spec.search.metric, spec.metrics),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What a pack needs; the pool hands it to the workers."""

    base: BaseConfig
    """Of the revision that the sweep began with."""
    dtype: Dtype
    begun_in: str | None = None
    """What the trials of an earlier run of the sweep were computed in, by torch's name, where `dtype` is auto."""
    checkpointing: bool
    dataset: Dataset
    """In the pool a reference to it: it may be large, and each machine fetches it once (`sweeps.pack.worker.fetched`)."""
    rows: TravellingRows | None = None
    """Of rows that are kept on the driver's machine."""
    slots: int
    """At most; a pack has as many as fit its memory."""
    slots_given: bool
    """A user has said how many: those are kept, whatever fits."""
    widest: TrialConfig
    """What takes the most memory of all trials that the sweep may have."""
    measured: dict[str, Any]
    """What an earlier run of the sweep has measured of memory (`sweeps.pool.measured`)."""
    most_workers: int
    """Of all packs at once, at most."""
    storage: Storage
    """Of the sweep's folder."""
    token: str
    """By which a worker knows that the folder it sees is that one."""
    rungs: Rungs | None = None
    """By which a pack knows when to stop scoring a trial; None: every trial is scored on all rows."""
    keep: Literal["last", "best"] = "last"
    """The evaluation whose files a trial has in the end."""
    metrics: Mapping[str, MetricConfig] = field(default_factory=dict)
    """What trials are measured by beside their loss; those over eval sets have their rows in `dataset.sets`."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    functions: Mapping[str, bytes] = field(default_factory=dict)
    """Users' own, by metric (`sweeps.pack.user_function`)."""
    objective: Objective = field(default_factory=Objective)
    """What is searched by."""
    checkpoint_every: int | None
    """Steps; None: at each evaluation."""
    workers: int
    """Of a pack."""
    resources: dict[str, float]
    """Of one worker."""
