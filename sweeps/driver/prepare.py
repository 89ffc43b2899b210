"""What must be known before Ray starts: that the base exists, what it is made of, and the data as tokens.

It runs in a process of its own: torch and transformers are too much memory for a driver that only waits afterwards.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlora.config.trial import TrialConfig, trial_config
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec

if TYPE_CHECKING:
    from bitlora.base.info import BaseInfo
    from bitlora.data.split import Dataset


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spec's base and data, looked at."""

    base: BaseInfo
    dataset: Dataset

    def trial(self, spec: Spec, chosen: dict[str, Any]) -> TrialConfig:
        """The whole configuration of the trial for which the searcher chose `chosen`.

        Its seed is the sweep's where the space does not vary it: trials differ by what is searched alone.
        """
        return trial_config(spec.adapter, spec.train, len(self.dataset.train), spec.search.seed, chosen)

    def pinned(self, spec: Spec) -> Spec:
        """The spec with the revisions that were found: what a sweep begins with, all of it has to the end."""
        found = self.dataset.summary.revisions
        alone = next(iter(found.values())) if len(found) == 1 else found
        base = spec.base.model_copy(update={"revision": self.base.revision})
        data = spec.data.model_copy(update={"revision": alone or spec.data.revision})
        return spec.model_copy(update={"base": base, "data": data})


def prepare(
    spec: Spec, meanwhile: Callable[[], object] = lambda: None, places: Mapping[str, Path] | None = None
) -> Prepared:
    """Look at base and data in a child process.

    Args:
        meanwhile: what this process does while it waits.
        places: where data files lie that are not to be looked for under their names (`sweeps.driver.kept`).

    Raises:
        InputError: one of them cannot be used; all that is wrong with both.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, spec, places), daemon=True)
    child.start()
    theirs.close()
    try:
        meanwhile()
        found: Prepared | list[str] = ours.recv()
    except EOFError:
        raise InputError(["base and data: the process that reads them died (out of memory?)"]) from None
    finally:
        child.terminate()
        child.join()
    if isinstance(found, Prepared):
        return found
    raise InputError(found)


def _child(answer: Connection, spec: Spec, places: Mapping[str, Path] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here too; the parent ends this process
    answer.send(_look(spec, places))


def _look(spec: Spec, places: Mapping[str, Path] | None = None) -> Prepared | list[str]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from bitlora.base.describe import describe_base
    from bitlora.base.load import load_tokenizer
    from bitlora.base.locate import BaseError
    from bitlora.data.examples import DataError
    from bitlora.data.json_lines import DataFiles
    from bitlora.data.sources import read_examples
    from bitlora.data.split import prepare_data

    errors: list[str] = []
    info = tokenizer = None
    try:
        info = describe_base(spec.base)
        tokenizer = load_tokenizer(spec.base.model, info.revision)
    except BaseError as error:
        errors.append(str(error))
    except Exception as error:  # what a model's own files can do wrong has no end
        errors.append(f"base.model: {spec.base.model}: {type(error).__name__}: {error}".splitlines()[0])
    if info is not None and tokenizer is not None:
        try:
            test_rows = 0 if spec.confirm is None else spec.confirm.rows
            return Prepared(info, prepare_data(spec.data, tokenizer, test_rows, places))
        except DataError as error:
            return list(error.errors)
    # Without a tokenizer the sources can still be read, so that what is wrong with them is said in the same breath.
    for source in (spec.data.source, spec.data.eval_source):
        try:
            if source is not None:
                read_examples(source, spec.data.revision, files=DataFiles(places or {}))
        except DataError as error:
            errors += error.errors
    return errors
