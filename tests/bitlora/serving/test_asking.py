"""The engine's thread: rows join and leave, within bounds, and are answered as each is alone."""

import queue
import random
import threading

import pytest
import torch

from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.generation.greedy import OutputEnd, generate
from bitlora.forward.inject import load_base
from bitlora.forward.kv_cache import KvCache
from bitlora.serving.asking import AnswerEnd, AskedRow, EngineThread, TooManyError, put_adapter

PROMPTS = [[random.Random(seed).randrange(3, 259) for _ in range(3 + seed)] for seed in range(10)]


@pytest.fixture
def started():
    """Starts threads, and ends them."""
    found = []

    def start(*args, **options):
        found.append(EngineThread(*args, **options))
        found[-1].start()
        return found[-1]

    yield start
    for thread in found:
        thread.close()


class Heard:
    """A row, and what was told of it."""

    def __init__(self, slot, prompt, most):
        self.told = queue.Queue()
        self.row = AskedRow(slot, prompt, most, self.told.put)

    def all(self):
        """Its tokens and its end."""
        tokens = []
        while isinstance(what := self.told.get(timeout=60), int):
            tokens.append(what)
        return tokens, what


def rows():
    return [Heard(number % 2, prompt, 3 + number) for number, prompt in enumerate(PROMPTS)]


def alone(engine, heard, ends=frozenset()):
    (found,) = generate(engine, [(heard.row.slot, heard.row.prompt)], OutputEnd(heard.row.most, ends))
    return found


def test_rows_are_answered_as_each_alone_within_bounds(served_engine, started, monkeypatch):
    kept, reserve, most_running = [], KvCache.reserve, []

    def noted(self, lanes, length):
        kept.append(lanes * (length - 32))  # without what is reserved beyond a row
        reserve(self, lanes, length)

    asked = rows()
    whole = {heard: alone(served_engine, heard) for heard in asked}
    end = next(token for tokens in whole.values() for token in tokens[2:])
    expected = {heard: alone(served_engine, heard, frozenset({end})) for heard in asked}
    monkeypatch.setattr(KvCache, "reserve", noted)
    thread = EngineThread(served_engine, frozenset({end}), rows=3, kept=60)
    step = thread._step
    monkeypatch.setattr(thread, "_step", lambda: (most_running.append(thread.running), step()))
    for heard in asked:
        thread.ask(heard.row)
    thread.start()
    found = {heard: heard.all() for heard in asked}
    thread.close()
    assert {heard: tokens for heard, (tokens, _) in found.items()} == expected
    assert {heard: told.why for heard, (_, told) in found.items()} == {
        heard: "stop" if len(tokens) < len(whole[heard]) else "length" for heard, tokens in expected.items()
    }
    assert {told.why for _, told in found.values()} == {"stop", "length"}
    assert 1 < max(most_running) <= 3
    assert max(kept) <= 60


def test_too_many_are_refused_and_those_who_left_make_room(served_engine):
    thread = EngineThread(served_engine, frozenset(), waiting=2)  # not started: all wait
    first, second, third = rows()[:3]
    thread.ask(first.row)
    thread.ask(second.row)
    with pytest.raises(TooManyError, match="2 requests wait already"):
        thread.ask(third.row)
    thread.leave(first.row)
    thread.ask(third.row)
    assert thread.waiting == 2
    thread.start()
    assert third.all()[0] == alone_after(thread, served_engine, third)
    assert first.told.empty()


def alone_after(thread, engine, heard):
    thread.close()  # the engine has one user
    return alone(engine, heard)


def test_a_row_that_was_left_writes_no_more(served_engine, started):
    thread = started(served_engine, frozenset())
    gone, stays = Heard(0, PROMPTS[1], 4000), Heard(1, PROMPTS[2], 20)
    thread.ask(gone.row)
    gone.told.get(timeout=60)
    thread.leave(gone.row)
    thread.ask(stays.row)
    tokens, end = stays.all()
    assert (len(tokens), end.why) == (20, "length")
    assert thread.running == 0
    assert gone.told.qsize() < 100


def test_a_row_that_cannot_be_run_fails_alone(served_engine, monkeypatch):
    asked = rows()
    expected = [alone(served_engine, heard) for heard in asked]
    real = Decoder.step

    def step(self):
        if any(row.tokens == PROMPTS[3] for row in self._rows.values()):
            raise RuntimeError("no such kernel")
        return real(self)

    monkeypatch.setattr(Decoder, "step", step)
    thread = EngineThread(served_engine, frozenset(), rows=3)  # so that others have written some by then
    for heard in asked:
        thread.ask(heard.row)
    thread.start()
    found = [heard.all() for heard in asked]
    thread.close()
    assert found[3] == ([], AnswerEnd("failed", "RuntimeError: no such kernel"))
    assert [tokens for tokens, _ in found[:3] + found[4:]] == expected[:3] + expected[4:]


@pytest.mark.parametrize("enough", [True, False])
def test_where_a_step_raises_what_nothing_needs_goes_first(served_engine, monkeypatch, enough):
    """The base's values, as in a pack; what fits then goes on together."""
    asked = rows()[:3]
    expected = [alone(served_engine, heard) for heard in asked]
    real, kept, together = Decoder.step, [True], []

    def keep_values(self, keep=True):
        before, kept[0] = kept[0], keep
        return before

    def step(self):
        together.append(len(self._rows))
        if kept[0] or (not enough and len(self._rows) > 1):
            raise RuntimeError("out of memory")
        return real(self)

    monkeypatch.setattr(type(served_engine.base), "keep_values", keep_values)
    monkeypatch.setattr(Decoder, "step", step)
    thread = EngineThread(served_engine, frozenset())
    for heard in asked:
        thread.ask(heard.row)
    thread.start()
    assert [heard.all()[0] for heard in asked] == expected
    thread.close()
    assert together[:3] == [3, 3, 3 if enough else 1]


def test_a_lost_device_ends_the_thread_and_all_are_told(served_engine, monkeypatch):
    def lost(self):
        raise torch.AcceleratorError("the device is lost")

    monkeypatch.setattr(Decoder, "step", lost)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    thread = EngineThread(served_engine, frozenset())
    died = threading.Event()
    thread.died = died.set
    heard = rows()[0]
    thread.ask(heard.row)
    thread.start()
    assert heard.all() == ([], AnswerEnd("failed", "AcceleratorError: the device is lost"))
    assert died.is_set()
    with pytest.raises(RuntimeError, match="device is lost"):
        thread.ask(rows()[1].row)
    thread.close()


def test_who_waits_when_it_ends_is_told(served_engine):
    thread = EngineThread(served_engine, frozenset())
    heard = rows()[0]
    thread.ask(heard.row)
    thread._closing = True
    thread.start()
    assert heard.all() == ([], AnswerEnd("failed", "the server ends"))


@pytest.fixture(scope="module")
def other_base(float64_base):
    """The same once more: a base has one engine."""
    return load_base(BaseConfig(model=str(float64_base), quantization="none"), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("slot", [0, 1])
def test_an_adapter_is_put_as_its_files_have_it(served_engine, other_base, slot):
    config, latent = served_engine.slots[slot].config, served_engine.latent(slot)
    engine = Engine(other_base, 2)
    backwards = dict(reversed(latent.items()))  # files are in another order
    put = put_adapter(engine, config, backwards)
    for name, layer in engine.latent(put).items():
        assert all(torch.equal(own, given) for own, given in zip(layer.tensors, latent[name].tensors, strict=True))
    name = next(iter(latent))
    wide = {**latent, name: latent[name]._replace(a=latent[name].a.T.contiguous(), b=latent[name].b.T.contiguous())}
    with pytest.raises(ValueError, match="of another shape"):
        put_adapter(engine, config, wide)
    assert [*engine.slots] == [put]
    with pytest.raises(ValueError, match=r"no layer elsewhere\.q"):
        put_adapter(engine, config, {"elsewhere.q": latent[name]})
