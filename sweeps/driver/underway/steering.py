"""What a person asks of a sweep is done while it runs: between two events of Ray Tune, on the driver's main thread.

Each act is written down where the sweep's results are: in the study's attributes, in the records of the trials that it is
about, and in `steered.jsonl`, which the report reads. What is refused changes nothing, and is written down nowhere but in
its answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import ray
from pydantic import ValidationError
from ray.tune import Callback

from bitlora import timeouts
from bitlora.config.explain import explain, nearest, one_line
from bitlora.config.trial import AXES, TrialConfig
from bitlora.files.record import SteeringAct
from bitlora.files.storage import Storage
from bitlora.files.writing import write_text
from bitlora.quantizers.weights import QUANTIZERS
from sweeps.driver.requests import Inbox, SteeringRequest
from sweeps.driver.resume import SPEC, grown
from sweeps.driver.underway.driver_only import DriverOnly
from sweeps.driver.underway.noted import write_down
from sweeps.driver.underway.recorder import Recorder
from sweeps.driver.underway.warm_start import keep_weights
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec, dump_spec

LIGHT: Final = frozenset(
    ("alpha", "scaling", "learning_rate", "loraplus_ratio", "weight_decay", "beta1", "beta2", "max_grad_norm")
) | {"schedule", "warmup", "floor", "seed"}
"""Keys of a trial that a clone may have whatever it likes of: a pack's memory was measured for what the space has of the
others, and its base was looked at for them."""
SHAPE: Final = ("rank", "targets", "rank_pattern", "dora")
"""Keys that have to be the parent's where a clone begins with its weights."""

Doing = Generator[Any, Any, str]
"""An act on its way: yields what it waits for, a Ray call or a future; gives its answer."""


class RefusedError(Exception):
    """Why a request is not done, in one line for whoever asked."""


@dataclass(slots=True)
class _Act:
    request: SteeringRequest
    doing: Doing
    awaited: Any = None
    made: str | None = None
    """A trial that it made."""

    def ready(self) -> bool:
        """Has what it waits for come?"""
        if isinstance(self.awaited, Future):
            return self.awaited.done()
        return self.awaited is None or bool(ray.wait([self.awaited], timeout=timeouts.ATTACH_LOOK_S)[0])

    def come(self) -> Any:
        """What it waited for. Raises what that raised."""
        if isinstance(self.awaited, Future):
            return self.awaited.result()
        return None if self.awaited is None else ray.get(self.awaited, timeout=timeouts.POOL_POLL_S)


class Steering(DriverOnly, Callback):  # type: ignore[misc]
    """Listens to Tune, which asks it several times a second, and does what the inbox has.

    Args:
        say: told of each act, in a line.
        grown: told how many trials the sweep has now.
    """

    def __init__(
        self,
        inbox: Inbox,
        spec: Spec,
        storage: Storage,
        pool: Any,
        searcher: OptunaSearcher,
        recorder: Recorder,
        say: Callable[[str], object],
        grown: Callable[[int], object],
    ) -> None:
        self._inbox = inbox
        self._spec = spec
        self._storage = storage
        self._pool = pool
        self._searcher = searcher
        self._recorder = recorder
        self._say = say
        self._grown = grown
        self._acts: list[_Act] = []
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._done: dict[str, str] = {act["id"]: act["result"] for act in searcher.steered.acts}
        """Answers to what was done already, by an earlier run of the sweep too."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Take up what came, and go on with what waited."""
        for request in self._inbox.take():
            if request.id in self._done:
                self._inbox.answer(request, True, self._done[request.id])
            elif self._spec.scheduler.population and request.act in ("extend", "clone", "add"):
                why = "the members of a population begin together and have one budget"
                self._inbox.answer(request, False, f"{request.what}: {why}")
            else:
                self._acts.append(_Act(request, getattr(self, f"_{request.act}")(request, trials)))
        for act in [one for one in self._acts if one.ready()]:
            self._go_on(act)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended: what was asked of it is settled first, so that its record can say so."""
        trial_id = trial.config["trial_id"]
        for act in [one for one in self._acts if one.request.trial == trial_id and one.request.act != "clone"]:
            self._go_on(act)

    def close(self) -> None:
        """Refuse what is not done. To be called when the search has ended."""
        for act in self._acts:
            self._inbox.answer(act.request, False, "the sweep ended before it was done")
        self._fetcher.shutdown()

    def _go_on(self, act: _Act) -> None:
        request = act.request
        try:
            act.awaited = act.doing.send(act.come())
            return
        except StopIteration as end:
            self._note(act, str(end.value))
        except RefusedError as error:
            self._inbox.answer(request, False, str(error))
        except Exception as error:  # the pool is gone, a file cannot be read: the sweep goes on
            self._inbox.answer(request, False, f"{request.what}: {one_line(error)}")
        self._acts.remove(act)

    def _note(self, act: _Act, answer: str) -> None:
        """Write down what was done, then say so."""
        request = act.request
        self._done[request.id] = answer
        done = SteeringAct(
            id=request.id,
            at=request.at,
            by=request.by,
            what=request.what,
            trials=tuple(dict.fromkeys(name for name in (request.trial, act.made) if name)),
            result=answer,
        )
        write_down(done, self._searcher.steered.note, self._storage)
        self._say(f"{answer} ({request.by})")
        self._inbox.answer(request, True, answer)

    # ---- acts

    def _open(self, request: SteeringRequest) -> str:
        """The id of the trial that is to be steered, which has not ended."""
        trial_id = self._known(request)
        if status := self._searcher.steered.ended(trial_id):
            raise RefusedError(f"{trial_id} has ended ({status}); clone it, or give one that runs")
        return trial_id

    def _known(self, request: SteeringRequest) -> str:
        names = self._searcher.steered.names
        if request.trial not in names:
            raise RefusedError(f"{request.trial}: this sweep has no such trial{nearest(request.trial, names[-20:])}")
        return request.trial

    def _stop(self, request: SteeringRequest, _: list[Any]) -> Doing:
        trial_id = self._open(request)
        how, step = yield self._pool.stop.remote(trial_id, f"stopped by {request.by}")
        if how == "unknown":
            raise RefusedError(f"{trial_id} has not begun yet; try again")
        if how == "ended":
            raise RefusedError(f"{trial_id} has ended at step {step}, before its pack heard of it")
        if how == "later":
            return f"{trial_id} has not been evaluated yet: it ends at its first evaluation, at step {step}"
        return f"{trial_id} is stopped at step {step}"

    def _extend(self, request: SteeringRequest, trials: list[Any]) -> Doing:
        trial_id, steps = self._open(request), request.steps or 0
        before = TrialConfig(**(self._searcher.steered.config(trial_id) or {}))
        if steps <= before.steps:
            raise RefusedError(f"--steps {steps}: {trial_id} has {before.steps} already; give more")
        if before.confirms:
            raise RefusedError(f"{trial_id} confirms {before.confirms}, and is trained as long as that one was")
        after = before.with_steps(steps)
        config = after.model_dump()
        if not (yield self._pool.extend.remote(trial_id, config)):
            right = f"bitlora trial clone … {trial_id} --warm-start goes on from its weights"
            raise RefusedError(
                f"{trial_id} had taken all its {before.steps} steps before its pack heard of it; {right}"
            )
        self._searcher.steered.extended(trial_id, json.loads(after.model_dump_json(include={"steps", "stages"})))
        for trial in trials:
            if trial.config["trial_id"] == trial_id:
                trial.config["config"].update(config)
        then = f"up to step {before.steps} at the rates it had, from there on at those of a trial of {steps} steps"
        return f"{trial_id} goes on to step {steps}: {then}"

    def _clone(self, request: SteeringRequest, _: list[Any]) -> Doing:
        parent = self._known(request)
        while self._searcher.begun:  # a new trial's number comes after theirs
            yield None
        if (found := self._searcher.steered.config(parent)) is None:
            raise RefusedError(f"{parent} never got a configuration; give another one")
        config = self._changed(parent, found, request)
        warm = ""
        if request.warm_start:
            step = yield self._fetcher.submit(keep_weights, self._storage, parent)
            config = config.model_copy(update={"warm_start": f"{parent}@{step}"})
            warm = f"; it begins with the weights that {parent} had at step {step}"
        made = self._searcher.steered.clone(parent, json.loads(config.model_dump_json()))
        next(act for act in self._acts if act.request is request).made = made
        self._grown(self._searcher.total)
        changes = ", ".join(f"{key} {value}" for key, value in request.changes.items())
        return f"{made} is a clone of {parent}" + (f" with {changes}" if changes else "") + warm

    def _changed(self, parent: str, found: dict[str, Any], request: SteeringRequest) -> TrialConfig:
        """The configuration of a clone, which it may have."""
        changes, space = request.changes, self._spec.search.space
        if not changes and not request.warm_start:
            raise RefusedError(f"a clone of {parent} without --set and --warm-start would be {parent} again")
        for key in changes:
            if key not in AXES:
                raise RefusedError(f"--set {key}: a trial has no such key that can be set{nearest(key, AXES)}")
        kept = {key: value for key, value in found.items() if key not in ("confirms", "stages", "warm_start")}
        try:
            config = TrialConfig(**{**kept, **changes})
        except ValidationError as error:
            errors = error.errors(include_url=False)
            key = str(errors[0]["loc"][0])
            raise RefusedError(f"--set {key}: {explain(errors, changes.get(key))}") from None
        for key, value in changes.items():
            within = key in space and spaces.contains(space, {**{a: kept[a] for a in space}, key: value})
            if key not in LIGHT and value != kept[key] and not within:
                right = f"give {kept[key]}, as {parent} has it" + (
                    ", or a value of search.space" if key in space else ""
                )
                raise RefusedError(f"--set {key}={value}: packs are made for what search.space has of it; {right}")
        if request.warm_start:
            own = TrialConfig(**kept)
            other = next((key for key in SHAPE if getattr(own, key) != getattr(config, key)), None)
            learns = [QUANTIZERS[one.quantizer].learns_scales for one in (own, config)]
            if other or learns[0] != learns[1]:
                what = other or "quantizer"
                raise RefusedError(
                    f"--warm-start: the weights of {parent} have {what} {getattr(own, what)}; leave it so"
                )
            if own.init == "pissa" or config.init == "pissa":
                raise RefusedError(
                    "--warm-start: an adapter with init pissa is one over a base that was changed for it"
                )
        return config

    def _add(self, request: SteeringRequest, _: list[Any]) -> Doing:
        yield from ()
        more = request.trials or 0
        if why := self._searcher.more(more):
            raise RefusedError(f"add {more} trials: {why}")
        spec = self._searcher.spec
        if (larger := grown(spec, self._storage.folder)) is not None:
            write_text(self._storage.folder / SPEC, dump_spec(larger))
            self._storage.push_soon(SPEC)
        self._grown(self._searcher.total)
        return f"{more} more trials: {spec.search.trials} search now"

    def _end(self, request: SteeringRequest, _: list[Any]) -> Doing:
        yield from ()
        self._recorder.ending = self._recorder.ending or ("interrupted", f"stopped by {request.by}")
        self._pool.interrupt.remote(f"stopped by {request.by}")
        return "the sweep ends; go on with it by the same command and --resume"
