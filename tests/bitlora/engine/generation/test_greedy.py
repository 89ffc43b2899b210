"""Greedy decoding of many rows with many adapters, against transformers' own `generate` of each row alone in stock PEFT."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from base_families import HELD
from both_ways import VOCAB, Trial
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bitlora.adapter.peft_folder import save_lora_adapter
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.generation.greedy import OutputEnd, generate, generate_all
from bitlora.engine.generation.sampling import Sampling
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
ENDS = (5, 9)
MOST = 16
TRIALS = (Trial(seed=1, rank=4, alpha=8), Trial(seed=2, quantizer="ternary", rank=2, alpha=4))


def prompts(seed, count=4):
    """Of unlike lengths, one beyond the windows of 16 tokens."""
    drawn = random.Random(seed)
    lengths = [1, 3, 21, *(drawn.randint(4, 12) for _ in range(count - 3))]
    return [[drawn.randrange(10, VOCAB) for _ in range(length)] for length in lengths]


def started(folder, targets, dtype):
    """An engine with two random adapters, and their slots."""
    config = BaseConfig(model=str(folder), quantization="none", targets=targets)
    engine = Engine(load_base(config, dtype, CPU, longest=64), 3)
    for trial in TRIALS:
        state = engine.state(slot := engine.attach(trial.config))
        engine.detach(slot)
        drawn = torch.randn(state.latent.shape, generator=torch.Generator().manual_seed(trial.seed))
        engine.attach(trial.config, slot, replace(state, latent=drawn.to(state.latent) * 0.3))
    return engine, [*engine.slots]


def stock(folder, engine, slot, dtype, out):
    """The same adapter in stock PEFT over stock transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    names = [name for name, _ in model.named_modules()]
    out.mkdir()
    save_lora_adapter(out, engine.latent(slot), engine.slots[slot].config, None, modules=names)
    return PeftModel.from_pretrained(model, out).to(dtype).eval()


def alone(model, prompt):
    """Stock greedy decoding of one row: its tokens without the one that ended it, and the logits they were chosen by."""
    tokens = torch.tensor([prompt])
    found = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=MOST,
        eos_token_id=[*ENDS],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    written = found.sequences[0, len(prompt) :].tolist()
    return (written[:-1] if written[-1] in ENDS else written), [each[0] for each in found.logits]


def made(name, folder, dtype=torch.float64):
    """A base of a family, in a folder; and its targets."""
    make, targets = HELD[name]
    torch.manual_seed(0)
    config = make()
    config.tie_word_embeddings = False  # tied and untrained, a base repeats its last token
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder, targets


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2"])
def test_rows_of_several_slots_are_written_as_each_alone(name, tmp_path):
    folder, targets = made(name, tmp_path / "base")
    engine, slots = started(folder, targets, torch.float64)
    rows = [(slot, prompt) for prompt in prompts(3) for slot in slots]
    # few at once, so that rows come while others are under way, in lanes that others have left
    ours = generate(engine, rows, OutputEnd(MOST, frozenset(ENDS)), kept=110)
    models = {slot: stock(folder, engine, slot, torch.float64, tmp_path / str(slot)) for slot in slots}
    assert ours == [alone(models[slot], prompt)[0] for slot, prompt in rows]
    assert len({tuple(row) for row in ours}) == len(rows)  # they do differ
    assert any(len(row) == MOST for row in ours)


@pytest.mark.parametrize("name", ["Llama", "Qwen3-MoE"])  # transformers has no products of experts in float64
def test_in_float32_tokens_differ_only_where_two_are_as_likely(name, tmp_path):
    folder, targets = made(name, tmp_path / "base", torch.float32)
    engine, slots = started(folder, targets, torch.float32)
    rows = [(slot, prompt) for prompt in prompts(4) for slot in slots]
    models = {slot: stock(folder, engine, slot, torch.float32, tmp_path / str(slot)) for slot in slots}
    equal = 0
    for (slot, prompt), ours in zip(rows, generate(engine, rows, OutputEnd(MOST, frozenset(ENDS))), strict=True):
        theirs, logits = alone(models[slot], prompt)
        equal += ours == theirs
        if ours != theirs:
            at = next(at for at in range(MOST) if at in (len(ours), len(theirs)) or ours[at] != theirs[at])
            first, second = logits[at].topk(2).values.tolist()
            assert first - second < 1e-4 * max(1.0, abs(first))
    assert equal > len(rows) // 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made("Llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def engine(small):
    return started(*small, torch.float64)[0]


def test_rows_come_and_go_between_steps(engine):
    first, second, third = prompts(5, 3)
    whole = generate(engine, [(0, first), (1, second), (0, third)], OutputEnd(6))
    decoder = Decoder(engine)
    a = decoder.add(0, first)
    written = {a: [decoder.step()[a]]}
    b = decoder.add(1, second)
    written[b] = []
    for _ in range(2):
        for number, token in decoder.step().items():
            written[number].append(token)
    assert decoder.rows == [a, b]
    assert decoder.kept == len(first) + 3 + len(second) + 2
    decoder.drop(a)
    c = decoder.add(0, third)  # in the lane that the first has left
    written[c] = []
    for _ in range(4):
        for number, token in decoder.step().items():
            written[number].append(token)
    assert written == {a: whole[0][:3], b: whole[1][:6], c: whole[2][:4]}


def written(decoder, numbers, steps):
    found = {number: [] for number in numbers}
    for _ in range(steps):
        for number, token in decoder.step().items():
            found[number].append(token)
    return found


def test_a_row_is_drawn_as_single_and_goes_on_as_it_would_have(engine):
    hows = [None, Sampling(temperature=1.5, seed=1), Sampling(temperature=1.0, top_p=0.8, seed=2), None]
    asked = [(number % 2, prompt, how) for number, (prompt, how) in enumerate(zip(prompts(9), hows, strict=True))]
    together = Decoder(engine)
    found = written(together, [together.add(*each) for each in asked], 8)
    for (slot, prompt, how), tokens in zip(asked, found.values(), strict=True):
        single = Decoder(engine)
        assert [*written(single, [single.add(slot, prompt, how)], 8).values()] == [tokens]
        again = Decoder(engine)
        assert [*written(again, [again.add(slot, [*prompt, *tokens[:3]], how)], 5).values()] == [tokens[3:]]
        (likeliest,) = generate(engine, [(slot, prompt)], OutputEnd(8))
        assert (tokens == likeliest) == (how is None)


def test_a_row_that_is_not_finite_leaves_nothing_behind(engine):
    prompt = prompts(6, 3)[2]
    expected = generate(engine, [(1, prompt)], OutputEnd(5))
    config, state = engine.slots[0].config, engine.state(0)
    engine.detach(0)
    engine.attach(config, 0, replace(state, latent=torch.full_like(state.latent, torch.nan)))
    decoder = Decoder(engine)
    sick = decoder.add(0, prompt)
    decoder.step()
    decoder.step()
    decoder.drop(sick)
    well = decoder.add(1, prompt)
    assert [decoder.step()[well] for _ in range(5)] == expected[0]


def test_what_ends_a_row(engine):
    prompt = prompts(7, 3)[2]
    (whole,) = generate(engine, [(0, prompt)], OutputEnd(10))
    assert len(whole) == 10
    cut = whole.index(whole[4])
    assert generate(engine, [(0, prompt)], OutputEnd(10, frozenset({whole[4]}))) == [whole[:cut]]
    assert generate(engine, [(0, prompt)], OutputEnd(10, over=lambda so_far: len(so_far) == 3)) == [whole[:3]]


def test_a_prompt_needs_a_token_and_a_slot(engine):
    with pytest.raises(ValueError, match="empty prompt"):
        Decoder(engine).add(0, [])
    with pytest.raises(ValueError, match="slot 2 is empty"):
        Decoder(engine).add(2, [1])


def test_a_slot_that_cannot_be_run_fails_alone(engine, monkeypatch):
    rows = prompts(8, 4)
    expected = generate_all(engine, [0, 1], rows, OutputEnd(5))
    assert not expected[0].failed
    real = engine.base.head.hidden

    def hidden(keep, **inputs):
        from bitlora.forward.forward_plan import bound_plan

        if any(span.slot == 1 for span in bound_plan().spans):
            raise RuntimeError("no such kernel")
        return real(keep, **inputs)

    monkeypatch.setattr(engine.base.head, "hidden", hidden)
    found = generate_all(engine, [0, 1], rows, OutputEnd(5))
    assert found[0] == expected[0]
    assert found[1].failed == "RuntimeError: no such kernel"
