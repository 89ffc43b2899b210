"""A sweep's folder made in this process, without Ray: the files are those that a pack and the driver write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitlora.adapter.cost import adapter_bytes, adapter_params
from bitlora.adapter.peft_folder import save_adapter
from bitlora.base.describe import describe_base
from bitlora.base.load import load_tokenizer
from bitlora.config.trial import TrialConfig, trial_config
from bitlora.data.batches import batch_rows
from bitlora.data.split import Dataset, prepare_data
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.files import origin, record, writing
from bitlora.forward.inject import load_base
from sweeps.spec.spec import Spec, dump_spec, load_spec

CPU = torch.device("cpu")


def small_spec(
    folder: Path, base: Path | str, source: Path, quantization: str, dtype: str, more: Mapping[str, Any]
) -> Spec:
    path = folder.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {
        "name": folder.name,
        "out": str(folder),
        "base": {"model": str(base), "quantization": quantization},
        "data": {"source": str(source), "max_length": 64, "eval_rows": 12},
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"steps": 6, "eval_every": 6, "batch_size": 4, "learning_rate": 2e-2, "dtype": dtype},
        "scheduler": {"name": "none", "grace": 6},
    }
    spec["data"].update(more.get("data", {}))
    path.write_text(json.dumps(spec | {key: value for key, value in more.items() if key != "data"}))
    return load_spec(path)


def small_sweep(
    folder: Path, base: Path | str, source: Path, trials: Mapping[str, dict[str, Any]], quantization: str = "none",
    dtype: str = "float32", **more: Any,
) -> Path:  # fmt: skip
    """Train `trials` (id -> what they vary) to their end in one pack, and write the sweep that they would be of.

    `more`: what its spec has besides, by section; of `data` keys that are laid over it.
    """
    spec = small_spec(folder, base, source, quantization, dtype, more)
    tokenizer = load_tokenizer(str(base))
    dataset = prepare_data(spec.data, tokenizer, 0 if spec.confirm is None else spec.confirm.rows)
    engine = Engine(load_base(spec.base, getattr(torch, dtype), CPU), len(trials))
    configs = {
        trial_id: trial_config(spec.adapter, spec.train, len(dataset.train), number, chosen)
        for number, (trial_id, chosen) in enumerate(trials.items())
    }
    slots = {trial_id: engine.attach(config) for trial_id, config in configs.items()}
    for step in range(6):
        batches = {}
        for trial_id, config in configs.items():
            chosen = batch_rows(len(dataset.train), config.batch_size, config.seed, step)
            batches[slots[trial_id]] = Batch.of(dataset.train.take(chosen))
        engine.step(batches)
    writing.write_text(folder / "sweep.yaml", dump_spec(spec))
    for trial_id, config in configs.items():
        _write(folder / "trials" / trial_id, spec, dataset, engine, slots[trial_id], config)
    return folder


def _write(folder: Path, spec: Spec, dataset: Dataset, engine: Engine, slot: int, config: TrialConfig) -> None:
    rows = dataset.eval
    scored = engine.evaluate([slot], Batch.of(rows))[slot]
    writing.write_json(folder / record.CONFIG, config.model_dump(mode="json"))
    record.write_scores(folder / record.EVAL, rows.example_ids, scored.losses, scored.tokens, rows.text_bytes.tolist())
    tested = engine.evaluate([slot], Batch.of(dataset.test))[slot] if config.confirms else None
    if tested is not None:
        counts = tested.tokens, dataset.test.text_bytes.tolist()
        record.write_scores(folder / record.TEST, dataset.test.example_ids, tested.losses, *counts)
    latent = engine.latent(slot)
    writing.write_folder(folder / record.ADAPTER, lambda part: save_adapter(part, latent, config, spec.base.model))
    numbers = {"tokens": 100, "eval_loss": scored.loss, "seconds": 1.0}
    record.append_metrics(folder, record.Metrics(step=6, train_loss=2.0, learning_rate=0.0, **numbers))
    info = describe_base(spec.base)
    layers = info.layers(config)
    record.write_record(
        folder,
        record.Record(
            trial_id=folder.name,
            status="completed",
            reason="",
            config=config.model_dump(mode="json"),
            steps=6,
            adapter_params=adapter_params(layers, config.quantizer, config.dora),
            adapter_bytes=adapter_bytes(layers, config.quantizer, config.granularity, config.dora),
            base=info.provenance(config) | {"dtype": spec.train.dtype},
            data={"source": dataset.summary.source, "train_rows": len(dataset.train), "eval_rows": len(rows)},
            versions=origin.versions(),
            test_loss=None if tested is None else tested.loss,
            **numbers,
        ),
    )
