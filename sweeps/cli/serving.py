"""Several trials over one base as the models of an OpenAI-compatible endpoint (`bitlora serve`)."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

from sweeps.cli.generate import ends
from sweeps.cli.trial_folder import TrialFolder, device, split
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.engine.engine import Engine

USUAL_CONTEXT: Final = 2048
"""Tokens of a prompt and its answer, as far as the base has seen so many, or more where a trial has learned longer rows."""


def check_token(host: str, token: str | None) -> None:
    """Without a token only this machine is answered.

    Raises:
        InputError: others would be; or it is empty.
    """
    if token is not None and not token.strip():
        raise InputError(["--token: it is empty; give a word that nobody guesses, or leave it out"])
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and token is None:
        raise InputError(
            [f"--host: {host} is reached from other machines, and there is no token; give --token, or BITLORA_TOKEN"]
        )


def listen(host: str, port: int) -> socket.socket:
    """The address, before anything is loaded.

    Raises:
        InputError: it cannot be had; or what serves is not installed.
    """
    try:
        from bitlora.serving.server import bind
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise InputError([f"{error.name} is not installed; run: pip install 'bitlora-sweeps[serve]'"]) from None
    try:
        return bind(host, port)
    except (OSError, OverflowError) as error:
        raise InputError([f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}"]) from None


def names(places: Sequence[str]) -> list[str]:
    """What trials are called: by their ids; of those that several sweeps have, with the sweep's folder before.

    Raises:
        InputError: one is there twice; or see `split`.
    """
    found = [split(place) for place in places]
    times = Counter(trial_id for _, trial_id in found)
    made = [f"{PurePosixPath(sweep).name}/{one}" if times[one] > 1 else one for sweep, one in found]
    twice = [name for name, count in Counter(made).items() if count > 1]
    if twice:
        raise InputError([f"{twice[0]}: given twice; each model needs a name of its own"])
    return made


def _check_alike(trials: Sequence[TrialFolder]) -> None:
    """Raises InputError: they are not over one base."""
    first = trials[0]
    for other in trials[1:]:
        pairs: dict[str, tuple[Any, Any]] = {
            f"base.{key}": (value, getattr(other.base, key))
            for key, value in first.base.model_dump(exclude={"targets", "cache", "quant_storage"}).items()
        }
        pairs["train.dtype"] = first.trained_in, other.trained_in
        for key, (own, others) in pairs.items():
            if own != others:
                raise InputError(
                    [f"{other.place}: {key} is {others}, and of {first.place} {own}: what is served is over one base"]
                )


def serve(trials: Sequence[TrialFolder], at: socket.socket, token: str | None, say: Callable[[str], object]) -> str:
    """Answer until SIGTERM or Ctrl-C.

    Args:
        trials: over one base.
        say: told in one line that requests are answered, and where.

    Returns:
        Why it has ended by itself, a lost device say; nothing where it was told to.

    Raises:
        InputError: they are not over one base; or it cannot be had any more, or is another one.
    """
    called = names([trial.place for trial in trials])
    _check_alike(trials)
    from bitlora.serving.app import ServedModel, make_app
    from bitlora.serving.asking import EngineThread, put_adapter
    from bitlora.serving.server import run

    engine, context = _loaded(trials)
    model = engine.base.model
    models: dict[str, ServedModel] = {}
    over: set[int] = set()
    for name, trial in zip(called, trials, strict=True):
        tokenizer = trial.tokenizer()
        over.update(ends(model, tokenizer))
        try:
            slot = put_adapter(engine, trial.config, trial.latent)
        except ValueError as error:
            raise InputError([f"{trial.place}/adapter: {error}"]) from None
        models[name] = ServedModel(slot, tokenizer, engine.base.vocab_size)
    thread = EngineThread(engine, frozenset(over))
    host, port = at.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    app = make_app(thread, models, context, token)
    return run(app, thread, at, lambda: say(f"{where}/v1 answers as {', '.join(called)}"))


def _loaded(trials: Sequence[TrialFolder]) -> tuple[Engine, int]:
    """An engine over their base with a slot for each, and the tokens that a row may have."""
    from bitlora.base.describe import read_model_config
    from bitlora.engine.engine import Engine
    from bitlora.forward.inject import load_base

    first = trials[0]
    longest = max(USUAL_CONTEXT, *(trial.spec.data.max_length for trial in trials))
    try:
        config = read_model_config(first.base.model, first.base.revision).config.get_text_config()
        context = min(longest, getattr(config, "max_position_embeddings", None) or longest)
        engine = Engine(load_base(first.base, first.dtype(), device(), longest=context), len(trials))
    except ValueError as error:
        raise InputError([str(error).splitlines()[0]]) from None
    keep_values(engine, [trial.base.cache for trial in trials])
    return engine, context


def keep_values(engine: Engine, caches: Sequence[bool | Literal["auto"]]) -> None:
    """Keep the values of a quantized base's codes, as `base.cache` has it: `auto` where all that may be kept of rows under
    way has room beside them. No number hangs on it.

    Args:
        caches: of each trial. One that wants them not to be kept has its way, and then one that wants them kept.
    """
    from bitlora.engine.gauge import budget, held
    from bitlora.engine.generation.greedy import KEPT_TOKENS
    from sweeps.pack.memory import Values

    base = engine.base
    cache: bool | Literal["auto"] = next((each for each in (False, True) if each in caches), "auto")
    values = Values.of(cache, base.values_bytes, base.dtype)
    config = base.model.config.get_text_config()
    rows = KEPT_TOKENS * 2 * config.num_hidden_layers * config.hidden_size * base.dtype.itemsize
    room = budget(base.device).bytes - held(base.device)
    base.keep_values(values.at_any_price or (values.where_free and values.bytes + rows <= room))
