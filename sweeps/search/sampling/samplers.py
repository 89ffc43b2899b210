"""The sampler that a spec asks for."""

from __future__ import annotations

import warnings

import optuna

from sweeps.search.sampling.seen import SeeingSampler, SeenStudy
from sweeps.spec.spec import Spec


def make_sampler(spec: Spec, study: optuna.Study, drafts: optuna.Study | None = None) -> optuna.samplers.BaseSampler:
    # a study that goes on must not draw once more what it drew first
    seed = (spec.search.seed + len(study.trials)) % 2**32
    if spec.search.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SeeingSampler(SeenStudy(study, drafts, spec.search.startup), seed, spec.search.startup)
