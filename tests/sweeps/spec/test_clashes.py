"""Values of a spec that are right each by itself, and do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from spec_text import SMALLEST, errors, load

from sweeps.spec.errors import SpecError
from sweeps.spec.spec import load_spec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "small.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {steps: 8, epochs: 2}", "train.epochs: steps is given too; keep one, or set the other to null"),
        ("train: {steps: 8, eval_every: 9}", "train.eval_every: 9 is more than train.steps 8; give at most 8"),
        (
            "adapter: {init: pissa, dora: true}",
            "adapter.init: the norms of a base without its principal components are not computed; give dora: false",
        ),
        (
            "adapter: {init: orthogonal, quantizer: ternary}",
            "adapter.init: orthogonal starts where B times A is zero, and quantized they no longer are; "
            "give quantizer: none",
        ),
        (
            "adapter: {init: orthogonal, rank_pattern: {q_proj: 3}}",
            "adapter.init: orthogonal needs even ranks; give a list of even ones, or a range with a step of 2",
        ),
        (
            "adapter: {dora: true, activations: int8}",
            "adapter.dora: divides by the norms of the merged weight, and with activations: int8 no weight does what the "
            "adapter does; give activations: full",
        ),
        ("train: {dtype: float64}", "train.dtype: float64 needs base.quantization: none"),
        (
            "train: {stages: [{until: 8, learning_rate: 1e-3}, {until: 4, dropout: 0.1}]}",
            "train.stages: found stages until 8, 4; give them in the order of their steps",
        ),
        (
            "train: {stages: [{until: 32, learning_rate: 1e-3}]}",
            "train.stages: a stage until 32 leaves no step after it; give less than train.steps 32",
        ),
        ("scheduler: {grace: 40}", "scheduler.grace: 40 is more than train.steps 32; give at most 32"),
        (
            "scheduler: {grace: 12}",
            "scheduler.grace: 12 is between evaluations, which come every 8 steps (train.eval_every); "
            "give a multiple of it, such as 16",
        ),
        (
            "scheduler: {name: bohb}\nsearch: {sampler: random}",
            "scheduler.name: bohb is HyperBand with configurations of TPE's; give search.sampler: tpe, or "
            "scheduler.name: hyperband",
        ),
        (
            "train: {patience: 3}",
            "train.patience: after 3 evaluations without a new best one a trial's last is not its best; give train.keep: "
            "best",
        ),
        (
            "confirm: {by: rank}",
            "confirm.by: found 'rank'; give an axis of search.space that is a list",
        ),
        (
            "confirm: {by: [quantizer, rank]}\nsearch: {space: {quantizer: [none, binary], rank: {low: 1, high: 8}}}",
            "confirm.by: found 'rank'; give an axis of search.space that is a list; valid: quantizer",
        ),
        (
            "resources: {packs: {min: 5, max: 4}}",
            "resources.packs.min: 5 is more than resources.packs.max 4; give at most 4",
        ),
        (
            "resources: {gpus_per_worker: 2}",
            "resources.gpus_per_worker: an adapter's weights are one vector on one device, so a base cannot be spread over "
            "GPUs; give 1, with base.quantization: nf4 or train.gradient_checkpointing: true for a large base",
        ),
        (
            "resources: {gpus_per_worker: 0.5, workers_per_pack: 2}",
            "resources.gpus_per_worker: 2 workers of a pack cannot share a GPU: NCCL wants one for each; give 1, or "
            "resources.workers_per_pack: 1",
        ),
        (
            "search: {trials: 1, space: {rank: [4, 8]}, first: [{rank: 4}, {rank: 8}]}",
            "search.first: more configurations than search.trials 1",
        ),
        (
            "search: {sampler: grid, space: {alpha: {low: 1, high: 2}}}",
            "search.space.alpha: a grid cannot list a range; give it a step or a list, or take another search.sampler",
        ),
        (
            "scheduler: {name: median, scoring: sequential}",
            "scheduler.scoring: scheduler.name median judges at no rung; give all, or one of asha, hyperband, bohb",
        ),
        (
            "search: {objectives: [bytes, loss]}",
            "search.objectives: found [bytes, loss]; give [loss] or [loss, bytes]",
        ),
        (
            "scheduler: {name: median}\nsearch: {objectives: [loss, bytes]}",
            "scheduler.name: median does not go with search.objectives: [loss, bytes]; give asha, hyperband, bohb or none",
        ),
        (
            "scheduler: {scoring: sequential}\nsearch: {objectives: [loss, bytes]}",
            "scheduler.scoring: sequential does not go with search.objectives: [loss, bytes]; give all",
        ),
        (
            "confirm: {by: rank}\nsearch: {objectives: [loss, bytes], space: {rank: [2, 4]}}",
            "confirm.by: with search.objectives: [loss, bytes] the front is confirmed; leave it out",
        ),
        (
            "search: {sampler: grid, space: {seed: {low: 0, high: 99999, step: 1}}}",
            "search.space: the grid has more than 10,000 points; take another search.sampler",
        ),
    ],
)
def test_values_that_do_not_go_together_are_one_line(file: Path, text: str, said: str) -> None:
    assert errors(file, SMALLEST + text) == [f"small.yaml:3: {said}"]


def test_grace_is_nobodys_business_without_a_scheduler(file: Path) -> None:
    assert load(file, SMALLEST + "scheduler: {name: none, grace: 99}\n").scheduler.grace == 99
    assert load(file, SMALLEST + "scheduler: {name: median, grace: 12}\n").scheduler.grace == 12


@pytest.mark.parametrize("override", ["train.epochs=2", "train.eval_every=epoch"])
def test_batch_size_is_not_varied_where_the_budget_is_counted_in_epochs(tmp_path: Path, override: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("base: {model: a}\ndata: {source: b}\nsearch: {space: {batch_size: [2, 4]}}\n")
    assert load_spec(file).search.space
    with pytest.raises(SpecError, match=r"search\.space\.batch_size: with epochs"):
        load_spec(file, [override])


def test_options_of_nf4_go_with_nf4(file: Path) -> None:
    text = "base: {model: a, quantization: none, quant_storage: bfloat16}\ndata: {source: b}\n"
    assert errors(file, text) == [
        "small.yaml:1: base.quant_storage: an option of base.quantization: nf4, which is none"
    ]
    cached = text.replace("quant_storage: bfloat16", "cache: true")
    assert errors(file, cached) == [
        "small.yaml:1: base.cache: an option of base.quantization: nf4 or int8, which is none"
    ]
    assert load(file, cached.replace("none", "nf4")).base.cache is True
    assert load(file, SMALLEST).base.cache == "auto"
    spec = load(file, text.replace("none", "nf4").replace("quant_storage: bfloat16", "double_quantization: true"))
    assert spec.base.quantized_as == "nf4-double"
    assert load(file, SMALLEST).base.quantized_as == "nf4"


def population(trials="4", space="dropout: [0.0, 0.1]", more="", scheduler="", train="", name="pbt"):
    search = f"search: {{trials: {trials}, space: {{{space}}}{more}}}\n"
    return f"{SMALLEST}{search}scheduler: {{name: {name}{scheduler}}}\ntrain: {{{train}}}\n"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"scheduler": ", interval: 12"},
            "scheduler.interval: 12 is between evaluations, which come every 8 steps (train.eval_every); "
            "give a multiple of it, such as 16",
        ),
        (
            {"scheduler": ", interval: 32"},
            "scheduler.interval: 32 leaves no step after the first rung; give less than train.steps 32",
        ),
        (
            {"space": "rank: [4, 8]"},
            "search.space: pbt moves learning_rate, weight_decay, dropout, max_grad_norm: give one of them an axis",
        ),
        ({"trials": "1"}, "search.trials: pbt compares trials; give at least 2"),
        (
            {"more": ", hours: 2"},
            "search.hours: all trials of pbt begin at once, so that none can be left out; leave it out",
        ),
        ({"train": "eval_every: epoch"}, "train.eval_every: pbt compares trials at steps; give a number of steps"),
        (
            {"train": "stages: [{until: 8, dropout: 0.1}]"},
            "train.stages: the stages of a trial are what pbt makes; leave them out",
        ),
    ],
)
def test_what_a_population_cannot_have(file: Path, changed: dict[str, str], said: str) -> None:
    assert load(file, population()).scheduler.interval == 8
    [line] = errors(file, population(**changed))
    assert line.partition(": ")[2] == said
    [line] = errors(file, population(**changed, name="pb2"))
    assert line.partition(": ")[2] == said.replace("pbt", "pb2")


@pytest.mark.parametrize(
    ("train", "interval"),
    [("steps: 8, eval_every: 4", 4), ("steps: 12, eval_every: 4", 8), ("steps: 100, eval_every: 10", 10)],
)
def test_the_interval_fits_what_was_given(file: Path, train: str, interval: int) -> None:
    assert load(file, population(train=train)).scheduler.interval == interval
