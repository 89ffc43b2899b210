"""What must be known before Ray starts: that the base exists, what it is made of, and the data as tokens.

It runs in a process of its own: torch and transformers are too much memory for a driver that only waits afterwards.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bitlora.adapter.cost import adapter_size
from bitlora.config.essence import essence
from bitlora.config.sections import init_kind
from bitlora.config.targets import NO_PATTERN, OF_BASE, idle_key, targeted
from bitlora.config.trial import TrialConfig, adapter_layers, refused_on_experts, trial_config
from bitlora.quantizers.weights import QUANTIZERS
from sweeps.driver.meanwhile import ReadingBar
from sweeps.pack.measuring.measures import unmeasurable
from sweeps.search.bounds import Bounds
from sweeps.search.sampling.earlier import EarlierTrial, Likeness, earlier_trials
from sweeps.spec.errors import InputError
from sweeps.spec.space import extent
from sweeps.spec.spec import Spec

if TYPE_CHECKING:
    from bitlora.base.info import BaseInfo
    from bitlora.data.sources import How
    from bitlora.data.split import Dataset


GLANCE: Final = 2000
"""Rows of a file that are looked at before anything large is imported: milliseconds."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spec's base and data, looked at."""

    base: BaseInfo
    dataset: Dataset
    earlier: tuple[EarlierTrial, ...] = ()
    """Trials out of `search.from`."""

    def trial(self, spec: Spec, chosen: dict[str, Any]) -> TrialConfig:
        """The whole configuration of the trial for which the searcher chose `chosen`.

        Its seed is the sweep's where the space does not vary it: trials differ by what is searched alone.
        """
        return trial_config(spec.adapter, spec.train, len(self.dataset.train), spec.search.seed, chosen)

    def essence(self, config: dict[str, Any]) -> Hashable | None:
        """What of a trial's configuration its numbers hang on; None: it confirms, and nothing else will do."""
        trial = TrialConfig(**config)
        if trial.confirms:
            return None
        return essence(trial, adapter_layers(trial, [shape.name for shape in self.base.linears], self.base.targets))

    def bytes(self, config: dict[str, Any] | None) -> float:
        """Of a trial's adapter as packed; of one whose configuration is not known, more than any has."""
        return math.inf if config is None else adapter_size(self.base, TrialConfig(**config)).bytes

    def widest(self, spec: Spec) -> TrialConfig:
        """What takes the most memory of all trials of the sweep, axis by axis: there may be no such trial, but none takes
        more."""
        space = spec.search.space
        growing = ("batch_size", "dropout", "dora")
        largest: dict[str, Any] = {axis: max(extent(space[axis])) for axis in growing if axis in space}
        if "activations" in space:
            largest["activations"] = "int8" if "int8" in extent(space["activations"]) else "full"
        if "init" in space:
            largest["init"] = max(extent(space["init"]), key=lambda init: init_kind(init) == "pissa")
        if "quantizer" in space:
            largest["quantizer"] = max(extent(space["quantizer"]), key=_copies)
        if space.keys() & {"rank", "targets", "rank_pattern"}:
            largest |= self._widest_shape(spec)
        return self.trial(spec, largest)

    def _widest_shape(self, spec: Spec) -> dict[str, Any]:
        """Rank, targets and pattern of an adapter that has in each layer the most that any trial may have there: beside
        each other in a pack, all of them take as much."""
        if len(possible_values(spec, "targets")) == len(possible_values(spec, "rank_pattern")) == 1:
            return {"rank": max(possible_values(spec, "rank"))}
        axes = ("rank", "targets", "rank_pattern")
        ranks: dict[str, int] = {}
        for values in product(*(possible_values(spec, axis) for axis in axes)):
            for layer in self.base.layers(self.trial(spec, dict(zip(axes, values, strict=True)))):
                ranks[layer.name] = max(ranks.get(layer.name, 0), layer.rank // layer.experts)
        rank = max(ranks.values())
        others = ", ".join(f"{re.escape(name)}: {own}" for name, own in ranks.items() if own != rank)
        names = ", ".join(shape.name for shape in self.base.linears if shape.name in ranks)
        return {"rank": rank, "targets": names, "rank_pattern": others or NO_PATTERN}

    def pinned(self, spec: Spec) -> Spec:
        """The spec with the revisions that were found: what a sweep begins with, all of it has to the end."""
        found = self.dataset.summary.revisions
        alone = next(iter(found.values())) if len(found) == 1 else found
        base = spec.base.model_copy(update={"revision": self.base.revision})
        data = spec.data.model_copy(update={"revision": alone or spec.data.revision})
        return spec.model_copy(update={"base": base, "data": data})


def possible_values(spec: Spec, axis: str) -> list[Any]:
    """The values that an axis of an adapter can take: all of a list, the ends of a range, the fixed one."""
    domain = spec.search.space.get(axis)
    if domain is not None:
        return sorted(extent(domain))
    return [OF_BASE if axis == "targets" else getattr(spec.adapter, axis)]


def _copies(quantizer: str) -> tuple[bool, bool, str]:
    """Orders quantizers by what they keep beside the latent weights: learned scales, quantized copies."""
    known = QUANTIZERS[quantizer]
    return known.learns_scales, known.levels is not None, quantizer


def prepare(
    spec: Spec,
    meanwhile: Callable[[], object] = lambda: None,
    places: Mapping[str, Path] | None = None,
    here: bool = False,
) -> Prepared:
    """Look at base and data in a child process.

    Args:
        meanwhile: what this process does while it waits.
        places: where data files lie that are not to be looked for under their names (`sweeps.driver.kept`).
        here: in this process instead, which needs torch and transformers all the same.

    Raises:
        InputError: one of them cannot be used; all that is wrong with both.
    """
    if errors := glance(spec, places):
        raise InputError(errors)
    found = _looked_here(spec, places) if here else _looked_in_a_child(spec, meanwhile, places)
    if isinstance(found, Prepared):
        return found
    raise InputError(found)


def _looked_here(spec: Spec, places: Mapping[str, Path] | None) -> Prepared | list[str]:
    bar = ReadingBar()
    try:
        return _look(spec, places, bar.told)
    finally:
        bar.end()


def _looked_in_a_child(
    spec: Spec, meanwhile: Callable[[], object], places: Mapping[str, Path] | None
) -> Prepared | list[str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, spec, places), daemon=True)
    child.start()
    theirs.close()
    bar = ReadingBar()
    try:
        meanwhile()
        while isinstance(found := ours.recv(), SoFar):
            bar.told(*found)
        answer: Prepared | list[str] = found
        return answer
    except EOFError:
        raise InputError(["base and data: the process that reads them died (out of memory?)"]) from None
    finally:
        bar.end()
        child.terminate()
        child.join()


def glance(spec: Spec, places: Mapping[str, Path] | None = None) -> list[str]:
    """What is wrong with base and data as far as that can be said at once, without torch and transformers.

    The first rows of files tell most of what is wrong with them.
    """
    from bitlora.base.locate import PACKAGE, BaseError, locate
    from bitlora.data.examples import DataError
    from bitlora.data.sources import local, read_examples

    errors: list[str] = []
    try:
        if not spec.base.model.startswith(PACKAGE):
            locate(spec.base.model)
    except BaseError as error:
        errors.append(str(error))
    for source, how in _sources(spec, places):
        try:
            read_examples(local(source), how._replace(most=GLANCE, weights=None))
        except DataError as error:
            errors += error.lines
    return errors


def _sources(spec: Spec, places: Mapping[str, Path] | None) -> Iterator[tuple[str | list[str] | None, How]]:
    """All that is read, and how."""
    from bitlora.data.sources import How

    evaluated = How.of(spec.data, evaluation=True, places=places)
    yield spec.data.source, How.of(spec.data, places=places)
    yield spec.data.eval_source, evaluated
    for metric in spec.metrics.values():
        if metric.set is not None:
            choices = metric.kind == "choice_accuracy"
            yield spec.data.eval_sets[metric.set], evaluated._replace(choices=choices)


def _child(answer: Connection, spec: Spec, places: Mapping[str, Path] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here too; the parent ends this process
    answer.send(_look(spec, places, lambda rows, share: answer.send(SoFar(rows, share))))


class SoFar(NamedTuple):
    """How far the reading is: rows, and which share of all."""

    rows: int
    share: float | None


def _look(
    spec: Spec, places: Mapping[str, Path] | None = None, seen: Callable[[int, float | None], object] = lambda *_: None
) -> Prepared | list[str]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from bitlora.base.describe import describe_base
    from bitlora.base.load import load_tokenizer
    from bitlora.base.locate import BaseError
    from bitlora.data.examples import DataError
    from bitlora.data.sources import read_examples
    from bitlora.data.split import beyond, prepare_data, with_sets

    errors: list[str] = []
    info = tokenizer = None
    try:
        written = any(metric.what.generated for metric in spec.metrics.values())
        info = describe_base(spec.base, spec.data.max_length + spec.generation.max_tokens * written)
        errors += _misses(spec, info) or Bounds(spec, info).errors()
        tokenizer = load_tokenizer(spec.base.model, info.revision)
    except BaseError as error:
        errors.append(str(error))
    except Exception as error:  # what a model's own files can do wrong has no end
        errors.append(f"base.model: {spec.base.model}: {type(error).__name__}: {error}".splitlines()[0])
    if info is not None and tokenizer is not None and not errors:
        try:
            dataset = prepare_data(spec.data, tokenizer, places=places, seen=seen, **spec.kept_back)
            dataset = with_sets(dataset, spec.data, spec.metrics, tokenizer, places)
            errors = beyond(dataset, info.vocab_size, tokenizer) or unmeasurable(spec.metrics, dataset.eval, tokenizer)
            return errors or with_earlier(spec, Prepared(info, dataset))
        except DataError as error:
            return error.lines
    # Without a tokenizer the sources can still be read, so that what is wrong with them is said in the same breath.
    for source, how in _sources(spec, places):
        try:
            if source is not None:
                read_examples(source, how)
        except DataError as error:
            errors += error.lines
    return errors


def with_earlier(spec: Spec, prepared: Prepared) -> Prepared | list[str]:
    """It with the trials of `search.from`; or what is wrong with that."""
    fingerprint = prepared.dataset.summary.fingerprint
    likeness = Likeness(spec, prepared.base, fingerprint, lambda chosen: prepared.trial(spec, chosen))
    earlier, errors = earlier_trials(likeness)
    return errors or replace(prepared, earlier=tuple(earlier))


def _misses(spec: Spec, info: BaseInfo) -> list[str]:
    """What of targets and patterns matches no layer of the base."""
    from bitlora.base.describe import check_targets
    from bitlora.base.locate import BaseError

    names = [shape.name for shape in info.linears]
    space = spec.search.space
    errors: list[str] = []
    for text in possible_values(spec, "targets") if "targets" in space else ():
        try:
            check_targets("search.space.targets", text, names, info.experts)
        except BaseError as error:
            errors.append(str(error))
    experts = {shape.name for shape in info.linears if shape.experts > 1}
    chosen = [info.targets if text == OF_BASE else targeted(text, names) for text in possible_values(spec, "targets")]
    if any(experts.intersection(each) for each in chosen):
        errors += _not_on_experts(spec)
    for axis in ("rank_pattern", "alpha_pattern"):
        key = f"search.space.{axis}" if axis in space else f"adapter.{axis}"
        idle = [found for text in possible_values(spec, axis) if (found := idle_key(text, names)) is not None]
        errors += [f"{key}: {one!r} matches no linear layer of the base" for one in dict.fromkeys(idle)]
    return errors


def _not_on_experts(spec: Spec) -> list[str]:
    """What no adapter of a sweep can have where `targets` reach routed experts."""
    errors = []
    for axis in ("dropout", "activations", "init", "dora"):
        key = "search.space" if axis in spec.search.space else "adapter"
        reasons = [refused_on_experts(**{axis: value}) for value in possible_values(spec, axis)]
        errors += [f"{key}.{why}" for why in reasons if why]
    return errors
