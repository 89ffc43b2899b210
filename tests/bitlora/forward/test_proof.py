"""A base that passed its check is not checked again on its machine, as long as nothing changes that the check hangs on; and
what it then computes is to the last bit what it would have computed."""

import shutil

import pytest
import torch
from adapters import trial

from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward import inject, proof
from bitlora.forward.inject import load_base
from bitlora.forward.proof import PROVEN

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checks(monkeypatch):
    """A list that grows by one with each check."""
    made = []
    real = inject.check_rows_apart

    def noted(*given):
        made.append(len(made))
        real(*given)

    monkeypatch.setattr(inject, "check_rows_apart", noted)
    return made


def config(folder, quantization="nf4"):
    return BaseConfig(model=str(folder), quantization=quantization)


def numbers(base):
    """Losses of three steps and of an evaluation, of two trials in a pack, and their weights at the end."""
    engine = Engine(base, 2)
    slots = [engine.attach(trial(name, seed=seed)) for seed, name in enumerate(("none", "ternary"))]
    tokens = torch.arange(2 * 24) * 11 % base.vocab_size
    batch = Batch(tokens, (torch.arange(24) >= 12).repeat(2), (24, 24))
    steps = [engine.step(dict.fromkeys(slots, batch)) for _ in range(3)]
    scored = engine.evaluate(slots, batch)
    losses = [each[slot].loss for each in steps for slot in slots] + [x for slot in slots for x in scored[slot].losses]
    return losses, [engine.state(slot).latent for slot in slots]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_second_start_checks_nothing_and_computes_the_same_to_the_last_bit(tiny_base, cache, checks, quantization):
    first = numbers(load_base(config(tiny_base, quantization), torch.float32, CPU))
    second = numbers(load_base(config(tiny_base, quantization), torch.float32, CPU))
    assert len(checks) == 1
    shutil.rmtree(cache)
    third = numbers(load_base(config(tiny_base, quantization), torch.float32, CPU))
    assert len(checks) == 2
    for other in (second, third):
        assert other[0] == first[0]
        assert all(torch.equal(one, same) for one, same in zip(other[1], first[1], strict=True))


def test_it_is_checked_again_when_anything_changes_that_it_hangs_on(tiny_base, cache, checks, tmp_path, monkeypatch):
    def loads(folder=tiny_base, quantization="none", dtype=torch.float32, longest=8):
        load_base(config(folder, quantization), dtype, CPU, longest=longest)
        return len(checks)

    assert loads() == 1
    assert loads(longest=30) == 2
    assert loads(dtype=torch.bfloat16) == 3
    assert loads(quantization="nf4") == 4
    other = tmp_path / "other" / tiny_base.name
    shutil.copytree(tiny_base, other)
    assert loads(other) == 4  # the same weights elsewhere
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    assert loads(other) == 5
    monkeypatch.setattr(proof, "code_digest", lambda: "another version of this code")
    assert loads() == 6
    monkeypatch.setattr(proof, "cpu_name", lambda: "another processor")
    assert loads() == 7
    monkeypatch.setattr(proof, "version", lambda name: "another")
    assert loads() == 8


def test_a_base_that_fails_is_never_noted(tiny_base, cache, monkeypatch):
    monkeypatch.setattr(inject, "ROWS_APART", dict.fromkeys(inject.ROWS_APART, -1.0))
    for _ in range(2):
        with pytest.raises(BaseError, match="mixes tokens"):
            load_base(config(tiny_base, "none"), torch.float32, CPU)
    assert not (cache / PROVEN).exists()


def test_a_note_that_is_broken_or_cannot_be_written_costs_a_check(tiny_base, cache, checks):
    load_base(config(tiny_base, "none"), torch.float32, CPU)
    (note,) = (cache / PROVEN).glob("*/*")
    whole = note.read_bytes()
    note.write_bytes(whole[:40] + b"\xff")
    load_base(config(tiny_base, "none"), torch.float32, CPU)
    assert len(checks) == 2
    assert note.read_bytes() == whole
    shutil.rmtree(cache / PROVEN)
    (cache / PROVEN).write_text("in the way")
    load_base(config(tiny_base, "none"), torch.float32, CPU)
    assert len(checks) == 3
