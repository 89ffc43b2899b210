"""Optuna's sampler of a sweep."""

from __future__ import annotations

import warnings

import optuna

from sweeps.search.sampling.choice import sampler_of
from sweeps.search.sampling.seen import SeeingTPE, SeenStudy
from sweeps.spec.spec import Spec


def make_sampler(spec: Spec, study: optuna.Study, drafts: optuna.Study | None = None) -> optuna.samplers.BaseSampler:
    """TPE where the spec asks for it, else one that draws at random: what is chosen otherwise is planned before.

    Args:
        drafts: a study whose trials it sees too (`SeenStudy`), and for which it samples.
    """
    # a study that goes on must not draw once more what it drew first
    seed = (spec.search.seed + len(study.trials)) % 2**32
    if sampler_of(spec.search) != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SeeingTPE(SeenStudy(study, drafts, spec.search.startup), seed, spec.search.startup)
