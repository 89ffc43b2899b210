"""A sweep as Ray's own examples have it: a Tune trial for each configuration, each with a TorchTrainer of one worker, which
loads and quantizes the base and trains one stock PEFT adapter with HF Trainer. Nothing of the product is in it.

Run by stock_sweep.py: FILE, a JSON with what to do; prints a JSON line with the seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SECONDS = "seconds.json"
"""In a trial's folder: what its worker spent."""


def rows_of(path: str, part: str) -> list[dict[str, Any]]:
    """Tokens and labels of each row."""
    return [
        {"ids": tokens, "labels": [token if learned else -100 for token, learned in zip(tokens, learn, strict=True)]}
        for tokens, learn in json.loads(Path(path).read_text())[part]
    ]


def plain_base(work: dict[str, Any]) -> Any:
    """The base in NF4, as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, work["dtype"])
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(
        work["base"], dtype=dtype, quantization_config=quantization, device_map={"": work["device"]}
    )
    for module in model.modules():  # else on CPUs with AVX-512 BF16 bitsandbytes computes in bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def padded(chosen: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(row["ids"]) for row in chosen]
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad([torch.tensor(row["labels"]) for row in chosen], batch_first=True, padding_value=-100),
    }


def train(work: dict[str, Any]) -> None:
    """What a worker does for one trial."""
    began = time.time()
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):  # type: ignore[misc]
        """The rows in the order in which the other side has them."""

        def _get_train_sampler(self, *given: Any) -> Any:
            return SequentialSampler(given[0] if given else self.train_dataset)

    rows = rows_of(work["rows"], "train")
    config = LoraConfig(r=work["rank"], lora_alpha=work["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain_base(work), config)
    arguments = TrainingArguments(
        work["out"],
        max_steps=work["steps"],
        per_device_train_batch_size=work["batch_size"],
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=work["eval_every"],
        save_strategy="no",
        logging_steps=work["eval_every"],
        bf16=work["dtype"] == "bfloat16",
        use_cpu=work["device"] == "cpu",
        prediction_loss_only=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = InOrder(
        model,
        arguments,
        data_collator=padded,
        train_dataset=[rows[number] for number in work["order"]],
        eval_dataset=rows_of(work["rows"], "eval"),
    )
    loaded = time.time()
    trainer.train()
    trained = time.time()
    model.save_pretrained(work["out"])
    # Metrics that are reported without a checkpoint do not come back in the result.
    (Path(work["out"]) / SECONDS).write_text(json.dumps({"loaded": loaded - began, "trained": trained - loaded}))


def main(file: str) -> None:
    began = time.time()
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    work = json.loads(Path(file).read_text())
    ray.init(num_cpus=work["cpus"], num_gpus=work["gpus"], include_dashboard=False, log_to_driver=False)

    def one(chosen: dict[str, Any]) -> None:
        started = time.time()
        own = {**work, **work["configs"][chosen["number"]]}
        resources = {"CPU": work["cpus"]} | ({"GPU": 1} if work["gpus"] else {})
        TorchTrainer(
            train,
            train_loop_config=own,
            scaling_config=ScalingConfig(num_workers=1, use_gpu=bool(work["gpus"]), resources_per_worker=resources),
            run_config=RunConfig(name=f"trial{chosen['number']}", storage_path=work["storage"]),
        ).fit()
        tune.report({**json.loads((Path(own["out"]) / SECONDS).read_text()), "trial": time.time() - started})

    tuner = tune.Tuner(
        tune.with_resources(one, {"CPU": 0, "node:__internal_head__": 0.001}),
        param_space={"number": tune.grid_search([*range(len(work["configs"]))])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="stock", storage_path=work["storage"], verbose=0),
    )
    results = tuner.fit()
    for result in results:
        if result.error is not None:
            raise result.error
    names = ("loaded", "trained", "trial")
    trials = {name: [result.metrics[name] for result in results] for name in names}
    print(json.dumps({"seconds": time.time() - began} | trials), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    main(sys.argv[1])
