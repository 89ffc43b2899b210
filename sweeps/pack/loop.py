"""A pack from inside: trials by slot, and between two steps the commands of the pool.

Every worker of a pack runs this, in step with the others: each does the same to its engine at the same moment. The
pool's commands reach the first worker alone; they go to all with the next sum (`bitlora.engine.workers`), and all carry
them out then.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bitlora import timeouts
from bitlora.config.trial import TrialConfig
from bitlora.data.batches import batch_rows
from bitlora.engine.batch import Batch
from bitlora.engine.checkpoint import Checkpoint
from bitlora.engine.slots.optim import learning_rate
from bitlora.files import record
from sweeps.pack.bare import BARE, BareScores
from sweeps.pack.measuring.measuring import Measuring, Scored
from sweeps.pack.shared import begun_with, shared
from sweeps.pack.slotted import Settled, SlottedTrial
from sweeps.pool.messages import Attach, Command, Continue, Detach, Extend, Leave, Peers, StepProgress, Stop
from sweeps.search.cloning.place import Source
from sweeps.search.rules import Wave
from sweeps.search.rungs.sequential import RowLoss

if TYPE_CHECKING:
    from bitlora.engine.engine import Engine, StepStats
    from sweeps.pack.link import Link
    from sweeps.pack.settings import PackSettings


class PackLoop:
    """The trials of one worker's engine, trained until the pool says stop.

    Args:
        link: the first worker's; the others' is silent.
        measuring: what trials come to at an evaluation; None: their loss alone.
    """

    def __init__(self, settings: PackSettings, engine: Engine, link: Link, measuring: Measuring | None = None) -> None:
        self._engine = engine
        self._workers = engine.workers
        self._link = link
        self._checkpoint_every = settings.checkpoint_every
        self._keep_best = settings.keep == "best"
        self._train = settings.dataset.train
        self._measuring = measuring or Measuring(settings.dataset, engine, settings.rungs)
        self._uniform = math.log(engine.base.vocab_size)
        self._trials: dict[str, SlottedTrial] = {}
        self._queue: dict[str, Attach] = {}
        """Trials that wait here for a slot, so that the next step after one is free is already theirs."""
        self._extended: dict[str, Extend] = {}
        """What trials have more steps that are on their way here: their files are being fetched."""
        self._overdue: list[SlottedTrial] = []
        """Trials that go on at a step whose evaluation was not reported."""
        self._left: dict[str, Checkpoint] = {}
        """What trials took along that left their slots here, each the last time."""
        self._undecided: set[str] = set()
        """Trials that were evaluated, and may be stopped for it."""
        self._settling = False
        self._step_s = 0.0
        """What the last step took."""
        self._stopped = False

    def run(self) -> None:
        """Train until the pool says stop, or is gone."""
        try:
            self._score_base()
            while not self._stopped:
                if self._workers.size == 1 or not self._trials:  # alone, agreeing costs nothing
                    self._synchronize(0.0 if self._trials else timeouts.WORKERS_MEET_S)
                if self._overdue and not self._stopped:
                    overdue, self._overdue = self._overdue, []
                    self._evaluate(overdue)
                    continue
                if self._trials and not self._stopped:
                    self._step()
        finally:
            self._link.close()

    def _score_base(self) -> None:
        """Have written what the base comes to without an adapter, where this pack is asked to. It costs no trial anything:
        where it cannot be scored, the log says why."""
        if not self._workers.broadcast(self._link.wants_base()):
            return
        slot = self._engine.attach(BARE)
        scored = self._measuring.evaluate({slot: None})[slot]
        test = None
        if self._measuring.tests and not scored.result.failed:
            test = self._measuring.test([slot])[slot]
        self._engine.detach(slot)
        scores = BareScores(scored, test)
        if scores.unusable:
            self._link.log_event(f"the base without an adapter could not be scored: {scores.unusable}")
        elif self._workers.first:
            self._link.base_scored(scores)

    def _post(self, wait: float = 0.0, *more: Settled) -> None:
        """Let the commands that have arrived go to all with the next sum."""
        self._workers.mailbox.post(*self._link.poll(wait), *more)

    def _synchronize(self, wait: float = 0.0, *more: Settled) -> None:
        """Carry out what has arrived; where nothing has, wait so many seconds for something."""
        self._post(wait, *more)
        self._workers.sum()
        self._apply_commands()

    def _await_verdicts(self) -> None:
        """Wait, shortly, for what becomes of the trials that were evaluated, where there are no others to go on with: a
        step that others take too costs little more with a trial that is to be stopped."""
        end = time.monotonic() + min(timeouts.VERDICT_S, self._step_s)
        self._settling = True
        while self._settling and not self._stopped and self._undecided.issuperset(self._trials) and self._trials:
            left = end - time.monotonic()
            self._synchronize(max(0.0, left), *([Settled()] if left <= 0 else []))
        if not self._settling:
            self._undecided.clear()

    def _apply_commands(self) -> None:
        """Do what has arrived with the sums, and fill the free slots."""
        for command in self._workers.mailbox.take():
            self._apply(command)
        while self._queue and self._engine.free and not self._stopped:
            self._attach(self._queue.pop(next(iter(self._queue))))

    def _apply(self, command: Command | Settled) -> None:
        match command:
            case Attach(trial_id=trial_id):
                self._queue[trial_id] = command
                if (extend := self._extended.pop(trial_id, None)) is not None:
                    self._extend(extend)
            case Extend():
                self._extend(command)
            case Detach(trial_id=trial_id):
                if trial_id in self._trials:
                    self._detach(self._trials[trial_id])
                elif self._queue.pop(trial_id, None):
                    self._link.released(trial_id)
            case Continue(trial_id=trial_id):
                self._undecided.discard(trial_id)
            case Peers(wave=wave):
                self._measuring.heard(wave)
            case Settled():
                self._settling = False
            case Leave():  # this machine goes away: what has been done here is done
                for trial in self._trials.values():
                    self._save(trial)
                self._stopped = True
            case Stop():
                self._stopped = True

    def _extend(self, command: Extend) -> None:
        trial_id = command.trial_id
        if trial_id in self._trials:
            self._trials[trial_id].config = TrialConfig(**command.config)
        elif trial_id in self._queue:
            self._queue[trial_id] = replace(self._queue[trial_id], config=command.config)
        if trial_id not in {**self._trials, **self._queue}:  # it is on its way, or has just taken its last step
            self._extended[trial_id] = command
        else:
            self._link.extended(trial_id, TrialConfig(**command.config))

    def _attach(self, queued: Attach) -> None:
        """Give a trial a slot, with the steps that it has behind it, or that the one has of which it is a copy."""
        trial_id, config, source = queued.trial_id, TrialConfig(**queued.config), queued.source
        found = shared(self._engine, self._link.restore(trial_id, config, queued.reported), config)
        if source is not None and (found is None or found.progress.step < source.step):
            found = self._copy_of(source, trial_id, config) or found
        if found is None and config.warm_start and (found := self._warm_start(trial_id, config)) is None:
            return
        step = found.progress.step if found is not None else 0
        slot = self._engine.attach(config.at(step), state=found.state if found is not None else None)
        trial = SlottedTrial(trial_id, config, slot, time.monotonic(), queued.reported, until=queued.until)
        self._trials[trial_id] = trial
        if self._keep_best:
            known = self._link.losses(trial_id, max(queued.reported, step - 1)) if self._workers.first else []
            trial.evaluated = self._workers.broadcast(known)
        if found is None:
            return
        progress = found.progress
        trial.began -= progress.seconds
        trial.tokens, trial.losses = progress.tokens, list(progress.losses)
        trial.first_loss = progress.first_loss or None
        if trial.due(step):
            if step > queued.reported:
                self._overdue.append(trial)
            else:
                trial.losses.clear()

    def _warm_start(self, trial_id: str, config: TrialConfig) -> Checkpoint | None:
        """What a trial begins with that has another's weights: those, and nothing behind it. None: it has failed."""
        try:
            latent, error = self._link.latent_of(config), ""
            found = begun_with(self._engine, latent, config) if latent else None
        except ValueError as unusable:
            found, error = None, str(unusable)
        if error := self._workers.broadcast(error):
            self._link.ended(trial_id, "failed", 0, error)
            self._link.released(trial_id)
            return None
        return shared(self._engine, found, config)

    def _copy_of(self, source: Source, trial_id: str, config: TrialConfig) -> Checkpoint | None:
        """What `source` had behind it: of a trial that left a slot here a copy of its vectors, else its checkpoint."""
        left = self._left.get(source.trial_id)
        if left is not None and left.progress.step == source.step:
            return left
        return shared(self._engine, self._link.copy_of(source, trial_id), config)

    def _detach(self, trial: SlottedTrial) -> None:
        self._empty(trial)
        self._link.released(trial.trial_id)

    def _empty(self, trial: SlottedTrial) -> None:
        del self._trials[trial.trial_id]
        self._undecided.discard(trial.trial_id)
        self._overdue = [other for other in self._overdue if other is not trial]
        self._engine.detach(trial.slot)

    def _turn(self, trial: SlottedTrial) -> None:
        """Let what holds for its next step hold: where a stage of it has ended, it is in its slot anew."""
        step = self._at(trial)
        if any(stage.until == step for stage in trial.config.stages):
            state = self._engine.state(trial.slot)
            self._engine.detach(trial.slot)
            trial.slot = self._engine.attach(trial.config.at(step), state=state)

    def _step(self) -> None:
        """One optimizer step of every trial, then the evaluations and checkpoints that are due."""
        for trial in self._trials.values():
            self._turn(trial)
        batches = self._batches()
        self._link.log_event("step", *self._trials)
        if self._workers.size > 1:
            self._post()
        began = time.monotonic()
        fitted = self._engine.pass_tokens
        stats = self._engine.step(batches, lambda: self._batches(1))
        self._step_s = time.monotonic() - began
        if self._engine.pass_tokens != fitted:
            self._link.log_event(f"from now on at most {self._engine.pass_tokens} tokens a pass: more did not fit")
        stepped = list(self._trials.values())
        for trial in stepped:
            self._after_step(trial, stats[trial.slot])
        self._link.progress({t.trial_id: StepProgress(self._at(t), t.losses[-1]) for t in self._trials.values()})
        if self._workers.size > 1:
            self._apply_commands()
        due = []
        for trial in stepped:
            if self._is_attached(trial) and not self._stopped:
                step = self._at(trial)
                evaluated = trial.due(step)
                due += [trial] * evaluated
                if step not in (trial.config.steps, trial.until) and self._is_saved(step, evaluated):
                    self._save(trial)
        if due:
            self._evaluate(due)

    def _batches(self, later: int = 0) -> dict[int, Batch]:
        """What each slot's trial meets in its next step, or in one that comes so many steps later, where it has one."""
        steps = {trial.trial_id: self._at(trial) + later for trial in self._trials.values()}
        going_on = [trial for trial in self._trials.values() if steps[trial.trial_id] < trial.config.steps]
        return {trial.slot: self._batch(trial, steps[trial.trial_id]) for trial in going_on}

    def _batch(self, trial: SlottedTrial, step: int) -> Batch:
        if trial.ready is None or trial.ready[0] != step:
            rows = batch_rows(len(self._train), trial.config.batch_size, trial.config.seed, step)
            trial.ready = step, Batch.of(self._train.take(rows))
        return trial.ready[1]

    def _is_attached(self, trial: SlottedTrial) -> bool:
        return self._trials.get(trial.trial_id) is trial

    def _at(self, trial: SlottedTrial) -> int:
        return self._engine.slots[trial.slot].step

    def _is_saved(self, step: int, evaluated: bool) -> bool:
        return step % self._checkpoint_every == 0 if self._checkpoint_every else evaluated

    def _after_step(self, trial: SlottedTrial, stats: StepStats) -> None:
        if stats.failed:
            self._failed(trial, f"at step {self._at(trial) + 1}: {stats.failed}")
            return
        trial.tokens += stats.tokens
        trial.losses.append(stats.loss)
        if trial.first_loss is None:
            trial.first_loss = stats.loss
        if not stats.finite:
            what = "loss" if not math.isfinite(stats.loss) else "gradient"
            self._diverged(trial, f"the {what} was not finite at step {self._at(trial)}")

    def _save(self, trial: SlottedTrial) -> None:
        """Have a checkpoint written: of the moment after a step, before its evaluation."""
        if self._workers.first and self._at(trial) and trial.first_loss is not None:
            state = self._engine.fetch_state(trial.slot)
            self._link.save(trial.trial_id, trial.config, state, trial.progress(self._at(trial)))

    def _evaluate(self, trials: list[SlottedTrial]) -> None:
        """Score trials, all at once, have written what they came to, and report it."""
        for trial in trials:
            if self._at(trial) <= trial.reported:
                trial.losses.clear()
        trials = [trial for trial in trials if self._at(trial) > trial.reported]
        if not trials:
            return
        if self._workers.size > 1:
            self._post()
        judged = {t.slot: None if t.config.apart else self._measuring.judged(t.trial_id, self._at(t)) for t in trials}
        results = self._measuring.evaluate(judged)
        tested = [t for t in trials if t.config.confirms and self._stays(t, results[t.slot])]
        tests: dict[int, Scored] = {}
        for rows in dict.fromkeys(t.config.confirm_rows for t in tested if self._measuring.tests):
            slots = [t.slot for t in tested if t.config.confirm_rows == rows]
            tests |= self._measuring.test(slots, rows)
        scored = []
        for trial in trials:
            both = [results[trial.slot], *([tests[trial.slot]] if trial.slot in tests else [])]
            unscored = [one.result.failed for one in both if one.result.failed]
            if not unscored and (why := trial.worthless(both[0].loss, self._uniform, self._at(trial))):
                self._diverged(trial, why)
            elif failed := unscored or [one.measured.failed for one in both if one.measured.failed]:
                self._failed(trial, f"in its evaluation at step {self._at(trial)}: {failed[0]}")
            else:
                scored.append(trial)
        values = {t.slot: self._measuring.value(results[t.slot], judged[t.slot]) for t in scored}
        wave = {
            t.trial_id: (self._at(t), value)
            for t in scored
            if not t.config.apart and (value := values[t.slot]) is not None
        }
        self._measuring.heard(wave)
        for trial in scored:
            self._scored(trial, results[trial.slot], tests.get(trial.slot), wave, values[trial.slot])
        if self._workers.size > 1:
            self._apply_commands()
        self._await_verdicts()

    def _scored(
        self, trial: SlottedTrial, scored: Scored, test: Scored | None, wave: Wave, value: float | None
    ) -> None:
        step = self._at(trial)
        metrics = record.Metrics(
            step=step,
            tokens=trial.tokens,
            train_loss=math.fsum(trial.losses) / len(trial.losses) if trial.losses else None,
            eval_loss=scored.loss,
            learning_rate=learning_rate(trial.config.at(step - 1), step) if step else 0.0,
            seconds=time.monotonic() - trial.began,
            rows=None if scored.result.rows is None else len(scored.result.rows),
            row_losses=list(value.rows) if isinstance(value, RowLoss) else None,
            metrics=scored.measured.values or None,
        )
        trial.scored, trial.losses = trial.losses, []
        left = None
        if step == trial.until:
            left = Checkpoint(self._engine.state(trial.slot), trial.progress(step), trial.config)
            self._left[trial.trial_id] = left
        kept = not self._keep_best or trial.improves(scored.loss)
        trial.evaluated.append(scored.loss)
        over = trial.plateau(step)
        if self._workers.first:
            latent = self._engine.fetch_latent(trial.slot) if kept else None
            self._link.evaluated(trial.trial_id, trial.config, metrics, scored, latent, test, wave, left, over)
        if left is not None:
            self._empty(trial)
        elif over or step == trial.config.steps:
            self._detach(trial)
        else:
            self._undecided.add(trial.trial_id)

    def _stays(self, trial: SlottedTrial, scored: Scored) -> bool:
        """May this evaluation be the one whose files a trial has in the end?"""
        if self._keep_best:
            return not scored.result.failed and trial.improves(scored.loss)
        return self._at(trial) == trial.config.steps

    def _failed(self, trial: SlottedTrial, reason: str) -> None:
        """It cannot be trained or scored: its own rows raise an error."""
        self._link.ended(trial.trial_id, "failed", self._at(trial), reason)
        self._detach(trial)

    def _diverged(self, trial: SlottedTrial, reason: str) -> None:
        if trial.until is not None:  # it may go on as a copy of another
            self._link.strayed(trial.trial_id, trial.until, reason)
            self._empty(trial)
            return
        self._link.ended(trial.trial_id, "diverged", self._at(trial), reason)
        self._detach(trial)
