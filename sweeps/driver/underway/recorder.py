"""The records: written by the driver alone, one for every trial that was handed out, when it has ended."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import ray
from ray.tune import Callback

from bitlora import timeouts
from bitlora.adapter.cost import adapter_size
from bitlora.config.metrics import MetricConfig
from bitlora.config.trial import TrialConfig
from bitlora.files import origin, record, writing
from bitlora.files.origin import Origin
from bitlora.files.record import STATUSES, Metrics, Record, Status
from bitlora.files.storage import Storage
from sweeps.driver.prepare import Prepared
from sweeps.driver.resume import Past
from sweeps.driver.underway.driver_only import DriverOnly
from sweeps.pool.messages import UNANSWERED
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.twins import SETTLED, Twin, reason_of
from sweeps.spec.keys.scheduler import POPULATIONS

REPORTED: Final = (record.CONFIG, record.METRICS, record.EVAL, record.TEST)
"""Of a trial's files, those that a report is made of, beside its record."""


class Recorder(DriverOnly, Callback):  # type: ignore[misc]
    """Listens to Tune, and writes a trial's record as soon as its pack has let it go.

    Args:
        storage: of the sweep's folder.
        pool: the pool's handle.
        searcher: told how each trial ended.
        stopped_by: what a trial was stopped by that did not end by itself.
        keep: the evaluation whose files a trial has in the end.
        metrics: the spec's.
    """

    def __init__(
        self,
        storage: Storage,
        pool: Any,
        prepared: Prepared,
        searcher: OptunaSearcher,
        stopped_by: str,
        keep: Literal["last", "best"] = "last",
        metrics: Mapping[str, MetricConfig] = MappingProxyType({}),
    ) -> None:
        self.counts: Counter[Status] = Counter()
        """How the trials of the whole sweep ended, those of an earlier run of it included."""
        self.ending: tuple[Status, str] | None = None
        """How all that have not ended by themselves end from now on, and why: the sweep itself ends."""
        self._storage = storage
        self._pool = pool
        self._prepared = prepared
        self._searcher = searcher
        self._stopped_by = stopped_by
        self._keep_best = keep == "best"
        self._objective = searcher.objective
        self._columns = {name: metric.kind == "token_accuracy" for name, metric in metrics.items() if not metric.set}
        self._sets = [record.of_set(name) for name, metric in metrics.items() if metric.set]
        """Files that a trial has beside those of `REPORTED`."""
        self._versions = origin.versions()
        self._ended: set[str] = set()
        self.tell: Callable[[Twin], object] = bool
        """Told of each trial that has another's result; whoever shows it says it here."""
        searcher.twin = self.end_twin
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._jobs: list[Any] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        result = trial.last_result or {}
        status, reason = result.get("status"), str(result.get("reason") or "")
        if status not in STATUSES:
            stopped = f"stopped by {self._stopped_by} at step {result['step']}" if "step" in result else ""
            status, reason = self.ending or ("pruned", stopped)
        self.end(trial.config, status, reason, self._objective.of(result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The pool could not take a trial; or it is gone, and nothing more will come."""
        try:
            ray.get(self._pool.status.remote(), timeout=timeouts.SLOT_RELEASE_S)
        except ray.exceptions.RayError:
            self.ending = self.ending or ("interrupted", "the pool died")
        self.end(trial.config, *(self.ending or ("failed", UNANSWERED)))

    def resume(self, past: Past) -> None:
        """Take up a sweep that was begun before: count what has ended, and write the records that are missing.

        A trial that needs no more training ends here; the record of one that goes on is removed.
        """
        self._searcher.evaluations = {trial_id: past.curve(trial_id, self._objective) for trial_id in past.metrics}
        for trial_id, ended in self._searcher.ended.items():
            self._ended.add(trial_id)
            self.counts[ended.status] += 1
            if trial_id in past.records or ended.config is None:
                continue
            if ended.same_as:
                self._jobs.append(self._writer.submit(self._write_again, trial_id, ended.config, ended.same_as))
            else:
                known = (trial_id, ended.config, ended.status, ended.reason, None)
                acts = self._searcher.steered.acts_on(trial_id)
                self._jobs.append(self._writer.submit(self._write, *known, acts))
        for trial_id in self._searcher.begun:
            if (reason := past.over(trial_id)) is not None:
                self._ended.add(trial_id)
                self.counts["completed"] += 1
                value = past.curve(trial_id, self._objective)[-1][1]
                config = self._searcher.finish_resumed(trial_id, "completed", value, reason)
                acts = self._searcher.steered.acts_on(trial_id)
                self._jobs.append(self._writer.submit(self._write, trial_id, config, "completed", reason, None, acts))
            elif trial_id in past.records:
                self._storage.delete(f"trials/{trial_id}/{record.RECORD}")

    def end_rest(self) -> None:
        """Whatever was handed out and has not ended, ends with the sweep."""
        status, reason = self.ending or ("interrupted", "Ray Tune dropped it: see logs/driver.log")
        for config in self._searcher.unfinished():
            self.end(config, status, reason)

    def end(self, config: dict[str, Any], status: Status, reason: str, value: float | None = None) -> None:
        """A trial has ended so: tell the study, let its slot go, write its record. The first word counts.

        Args:
            value: what is searched by, lower where it is better.
        """
        trial_id = config["trial_id"]
        if trial_id in self._ended:
            return
        self._ended.add(trial_id)
        twins = self._searcher.finish(trial_id, status, value, reason)
        self.counts[status] += 1
        self._pool.detach.remote(trial_id)
        # Asked for now, not when its turn has come: a pack that hangs holds all its trials up together, not one by one.
        let_go = self._pool.released.remote(trial_id), time.monotonic() + timeouts.SLOT_RELEASE_S
        acts = self._searcher.steered.acts_on(trial_id)
        self._jobs.append(self._writer.submit(self._write, trial_id, config["config"], status, reason, let_go, acts))
        for twin in twins:
            self.end_twin(twin)

    def end_twin(self, twin: Twin) -> None:
        """A trial has ended with the one whose configuration it has. To be called when that one has ended here."""
        trial_id, config = twin.suggestion["trial_id"], twin.suggestion["config"]
        self._ended.add(trial_id)
        self.counts[twin.status] += 1
        if twin.status in SETTLED:
            self._jobs.append(self._writer.submit(self._write_again, trial_id, config, twin.first))
        else:
            self._jobs.append(self._writer.submit(self._write, trial_id, config, twin.status, twin.reason))
        self.tell(twin)

    def close(self) -> None:
        """Returns when every record is on disk.

        Raises:
            OSError, ValueError: one could not be written, or a trial's files cannot be read; the others are written.
        """
        self._writer.shutdown()
        for job in self._jobs:
            job.result()
        if self._stopped_by in POPULATIONS and self.ending is None:  # nobody goes on from them any more
            for trial_id in self._ended:
                for name in fnmatch.filter(self._storage.names(f"{record.TRIALS}/{trial_id}"), record.RUNGS):
                    self._storage.delete(f"{record.TRIALS}/{trial_id}/{name}")

    def _write(
        self,
        trial_id: str,
        config: dict[str, Any],
        status: Status,
        reason: str,
        let_go: tuple[Any, float] | None = None,
        acts: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write a trial's record.

        Args:
            acts: what a person did to it.
            let_go: what is there when its pack has let it go, and until when that is waited for; None: it is in no pack.
        """
        if let_go is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(let_go[0], timeout=max(0.0, let_go[1] - time.monotonic()))
        where = f"trials/{trial_id}"
        folder = self._storage.folder / where
        writing.sweep_up(folder)
        self._storage.pull(where, only=(*REPORTED, *self._sets))
        trial = _as_trained(folder, config)
        lines = record.read_metrics(folder)
        last: Metrics | None = lines[-1] if lines else None
        if lines and self._keep_best:  # whose files there are
            kept: Metrics | None = min(lines, key=lambda line: line.eval_loss)
        else:
            kept = last
        if status == "pruned":
            at = last.step if last else 0
            reason = reason or f"stopped by {self._stopped_by} at step {at}"
            if not reason.endswith(f" {at}"):  # its pack was faster than the word
                reason += f"; evaluated once more before it heard, at step {at}"
        ranked = status != "diverged"
        tested = status == "completed" and (folder / record.TEST).exists()
        size = adapter_size(self._prepared.base, trial)
        computed: Origin | None = None
        with contextlib.suppress(OSError, ValueError):  # of a trial that was never evaluated there is no such file
            computed = record.origin_of(folder / record.EVAL)
        record.write_record(
            folder,
            Record(
                trial_id=trial_id,
                status=status,
                reason=reason,
                config=json.loads(trial.model_dump_json(exclude={"stages"})),
                schedule=[json.loads(stage.model_dump_json()) for stage in trial.stages] or None,
                eval_loss=kept.eval_loss if kept is not None and ranked else None,
                steps=kept.step if kept else 0,
                tokens=kept.tokens if kept else 0,
                seconds=kept.seconds if kept else 0.0,
                adapter_params=size.params,
                adapter_bytes=size.bytes,
                base=self._prepared.base.provenance(trial) | _base(computed),
                data=provenance(self._prepared),
                versions=(computed and computed.versions) or self._versions,
                test_loss=record.loss_of(folder / record.TEST) if tested else None,
                metrics=kept.metrics if kept is not None and ranked else None,
                test_metrics=(record.means_of(folder / record.TEST, self._columns) or None) if tested else None,
                steered=acts or None,
                eval_rows=last.rows if last is not None and ranked else None,
            ),
        )
        self._storage.push(f"{where}/{record.RECORD}")
        if status in SETTLED:  # it will not go on
            self._storage.delete(f"{where}/{record.CHECKPOINT}")

    def _write_again(self, trial_id: str, config: dict[str, Any], first: str) -> None:
        """Write the files of a trial that has the result of `first`, whose own are written: copies, but for its
        configuration and its record."""
        source, folder = (self._storage.folder / record.TRIALS / name for name in (first, trial_id))
        self._storage.pull(f"{record.TRIALS}/{first}")
        found = record.read_record(source)
        trial = TrialConfig(**config)
        folder.mkdir(parents=True, exist_ok=True)
        writing.sweep_up(folder)
        writing.write_json(folder / record.CONFIG, trial.model_dump(mode="json"))

        def copy_adapter(part: Path) -> None:
            shutil.copytree(source / record.ADAPTER, part, dirs_exist_ok=True)

        own = (record.METRICS, record.EVAL, *self._sets, record.ADAPTER)
        copied = [name for name in own if (source / name).exists()]
        for name in copied:
            if name == record.ADAPTER:
                writing.write_folder(folder / name, copy_adapter)
            else:
                with writing.replacing(folder / name) as part:
                    shutil.copyfile(source / name, part)
        record.write_record(
            folder,
            replace(
                found,
                trial_id=trial_id,
                reason=reason_of(first, found.reason),
                config=json.loads(trial.model_dump_json()),
                seconds=0.0,
                same_as=first,
            ),
        )
        self._storage.push(*(f"{record.TRIALS}/{trial_id}/{name}" for name in (record.CONFIG, *copied, record.RECORD)))
        self._storage.delete(
            f"{record.TRIALS}/{trial_id}/{record.CHECKPOINT}"
        )  # of before it was known whose twin it is
        for name in (first, trial_id):
            self._storage.forget(f"{record.TRIALS}/{name}/{record.ADAPTER}")


def _as_trained(folder: Path, config: dict[str, Any]) -> TrialConfig:
    """A trial's configuration as its pack wrote it, since a member of a population may have become another one; else as it
    was suggested."""
    with contextlib.suppress(OSError, ValueError):
        return TrialConfig(**json.loads((folder / record.CONFIG).read_text(encoding="utf-8")))
    return TrialConfig(**config)


def provenance(prepared: Prepared) -> dict[str, Any]:
    """What a record says of its data."""
    summary = prepared.dataset.summary
    keys = ("source", "rows_read", "train_rows", "eval_rows", "test_rows", "truncated", "dropped", "fingerprint")
    found = {key: getattr(summary, key) for key in keys}
    found |= {key: count for key in ("copies", "shared") if (count := getattr(summary, key))}
    return found | ({"revision": revision} if (revision := summary.revision) else {})


def _base(computed: Origin | None) -> dict[str, str]:
    """What a record says of its base that only the pack knew."""
    found = {"dtype": computed.dtype, "device": computed.device} if computed is not None else {}
    return {key: value for key, value in found.items() if value}
