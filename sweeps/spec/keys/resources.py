"""The key `resources` of a spec: what a sweep may take of the cluster."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from bitlora.config.sections import Config, NonNegativeFloat, Positive, PositiveFloat

MOST_PACKS: Final = 990
"""At once: the process that starts a pack takes a thousandth of the head (`sweeps.onray.cluster.HEAD`), and so does the
pool."""


def _startable(packs: int) -> int:
    if packs > MOST_PACKS:
        raise ValueError(
            f"found {packs}; give at most {MOST_PACKS}: what starts a pack takes a thousandth of the cluster's head"
        )
    return packs


Packs = Annotated[Positive, AfterValidator(_startable)]


class PacksConfig(Config):
    """Between how many packs a sweep breathes."""

    min: Annotated[int, Field(ge=0)] = 0
    """Kept up until the sweep ends, trials or not."""
    max: Packs
    """At most so many at once."""


class ResourcesConfig(Config):
    """What the sweep may take of the cluster."""

    packs: Literal["auto"] | Packs | PacksConfig = "auto"
    """Bases at once, at most; or between how many. `auto`: as many as there are GPUs for, or as the autoscaler can start
    GPUs for; one where packs train on CPUs."""
    slots: Literal["auto"] | Positive = "auto"
    """Trials at once over a base; `auto`: as many as fit in memory, at most 4 on CPUs and 8 on a GPU. A number stays: where
    memory is short, passes get fewer rows, and the pack's log says so."""
    workers_per_pack: Positive = 1
    """GPUs, or machines' CPUs, that share each trial's batches."""
    gpus_per_worker: Literal["auto"] | NonNegativeFloat = "auto"
    """At most 1, and less only with one worker a pack; `auto`: 1 where the cluster has GPUs or can get some, else 0.
    Refused where no GPU is up and nothing says what else may come: under KubeRay, and while hosts of a fixed cluster are
    missing."""
    patience: PositiveFloat | None = None
    """Seconds that a pack may wait for room on the cluster; null: 1800, and 180 on this machine's own Ray. Where no pack
    ever finds room, the sweep ends after that."""
    price_per_hour: NonNegativeFloat | None = None
    """Of a GPU, or without one of a worker, in any currency: the report says what the sweep cost."""
