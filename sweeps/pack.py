"""A pack from inside: trials by slot, and between two steps obeying the pool.

Every worker of a pack runs this, in step with the others: each does the same to its engine at the same moment. What the
pool wants reaches the first worker alone; it goes to all with the next sum (`bitlora.workers`), and all obey it then.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from bitlora import record
from bitlora.checkpoint import Progress
from bitlora.config import TrialConfig
from bitlora.cost import LayerShape, adapter_params
from bitlora.data import batch_rows
from bitlora.engine import Batch
from bitlora.optim import LossScale, learning_rate
from bitlora.slot import SlotState

if TYPE_CHECKING:
    from bitlora.engine import Engine, EvalResult, StepStats
    from sweeps.link import Link
    from sweeps.worker import Settings

DIVERGED: Final = 1.1
"""A trial has diverged when its eval loss is this many times that of its own first step, …"""
UNIFORM: Final = 0.99
"""… and at least this share of what uniform guessing over the vocabulary gives: a collapsed model lands just there."""
IDLE_S: Final = 1.0
"""How long a pack without a trial waits for one, until its workers meet again."""
SETTLE_S: Final = 1.0
"""How long, at most, a pack waits after an evaluation for what becomes of its trials. Never longer than a step takes, so
that less is lost than by a step of trials that are to be stopped."""


@dataclass(slots=True)
class Running:
    """A trial in its slot."""

    trial_id: str
    config: TrialConfig
    slot: int
    began: float
    reported: int
    """The last step it reported before it came here; it is silent until it is past it."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    first_loss: float | None = None

    def due(self, step: int) -> bool:
        """Is it evaluated at this step?"""
        return step % self.config.eval_every == 0 or step == self.config.steps


class Pack:
    """The trials of one worker's engine.

    Args:
        link: the first worker's; the others' is silent.
    """

    def __init__(self, settings: Settings, engine: Engine, link: Link) -> None:
        self._engine = engine
        self._workers = engine.workers
        self._link = link
        self._checkpoint_every = settings.checkpoint_every
        self._train = settings.dataset.train
        self._eval = Batch.of(settings.dataset.eval, engine.base.device)
        self._test = settings.dataset.test
        self._uniform = math.log(engine.base.model.config.get_text_config().vocab_size)
        self._trials: dict[str, Running] = {}
        self._ahead: dict[str, list[Any]] = {}
        """Trials that wait here for a slot, so that the next step after one is free is already theirs."""
        self._behind: list[Running] = []
        """Trials that go on at a step whose evaluation was not reported."""
        self._undecided: set[str] = set()
        """Trials that were evaluated, and may be stopped for it."""
        self._settling = False
        self._step_s = 0.0
        """What the last step took."""
        self._stopped = False

    def run(self) -> None:
        """Train until the pool says stop, or is gone."""
        try:
            while not self._stopped:
                if self._workers.size == 1 or not self._trials:  # alone, agreeing costs nothing
                    self._agree(0.0 if self._trials else IDLE_S)
                if self._behind and not self._stopped:
                    behind, self._behind = self._behind, []
                    self._evaluate(behind)
                    continue
                if self._trials and not self._stopped:
                    self._step()
        finally:
            self._link.close()

    def _note(self, wait: float = 0.0, *more: tuple[str, Any]) -> None:
        """Let what has arrived go to all with the next sum."""
        commands = [*self._link.take(wait), *more]
        self._workers.note = json.dumps(commands).encode() if commands else b""

    def _agree(self, wait: float = 0.0, *more: tuple[str, Any]) -> None:
        """Obey what has arrived; where nothing has, wait so many seconds for something."""
        self._note(wait, *more)
        self._workers.sum()
        self._obey()

    def _settle(self) -> None:
        """Wait, shortly, for what becomes of the trials that were evaluated."""
        end = time.monotonic() + min(SETTLE_S, self._step_s)
        self._settling = True
        while self._settling and not self._stopped:
            left = end - time.monotonic() if self._undecided else 0.0
            self._agree(max(0.0, left), *([("settled", None)] if left <= 0 else []))
        self._undecided.clear()

    def _obey(self) -> None:
        """Do what came with the last sum, and fill the free slots."""
        for what, about in json.loads(self._workers.heard or b"[]"):
            if what == "attach":
                self._ahead[about[0]] = about
            elif what == "detach" and about in self._trials:
                self._detach(self._trials[about])
            elif what == "detach" and self._ahead.pop(about, None):
                self._link.let_go(about)
            elif what == "go_on":
                self._undecided.discard(about)
            elif what == "settled":
                self._settling = False
            elif what == "leave":  # this machine goes away: what has been done here is done
                for trial in self._trials.values():
                    self._save(trial)
            self._stopped = self._stopped or what in ("leave", "stop")
        while self._ahead and self._engine.free and not self._stopped:
            trial_id, config, reported, _ = self._ahead.pop(next(iter(self._ahead)))
            self._attach(trial_id, TrialConfig(**config), reported)

    def _attach(self, trial_id: str, config: TrialConfig, reported: int) -> None:
        """Give a trial a slot. What it goes on from is read by the first worker, and summed with the others' zeros."""
        found = self._link.begin(trial_id, config, reported)
        state, progress = found if found is not None else (None, None)
        if self._workers.size > 1:
            self._workers.note = json.dumps(asdict(progress)).encode() if progress is not None else b""
            self._workers.sum()
            if self._workers.heard:
                progress = Progress(**json.loads(self._workers.heard))
                state = self._shared(state, progress.step, config)
        slot = self._engine.attach(config, state=state)
        trial = self._trials[trial_id] = Running(trial_id, config, slot, time.monotonic(), reported)
        if progress is None:
            return
        trial.began -= progress.seconds
        trial.tokens, trial.losses, trial.first_loss = progress.tokens, progress.losses, progress.first_loss
        if trial.due(progress.step):
            if progress.step > reported:
                self._behind.append(trial)
            else:
                trial.losses.clear()

    def _shared(self, state: SlotState | None, step: int, config: TrialConfig) -> SlotState:
        targets = self._engine.base.targets.items()
        shapes = [LayerShape(name, x.in_features, x.out_features) for name, x in targets]
        size = adapter_params(shapes, config.rank, config.quantizer)
        dtype, device = self._engine.latent_dtype, self._engine.base.device
        own = [torch.zeros(size)] * 3 + [torch.zeros(len(LossScale._fields))]
        if state is not None:
            own = [state.latent, state.exp_avg, state.exp_avg_sq, torch.tensor(state.loss_scale)]
        latent, exp_avg, exp_avg_sq, scale = parts = [part.to(device, dtype, copy=True) for part in own]
        self._workers.sum(parts, dtype)
        value, clean, skipped = scale.tolist()
        return SlotState(step, latent, exp_avg, exp_avg_sq, LossScale(value, int(clean), int(skipped)))

    def _detach(self, trial: Running) -> None:
        del self._trials[trial.trial_id]
        self._undecided.discard(trial.trial_id)
        self._behind = [other for other in self._behind if other is not trial]
        self._engine.detach(trial.slot)
        self._link.let_go(trial.trial_id)

    def _step(self) -> None:
        """One optimizer step of every trial, then the evaluations and checkpoints that are due."""
        batches = {}
        for trial in self._trials.values():
            step = self._engine.slots[trial.slot].step
            rows = batch_rows(len(self._train), trial.config.batch_size, trial.config.seed, step)
            batches[trial.slot] = Batch.of(self._train.take(rows), self._engine.base.device)
        self._link.say("step", *self._trials)
        if self._workers.size > 1:
            self._note()
        began = time.monotonic()
        stats = self._engine.step(batches)
        self._step_s = time.monotonic() - began
        stepped = list(self._trials.values())
        for trial in stepped:
            self._after_step(trial, stats[trial.slot])
        self._link.progress({t.trial_id: (self._at(t), t.losses[-1]) for t in self._trials.values()})
        if self._workers.size > 1:
            self._obey()
        due = []
        for trial in stepped:
            if self._here(trial) and not self._stopped:
                step = self._at(trial)
                evaluated = trial.due(step)
                due += [trial] * evaluated
                if step < trial.config.steps and self._is_saved(step, evaluated):
                    self._save(trial)
        if due:
            self._evaluate(due)

    def _here(self, trial: Running) -> bool:
        return self._trials.get(trial.trial_id) is trial

    def _at(self, trial: Running) -> int:
        return self._engine.slots[trial.slot].step

    def _is_saved(self, step: int, evaluated: bool) -> bool:
        return step % self._checkpoint_every == 0 if self._checkpoint_every else evaluated

    def _after_step(self, trial: Running, stats: StepStats) -> None:
        trial.tokens += stats.tokens
        trial.losses.append(stats.loss)
        if trial.first_loss is None:
            trial.first_loss = stats.loss
        if not stats.finite:
            what = "loss" if not math.isfinite(stats.loss) else "gradient"
            self._diverged(trial, f"the {what} was not finite at step {self._at(trial)}")

    def _save(self, trial: Running) -> None:
        """Have a checkpoint written: of the moment after a step, before its evaluation."""
        step = self._at(trial)
        if not self._workers.first or not step or trial.first_loss is None:
            return
        progress = Progress(
            step=step,
            tokens=trial.tokens,
            seconds=time.monotonic() - trial.began,
            losses=list(trial.losses),
            first_loss=trial.first_loss,
        )
        self._link.save(trial.trial_id, trial.config, self._engine.state(trial.slot), progress)

    def _evaluate(self, trials: list[Running]) -> None:
        """Score trials, all at once, have written what they came to, and report it."""
        for trial in trials:
            if self._at(trial) <= trial.reported:
                trial.losses.clear()
        trials = [trial for trial in trials if self._at(trial) > trial.reported]
        if not trials:
            return
        if self._workers.size > 1:
            self._note()
        results = self._engine.evaluate([trial.slot for trial in trials], self._eval)
        tested = [t.slot for t in trials if t.config.confirms and self._at(t) == t.config.steps and len(self._test)]
        tests = self._engine.evaluate(tested, Batch.of(self._test, self._engine.base.device)) if tested else {}
        for trial in trials:
            self._scored(trial, results[trial.slot], tests.get(trial.slot))
        if self._workers.size > 1:
            self._obey()
        self._settle()

    def _scored(self, trial: Running, result: EvalResult, test: EvalResult | None) -> None:
        step = self._at(trial)
        worst = max(UNIFORM * self._uniform, DIVERGED * (trial.first_loss or 0.0))
        if not math.isfinite(result.loss) or result.loss > worst:
            found = f"{result.loss:.4g}" if math.isfinite(result.loss) else "not finite"
            guess = f"no better than guessing (uniform: {self._uniform:.4g} nats)"
            self._diverged(trial, f"the eval loss at step {step} was {found}, {guess}")
        else:
            metrics = record.Metrics(
                step=step,
                tokens=trial.tokens,
                train_loss=math.fsum(trial.losses) / len(trial.losses),
                eval_loss=result.loss,
                learning_rate=learning_rate(trial.config, step),
                seconds=time.monotonic() - trial.began,
            )
            trial.losses.clear()
            if self._workers.first:
                latent = self._engine.latent(trial.slot)
                self._link.evaluated(trial.trial_id, trial.config, metrics, result, latent, test)
            if step == trial.config.steps:
                self._detach(trial)
            else:
                self._undecided.add(trial.trial_id)

    def _diverged(self, trial: Running, reason: str) -> None:
        self._link.diverged(trial.trial_id, self._at(trial), reason)
        self._detach(trial)
