"""What trials are measured by beside their loss, against numbers written out by hand."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlora.base.load import load_tokenizer
from bitlora.config.metrics import GenerationConfig, MetricConfig
from bitlora.config.sections import BaseConfig, DataConfig
from bitlora.data.rows import Rows
from bitlora.data.split import prepare_data, with_sets
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base
from sweeps.pack.bare import BARE
from sweeps.pack.measuring.measures import Measures, asked_of, right_choices, unmeasurable
from sweeps.pack.user_function import ScoringError, find_function, packed, scored, unpacked


def made(rows):
    """Rows of (tokens, learned places), each with its group."""
    tokens = np.concatenate([np.array(own, np.int32) for own, _, _ in rows])
    learn = np.concatenate([np.isin(np.arange(len(own)), at) for own, at, _ in rows])
    ends = np.cumsum([0, *(len(own) for own, _, _ in rows)])
    ids = tuple(f"r{number}" for number in range(len(rows)))
    return Rows(tokens, learn, ends, ids, np.full(len(rows), 1), tuple(group for *_, group in rows))


def test_a_row_is_asked_for_its_last_completion():
    rows = made([([5, 6, 7, 8], [2, 3], "a"), ([5, 6, 7, 8, 9, 4], [1, 4], "b")])
    assert asked_of(rows) == [([5, 6], [7, 8]), ([5, 6, 7, 8], [9])]


def test_the_right_choice_is_the_likeliest_in_sum_or_per_token():
    rows = made([([1, 2, 3], [1, 2], "q"), ([1, 4], [1], "q"), ([1, 2], [1], "p"), ([1, 3], [1], "p")])
    losses = [3.0, 2.0, 0.5, 0.7]  # the first question's right one is two tokens of 1.5 each
    assert right_choices(rows, losses, "sum") == [0, 1]
    assert right_choices(rows, losses, "token") == [1, 1]
    assert right_choices(rows, [2.0, 2.0, 0.7, 0.7], "sum") == [0, 0]  # as likely is not likelier


FUNCTION = """
def length(prompts, references, outputs):
    return [len(output) for output in outputs]

def few(prompts, references, outputs):
    return [1.0]

def nan(prompts, references, outputs):
    return [float("nan") for _ in outputs]

def breaks(prompts, references, outputs):
    raise KeyError("no such answer")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


def test_a_users_function_travels_with_its_module(module):
    sent = packed(f"{module}:length")
    del sys.modules[module]
    (find_function.__globals__["Path"].cwd() / f"{module}.py").unlink()
    assert scored("it", unpacked(sent), ["p"] * 2, ["r"] * 2, ["abc", ""]) == [3.0, 0.0]
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("few", "gave 1 numbers for 2 rows; give one for each"),
        ("nan", "gave nan for row 1; give finite numbers"),
        ("breaks", "raised KeyError: 'no such answer'"),
    ],
)
def test_what_a_users_function_gives_is_looked_at(module, name, said):
    with pytest.raises(ScoringError) as caught:
        scored(f"{module}:{name}", find_function(f"{module}:{name}"), ["p"] * 2, ["r"] * 2, ["o"] * 2)
    assert str(caught.value) == f"{module}:{name}: {said}"


def test_a_function_that_is_not_there_is_said_before_anything_starts(module, tiny_base):
    rows, tokenizer = made([([65, 66, 67], [2], "a")]), load_tokenizer(str(tiny_base))

    def said(kind):
        return unmeasurable({"mine": MetricConfig(kind=kind)}, rows, tokenizer)

    assert said(f"{module}:length") == []
    (line,) = said(f"{module}:lenght")
    assert line.startswith(f"metrics.mine: {module}:lenght: {module} has no function lenght")
    (line,) = said("no_such_module:f")
    assert (
        line
        == "metrics.mine: no_such_module:f: cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert said(f"{module}:nan") == [f"metrics.mine: {module}:nan: gave nan for row 1; give finite numbers"]
    plain = made([([65, 66, 67], [1, 2], "a")])
    (line,) = unmeasurable({"exact": MetricConfig(kind="exact_match")}, plain, tokenizer)
    assert line == "metrics.exact: the eval rows are plain texts, in which nothing asks for an answer"


def test_all_metrics_of_a_base_are_those_of_stock_transformers(tiny_base, tmp_path, module):
    """The base alone (its adapter is zero): every number again from transformers' own logits and `generate`."""
    from transformers import AutoModelForCausalLM

    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{n}+1=", "completion": "{n + 1}"}}\n' for n in range(40))
    )
    (tmp_path / "which.jsonl").write_text(
        "".join(f'{{"question": "{n}+1=", "choices": ["{n}", "{n + 1}", "x"], "answer": 1}}\n' for n in range(5))
    )
    config = DataConfig(
        source=str(tmp_path / "rows.jsonl"),
        max_length=64,
        eval_rows=4,
        eval_sets={"which": str(tmp_path / "which.jsonl"), "more": str(tmp_path / "rows.jsonl")},
    )
    metrics = {
        "hits": MetricConfig(kind="token_accuracy"),
        "exact": MetricConfig(kind="exact_match"),
        "mine": MetricConfig(kind=f"{module}:length"),
        "picked": MetricConfig(kind="choice_accuracy", set="which", by="token"),
        "more": MetricConfig(kind="perplexity", set="more"),
    }
    tokenizer = load_tokenizer(str(tiny_base))
    dataset = with_sets(prepare_data(config, tokenizer), config, metrics, tokenizer)
    assert [len(dataset.sets[name]) for name in ("picked", "more")] == [12, 4]
    base = load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, torch.device("cpu"))
    settings = SimpleNamespace(
        metrics=metrics,
        generation=GenerationConfig(max_tokens=5),
        dataset=dataset,
        functions={"mine": packed(f"{module}:length")},
        base=SimpleNamespace(model=str(tiny_base), revision=None),
    )
    engine = Engine(base, 1)
    slot = engine.attach(BARE)
    measures = Measures.of(settings, base)
    result = engine.evaluate([slot], Batch.of(dataset.eval), hits=measures.hits)
    found = measures.measure(engine, result, dataset.eval)[slot]
    assert not found.failed

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()

    def logs(rows):
        """Of each row the log-probabilities at its learned places, and its targets."""
        for first, last in zip(rows.offsets, rows.offsets[1:], strict=False):
            tokens, learn = torch.tensor(rows.tokens[first:last]).long(), torch.tensor(rows.learn[first:last])
            with torch.no_grad():
                scores = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            yield scores[:-1][learn[1:]], tokens[learn]

    hits = [int((scores.argmax(-1) == targets).sum()) for scores, targets in logs(dataset.eval)]
    assert found.columns["hits"] == hits
    assert found.values["hits"] == sum(hits) / int(dataset.eval.learn.sum())
    outputs = []
    for prompt, _ in asked_of(dataset.eval):
        written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)
        outputs.append(tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True))
    assert found.columns["mine"] == [len(output) for output in outputs]
    assert found.values["mine"] == sum(map(len, outputs)) / 4
    assert found.columns["exact"] == [0.0] * 4  # an untrained base knows no sums
    means = [float(-scores.gather(1, targets[:, None]).mean()) for scores, targets in logs(dataset.sets["picked"])]
    right = [min(means[at : at + 3]) == means[at] for at in range(0, 12, 3)]
    assert found.values["picked"] == sum(right) / 4
    sums = [
        (float(-scores.gather(1, targets[:, None]).sum()), len(targets))
        for scores, targets in logs(dataset.sets["more"])
    ]
    expected = math.exp(sum(loss for loss, _ in sums) / sum(count for _, count in sums))
    assert found.values["more"] == pytest.approx(expected, rel=1e-5)


def test_an_output_ends_at_a_stop_text(tiny_base):
    measures = Measures({}, GenerationConfig(stop=["\n", "##"]), {}, {}, load_tokenizer(str(tiny_base)), frozenset())
    assert measures._cut("one ## two\nthree") == "one "
    assert measures._cut("one") == "one"
