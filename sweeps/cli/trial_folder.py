"""A trial that has ended, taken out of its sweep's folder again: its record, its spec, its adapter, its eval split."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit, urlunsplit

from pydantic import ValidationError

from bitlora.config.explain import explain, nearest
from bitlora.config.sections import BaseConfig, Dtype
from bitlora.config.trial import TrialConfig
from bitlora.files import record
from bitlora.files.record import TRIALS, Record
from sweeps.driver.resume import DECIDING, SPEC
from sweeps.spec.errors import InputError, SpecError
from sweeps.spec.spec import Spec, load_spec

if TYPE_CHECKING:
    import torch

    from bitlora.adapter.latent import AdapterLatent
    from bitlora.data.rows import Rows


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """A trial that has ended, with an adapter."""

    place: str
    """The trial's folder, as the user named it."""
    sweep: Path
    """The sweep's folder as this process sees it: what its report is made of is there, and the trial's own files."""
    spec: Spec
    record: Record
    config: TrialConfig
    latent: AdapterLatent
    """Layer name -> latent A (rank, in), B (out, rank), and of learned scales theirs."""

    @property
    def base(self) -> BaseConfig:
        """The base that the trial was trained over, of the revision that its record names."""
        base: Any = self.record.base
        found: Any = base.get("revision") if isinstance(base, dict) else None
        revision = found if isinstance(found, str) and found else self.spec.base.revision
        return self.spec.base.model_copy(update={"revision": revision})

    @property
    def hub_base(self) -> tuple[str | None, str | None]:
        """The base's id on the hub, and its commit there; None: it is a folder's or a package's, or that is not known."""
        found = re.fullmatch("[0-9a-f]{40}", self.base.revision or "")
        return (self.base.model, self.base.revision) if found else (None, None)

    def model(self, base: BaseConfig | None = None, dtype: torch.dtype | None = None) -> Any:
        """The base as the trial was trained over it: a transformers model, frozen.

        Args:
            base: what it is to be instead, in another form; None: as it was.
            dtype: what it is to be computed in; None: what the trial was computed in.

        Raises:
            InputError: it cannot be had any more, or is another one.
        """
        from bitlora.adapter.apply import check_fit
        from bitlora.base.load import load_model

        try:
            model = load_model(base or self.base, dtype or self.dtype(), device())
            check_fit(model, self.latent)
        except ValueError as error:
            raise InputError([str(error).splitlines()[0]]) from None
        return model

    def tokenizer(self) -> Any:
        """The base's, with the chat template that the trial was trained with.

        Raises:
            InputError: the base cannot be had any more.
        """
        from bitlora.base.load import load_tokenizer
        from bitlora.base.locate import BaseError

        try:
            tokenizer = load_tokenizer(self.base.model, self.base.revision)
        except BaseError as error:
            raise InputError([str(error)]) from None
        tokenizer.chat_template = self.spec.data.chat_template or tokenizer.chat_template
        return tokenizer

    @property
    def trained_in(self) -> Dtype:
        """What the trial was computed in; of a record that does not say, what its spec asks for: it may be `auto`."""
        base: Any = self.record.base
        found: Any = base.get("dtype") if isinstance(base, dict) else None
        return found if found in get_args(Dtype) else self.spec.train.dtype

    def dtype(self) -> torch.dtype:
        """What the base is computed in here."""
        from bitlora.base.load import resolve_dtype

        return resolve_dtype(self.trained_in, device())

    def eval_rows(self) -> Rows:
        """The examples that the trial's `eval_loss` is over, made again from the spec and held against eval.parquet.

        Raises:
            InputError: the data cannot be read any more, or are others.
        """
        return self._rows(record.EVAL, "; to export without comparing losses give --no-check")

    def test_rows(self) -> Rows:
        """The examples that the `test_loss` of a trial that confirms is over; as `eval_rows`."""
        return self._rows(record.TEST, "")

    def _rows(self, file: str, hint: str) -> Rows:
        import pyarrow.parquet as pq

        from bitlora.data.examples import DataError
        from bitlora.data.split import prepare_data
        from sweeps.driver.kept import places

        try:
            elsewhere, _ = places(self.spec.data, self.sweep)
        except InputError as error:
            raise InputError([f"{line}{hint}" for line in error.lines]) from None
        try:
            prepared = prepare_data(self.spec.data, self.tokenizer(), places=elsewhere, **self.spec.kept_back)
            rows = prepared.eval if file == record.EVAL else prepared.test
            path = self.sweep / TRIALS / self.record.trial_id / file
            scored = pq.read_table(path, columns=["example_id", "tokens"]).to_pydict()
        except DataError as error:
            raise InputError([f"data: {error.errors[0]}{hint}"]) from None
        except (OSError, ValueError) as error:
            raise InputError([f"{file} of {self.place}: {str(error).splitlines()[0]}{hint}"]) from None
        found = dict(zip(rows.example_ids, rows.learn_tokens.tolist(), strict=True))
        expected = dict(zip(scored["example_id"], scored["tokens"], strict=True))
        if found != expected:
            other = next(iter({**expected, **found}.items() - (found.items() & expected.items())))[0]
            split = file.partition(".")[0]
            raise InputError(
                [
                    f"data: {len(rows)} {split} examples, and {file} has {len(expected)}; {other} is not the same in both: "
                    f"the data have changed since the sweep, or Python, whose docstrings pydoc is{hint}"
                ]
            )
        return rows


def device() -> torch.device:
    """The first GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet() -> None:
    """Keep the libraries' notes, warnings and progress bars off the terminal. To be called before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.simplefilter("ignore", FutureWarning)  # of what PEFT calls in transformers
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextlib.contextmanager
def open_trial(place: str) -> Iterator[TrialFolder]:
    """Open a trial's folder, on a disk or in object storage.

    Args:
        place: SWEEP/trials/<trial_id>, or s3://…/trials/<trial_id>.

    Raises:
        InputError: there is no such trial, it is still running, or it left no adapter.
    """
    from bitlora.files.opening import open_storage

    sweep, trial_id = split(place)
    with contextlib.ExitStack() as stack:
        try:
            storage = stack.enter_context(open_storage(sweep))
            if not storage.exists(f"{TRIALS}/{trial_id}"):
                hint = nearest(trial_id, storage.names(TRIALS)) if storage.exists(TRIALS) else ""
                raise InputError([f"{place}: no such trial{hint}"])
            storage.pull("", only=DECIDING)
            storage.pull(record.DATA, f"{TRIALS}/{trial_id}/{record.ADAPTER}")
            found = read_trial(place, storage.folder, trial_id)
        except SpecError as error:
            raise InputError([*error.lines]) from None
        except OSError as error:
            raise InputError([str(error)]) from None
        yield found


def split(place: str) -> tuple[str, str]:
    """A trial's folder as its sweep's folder and its id.

    Raises:
        InputError: it does not end in trials/<trial_id>.
    """
    if "://" in place:
        url = urlsplit(place)
        *above, trials, trial_id = ["", "", *url.path.rstrip("/").split("/")]
        sweep = urlunsplit(url._replace(path="/".join(above[2:])))
    else:
        path = Path(place).absolute()
        trials, trial_id, sweep = path.parent.name, path.name, str(path.parent.parent)
    if trials != TRIALS or not trial_id:
        raise InputError([f"{place}: not a trial's folder; give one such as runs/mine/{TRIALS}/t0000"])
    return sweep, trial_id


def read_trial(place: str, sweep: Path, trial_id: str) -> TrialFolder:
    """Read a trial out of the folder of its sweep, where its files are.

    Args:
        place: the trial's folder, as the user named it.

    Raises:
        InputError: see `open_trial`.
        SpecError: the sweep's spec cannot be read.
    """
    from bitlora.adapter.peft_folder import load_latent

    folder = sweep / TRIALS / trial_id
    if not (folder / record.RECORD).exists():
        raise InputError(
            [f"{place}: no {record.RECORD}: the trial is still running, or its sweep was cut off (--resume)"]
        )
    try:
        read = record.read_record(folder)
        config = TrialConfig(**read.config)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{folder / record.RECORD}: config.{'.'.join(map(str, first['loc']))}"
        raise InputError([f"{where}: {explain([first], first['input'])}"]) from None
    except ValueError as error:
        raise InputError([str(error)]) from None
    if read.status in ("failed", "diverged"):
        raise InputError([f"{place}: the trial has {read.status} ({read.reason}): there is nothing to hand on"])
    if read.eval_loss is None or not (folder / record.ADAPTER).is_dir():
        raise InputError([f"{place}: the trial was {read.status} before its first evaluation, so it has no adapter"])
    try:
        latent = load_latent(folder / record.ADAPTER, config)
    except ValueError as error:
        raise InputError([str(error)]) from None
    return TrialFolder(place, sweep, load_spec(sweep / SPEC), read, config, latent)
