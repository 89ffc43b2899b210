"""An evaluation of a pack's adapters against HF Trainer's `evaluate` of each.

    PYTHONPATH=tests/helpers python tests/benchmarks/evaluation.py

Rows of 32 to 128 tokens, drawn evenly; the Trainer takes eight at once, as it does unless told otherwise, and pads them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from adapters import trial
from bases import RANK, base, plain
from measuring import Ratio, Settings, cells, in_turn, ratio, table

from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine

SLOTS = [1, 4, 8]
ROWS = {"cpu": 12, "cuda": 192}


def rows(count: int, vocabulary: int) -> Batch:
    """So many, of which the second halves are learned."""
    seed = torch.Generator().manual_seed(0)
    lengths = torch.randint(32, 129, (count,), generator=seed).tolist()
    tokens = torch.randint(3, vocabulary, (sum(lengths),), generator=seed)
    learn = torch.cat([torch.arange(length) >= length // 2 for length in lengths])
    return Batch(tokens, learn, tuple(lengths))


def trainer(model: Any, given: Batch, folder: str) -> Any:
    """HF Trainer over stock PEFT with these rows to evaluate."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    examples = [
        {"ids": ids.cpu(), "labels": ids.cpu().masked_fill(~learn.cpu(), -100)}
        for ids, learn in zip(given.tokens.split(given.lengths), given.learn.split(given.lengths), strict=True)
    ]

    def collate(chosen: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([each["ids"] for each in chosen], batch_first=True)
        real = pad([torch.ones_like(each["ids"]) for each in chosen], batch_first=True)
        labels = pad([each["labels"] for each in chosen], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "attention_mask": real, "labels": labels}

    wrapped = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    arguments = TrainingArguments(folder, report_to=[], use_cpu=model.device.type == "cpu", prediction_loss_only=True,
                                  remove_unused_columns=False, dataloader_pin_memory=False, disable_tqdm=True)  # fmt: skip
    return Trainer(wrapped, arguments, data_collator=collate, eval_dataset=examples)


def measure(settings: Settings) -> Iterator[Ratio]:
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    end = time.monotonic() + settings.seconds
    loaded = base(settings.model, dtype, device)
    given = rows(ROWS[device.type], loaded.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        stock = trainer(plain(settings.model, dtype, device), given, folder)
        for slots, _ in cells(settings, [(each, 0) for each in SLOTS]):
            if time.monotonic() > end:
                print(f"left out for lack of time: evaluation of {slots} slots", flush=True)
                continue
            engine = Engine(loaded, slots)
            for number in range(slots):
                engine.attach(trial("none", rank=RANK, seed=number))
            ways = {
                "pack": lambda engine=engine: engine.evaluate([*engine.slots], given),
                "Trainer": lambda: stock.evaluate(),
            }
            took = in_turn(ways, (end - time.monotonic()) / 3, most=5)
            for_all = [slots * seconds for seconds in took["Trainer"]]
            yield ratio(for_all, took["pack"], table="evaluation", model=settings.model, dtype=settings.dtype,
                        slots=slots, tokens=len(given.tokens), unit="s",
                        what="HF Trainer's evaluate, one adapter times slots / pack")  # fmt: skip
            for number in range(slots):
                engine.detach(number)


def plan(settings: Settings) -> list[str]:
    return [f"evaluation: {settings.model} in {settings.dtype}, {ROWS[settings.device]} rows, {slots} slots against HF "
            "Trainer" for slots, _ in cells(settings, [(each, 0) for each in SLOTS])]  # fmt: skip


if __name__ == "__main__":
    table(measure, plan)
