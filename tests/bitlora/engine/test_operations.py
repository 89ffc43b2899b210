"""What a step costs on a GPU whatever it computes: how many operations it is does not grow with the slots, and the host
waits for the device once in a step and once in an evaluation."""

import pytest
import torch
from adapters import trial
from both_ways import batch_of, make_rows
from operations import CountOperations, CountReadBacks
from transformers import LlamaConfig, LlamaForCausalLM

from bitlora.config.sections import BaseConfig
from bitlora.engine import engine as engine_module
from bitlora.engine.engine import Engine
from bitlora.forward.host import send
from bitlora.forward.inject import load_base

QUANTIZERS = ("none", "binary", "ternary", "twn")
LAYERS = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return load_base(BaseConfig(model=str(folder), quantization="none"), torch.float32, torch.device("cpu"))


def operations(base, slots, rank=lambda number: 4, rows=lambda number: 2, **options):
    """Of the second step with so many slots."""
    engine = Engine(base, slots)
    for number in range(slots):
        engine.attach(trial(QUANTIZERS[number % 4], rank=rank(number), seed=number, **options))
    batches = [
        {number: batch_of(make_rows(number + step, rows(number), 8, 9)) for number in range(slots)} for step in (0, 1)
    ]
    engine.step(batches[0])
    with CountOperations() as counted:
        stats = engine.step(batches[1])
    assert all(stat.finite for stat in stats.values())
    for number in range(slots):
        engine.detach(number)
    return counted


def test_eight_slots_are_at_most_a_quarter_more_than_one(base):
    one, eight = operations(base, 1), operations(base, 8)
    print(f"one slot {one.total}, eight {eight.total}")
    assert eight.total <= 1.25 * one.total
    # Of a block with seven layers: 35 of the adapters, 14 products of the frozen ones, the rest is the model's own.
    assert one.total <= 126 * LAYERS


def test_so_are_eight_with_dora(base):
    assert operations(base, 8, dora=True).total <= 1.25 * operations(base, 1, dora=True).total


def test_products_are_as_many_whatever_the_slots_hold(base):
    """Ranks that differ, and batches that differ: those of the tails come to those of the grid, and that is all."""

    def products(slots, **options):
        counts = operations(base, slots, **options).counts
        return sum(counts[f"aten.{name}.default"] for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"))

    even = products(1)
    assert products(8) == products(8, rank=lambda number: 2 + number) == even
    ragged = {slots: products(slots, rows=lambda number: 1 + number % 4) for slots in (2, 4, 8)}
    assert even < ragged[2] == ragged[4] == ragged[8] < 2 * even


@pytest.mark.parametrize("recipe", [{}, {"dropout": 0.2}, {"activations": "int8", "micro_batch": 1}])
def test_a_step_asks_once_and_so_does_an_evaluation(base, monkeypatch, recipe):
    """Rows of different lengths, prefixes in common, tails, passes in parts, every kind of quantizer."""
    monkeypatch.setattr(engine_module, "EVAL_TOKENS", 64)  # several passes
    engine = Engine(base, 4)
    for number, quantizer in enumerate(("none", "ternary", "twn", "double_binary")):
        engine.attach(trial(quantizer, rank=2 + number, seed=number, **recipe))
    batches = {number: batch_of(make_rows(number, 2 + number % 2, prefix=4)) for number in range(4)}
    held_out = batch_of(make_rows(99, 6))
    with CountReadBacks() as step:
        stats = engine.step(batches)
    assert all(stat.finite for stat in stats.values())
    assert step == {"cpu": 1}
    with CountReadBacks() as evaluation:
        engine.evaluate([*range(4)], held_out)
    evaluation.pop("tolist")  # of the scores, which are on the host by then
    assert evaluation == {"cpu": 1}


class FromTheHost:
    """Counts the tensors that are made from numbers of the host, inside its `with`."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.count = monkeypatch, 0

    def __enter__(self):
        for name in ("from_numpy", "tensor", "as_tensor"):
            self.monkeypatch.setattr(torch, name, self._counting(getattr(torch, name)))
        return self

    def __exit__(self, *error):
        self.monkeypatch.undo()

    def _counting(self, make):
        def made(*arguments, **options):
            self.count += 1
            return make(*arguments, **options)

        return made


@pytest.mark.parametrize("recipe", [{}, {"dropout": 0.2}, {"activations": "int8", "micro_batch": 1}])
def test_a_step_that_was_laid_out_before_makes_nothing_on_the_host(base, monkeypatch, recipe):
    """And takes the numbers that it takes otherwise, to the last bit; also where a slot has come or gone meanwhile."""
    steps = [{number: batch_of(make_rows(10 * step + number, 2 + number % 2, prefix=4)) for number in range(3)}
             for step in range(5)]  # fmt: skip

    def run(ahead):
        engine = Engine(base, 3)
        for number, quantizer in enumerate(("none", "ternary", "double_binary")):
            engine.attach(trial(quantizer, rank=2 + number, seed=number, **recipe))
        losses, sent = [], []
        for step, batches in enumerate(steps):
            chosen = dict(batches)
            if step >= 3:
                if step == 3:
                    engine.detach(1)
                del chosen[1]
            following = steps[step + 1] if step + 1 < len(steps) else {}
            within = []

            def coming(following=following, within=within, engine=engine):
                within.append(counted.count)
                return {slot: batch for slot, batch in following.items() if slot in engine.slots}

            with FromTheHost(monkeypatch) as counted:
                stats = engine.step(chosen, coming if ahead else None)
            sent.append(within[0] if ahead else counted.count)
            losses.append({slot: stats[slot].loss for slot in stats})
        for slot in list(engine.slots):
            engine.detach(slot)
        return losses, sent

    losses, sent = run(ahead=True)
    assert [count > 0 for count in sent] == [True, False, False, True, False]  # a slot has gone before the fourth
    plain, sent = run(ahead=False)
    assert losses == plain
    assert min(sent) > 0


def test_an_evaluation_is_laid_out_once(base, monkeypatch):
    monkeypatch.setattr(engine_module, "EVAL_TOKENS", 64)  # several passes
    engine = Engine(base, 3)
    for number in range(3):
        engine.attach(trial("ternary", rank=2 + number, seed=number))
    held_out, others = batch_of(make_rows(99, 6)), batch_of(make_rows(98, 4))

    def sent(slots, batch):
        with FromTheHost(monkeypatch) as counted:
            results = engine.evaluate(slots, batch)
        return counted.count, [results[slot].losses for slot in slots]

    first, losses = sent([0, 1], held_out)
    assert first > 0
    assert sent([2], held_out)[0] > 0
    assert sent([0, 1], held_out) == (0, losses)
    assert sent([0, 1], others)[0] > 0
    engine.detach(2)
    again, found = sent([0, 1], held_out)
    assert again > 0
    assert found == losses
    monkeypatch.setattr("bitlora.engine.passes.KEPT_TOKENS", 40)  # there is no room for them
    assert sent([0], held_out)[0] == sent([0], held_out)[0] > 0
    for slot in list(engine.slots):
        engine.detach(slot)


def test_what_a_step_sends_does_not_grow_with_its_slots(base, monkeypatch):
    def sent(slots):
        engine = Engine(base, slots)
        for number in range(slots):
            engine.attach(trial(QUANTIZERS[number % 4], rank=4, seed=number))
        batches = {number: batch_of(make_rows(number, 2, 8, 9)) for number in range(slots)}
        engine.step(batches)
        calls = []
        for module in (
            "engine.passes",
            "engine.engine",
            "forward.forward_plan",
            "forward.products",
        ):
            monkeypatch.setattr(
                f"bitlora.{module}.send", lambda arrays, device: calls.append(1) or send(arrays, device)
            )
        engine.step(batches)
        monkeypatch.undo()
        for slot in list(engine.slots):
            engine.detach(slot)
        return len(calls)

    assert sent(8) <= sent(2) + 1 <= 6


def test_they_are_counted():
    x = torch.arange(4.0)
    with CountReadBacks() as found:
        x.sum().item()
        bool(x.any())
        x[x > 1]
        x.nonzero()
        x[x > 2] = 0
        x.tolist()
        x.cpu()
    assert found["tolist"] == found["cpu"] == found["item"] == found["__bool__"] == 1
    assert found["_local_scalar_dense.default"] == 2
    assert found["nonzero"] == found["nonzero.default"] == 1
    assert sum(count for name, count in found.items() if name.startswith("index")) == 2
