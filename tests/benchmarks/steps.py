"""A pack's optimizer step against the frozen base alone, stock PEFT and the same adapters one after another.

    PYTHONPATH=tests/helpers python tests/benchmarks/steps.py [--model 1B --device cuda --dtype bfloat16]

Rank 16 on all linear layers, full precision, no dropout, rows of 128 tokens (on a GPU of 512) or less. The pack keeps
NF4's values, as it does where there is room (`base.cache: auto`); the frozen base alone and PEFT are bitsandbytes' own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from adapters import trial
from bases import RANK, as_padded, base, batch, plain
from measuring import Ratio, Settings, cells, in_turn, ratio, table
from torch.nn import functional as F

from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine

CPU_CELLS = [(1, 64), (4, 64), (1, 128), (4, 128), (8, 64), (8, 128), (1, 512), (32, 64), (4, 512), (1, 2048)]
GPU_CELLS = [(8, 128), (8, 512), (8, 2048), (1, 128), (32, 64), (32, 128), (4, 512), (1, 2048), (16, 512), (2, 128)]
"""Slots and tokens of each, what is quick or matters most first: those for which no time is left are left out."""


def own_cells(settings: Settings) -> list[tuple[int, int]]:
    return cells(settings, CPU_CELLS if settings.device == "cpu" else GPU_CELLS)


def frozen(model: Any) -> Callable[[Batch], None]:
    """Forward and backward through the base alone: its gradient ends at the embeddings."""
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: out.requires_grad_())

    def step(given: Batch) -> None:
        ids, labels = as_padded(given, model.device)
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != -100
        F.cross_entropy(model.lm_head(hidden[learned]).float(), labels[:, 1:][learned]).backward()

    return step


def peft_alone(model: Any) -> Callable[[Batch], None]:
    """One adapter's optimizer step, as anybody writes it over stock PEFT."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    wrapped.train()

    def step(given: Batch) -> None:
        ids, labels = as_padded(given, model.device)
        wrapped(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def together(batches: list[Batch]) -> Batch:
    return Batch(
        torch.cat([each.tokens for each in batches]),
        torch.cat([each.learn for each in batches]),
        tuple(length for each in batches for length in each.lengths),
    )


def measure(settings: Settings) -> Iterator[Ratio]:
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    end = time.monotonic() + settings.seconds
    loaded, alone_base = base(settings.model, dtype, device), base(settings.model, dtype, device)
    for each in (loaded, alone_base):
        each.keep_values(True)
    base_alone = frozen(plain(settings.model, dtype, device))
    peft = peft_alone(plain(settings.model, dtype, device))
    alone = Engine(alone_base, 1)
    alone.attach(trial("none", rank=RANK, learning_rate=1e-4))
    took_per_token = 0.0
    for slots, tokens in own_cells(settings):
        # The frozen base, the pack, one alone for each slot, and PEFT; to warm up once, and at least twice.
        expected = took_per_token * (3 * slots + 1) * tokens * 3
        if time.monotonic() + expected > end:
            print(f"left out for lack of time: {slots} slots × {tokens} tokens", flush=True)
            continue
        engine = Engine(loaded, slots)
        for number in range(slots):
            engine.attach(trial("none", rank=RANK, seed=number, learning_rate=1e-4))
        longest = 128 if settings.device == "cpu" else 512
        batches = [batch(tokens, longest, loaded.vocab_size, number) for number in range(slots)]
        all_rows = together(batches)
        began = time.monotonic()

        def pack(engine: Engine = engine, given: list[Batch] = batches) -> None:
            engine.step(dict(enumerate(given)))

        def one_after_another(given: list[Batch] = batches) -> None:
            for each in given:
                alone.step({0: each})

        ways = {
            "base": lambda given=all_rows: base_alone(given),
            "pack": pack,
            "alone": one_after_another,
            "PEFT": lambda given=batches[0]: peft(given),
        }
        left = end - time.monotonic()
        took = in_turn(ways, left / 5, most=5 if settings.device == "cpu" else 9)
        took_per_token = (time.monotonic() - began) / (3 * slots + 1) / tokens / (len(took["pack"]) + 1)
        peft_for_all = [slots * seconds for seconds in took["PEFT"]]
        about = {"table": "step", "model": settings.model, "dtype": settings.dtype, "slots": slots, "tokens": tokens,
                 "unit": "s"}  # fmt: skip
        yield ratio(took["pack"], took["base"], what="pack / frozen base alone on the same rows", **about)
        yield ratio(took["alone"], took["pack"], what="the same adapters one after another / pack", **about)
        yield ratio(peft_for_all, took["pack"], what="stock PEFT, one adapter times slots / pack", **about)
        for number in range(slots):
            engine.detach(number)


def plan(settings: Settings) -> list[str]:
    return [f"step: {settings.model} in {settings.dtype}, {slots} slots × {tokens} tokens, pack against the frozen base, "
            "PEFT and one after another" for slots, tokens in own_cells(settings)]  # fmt: skip


if __name__ == "__main__":
    table(measure, plan)
