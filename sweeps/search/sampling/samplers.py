"""The sampler that a spec asks for."""

from __future__ import annotations

import warnings

import optuna

from sweeps.search.sampling.choice import sampler_of
from sweeps.search.sampling.seen import SeeingGP, SeeingTPE, SeenStudy
from sweeps.spec.spec import Spec


def make_sampler(spec: Spec, study: optuna.Study, drafts: optuna.Study | None = None) -> optuna.samplers.BaseSampler:
    """The sampler of a sweep.

    Args:
        drafts: a study whose trials it sees too (`SeenStudy`), and for which it samples.
    """
    # a study that goes on must not draw once more what it drew first
    seed = (spec.search.seed + len(study.trials)) % 2**32
    asked, startup = sampler_of(spec.search), spec.search.startup
    if asked not in ("tpe", "gp"):
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if asked == "gp":
            return SeeingGP(SeenStudy(study, drafts, startup, completed=True), seed, startup)
        return SeeingTPE(SeenStudy(study, drafts, startup), seed, startup)
