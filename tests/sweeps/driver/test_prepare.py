"""What is known of a sweep before Ray starts."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bitlora import timeouts
from bitlora.base.info import BaseInfo, LayerShape
from bitlora.files.record import Record, write_record
from sweeps.driver import meanwhile
from sweeps.driver.meanwhile import ReadingBar
from sweeps.driver.prepare import Prepared, _misses, with_earlier
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.spec.spec import dump_spec, load_spec

SPACE = {
    "quantizer": ["none", "ternary"],
    "rank": {"by": "quantizer", "none": [4, 64], "default": {"low": 8, "high": 16}},
    "batch_size": [2, 32, 8],
    "learning_rate": {"low": 1e-4, "high": 1e-3},
}


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, {"rank": 16, "batch_size": 4, "quantizer": "none", "activations": "full", "dropout": 0.25}),
        (SPACE, {"rank": 64, "batch_size": 32, "quantizer": "ternary", "dropout": 0.25}),
        (
            {"activations": ["int8", "full"], "quantizer": ["double_binary", "none", "int4"], "dropout": [0.0, 0.5]},
            {"activations": "int8", "quantizer": "double_binary", "dropout": 0.5, "rank": 16},
        ),
    ],
)
def test_the_widest_trial_takes_the_most_of_each_axis(write_spec, space, expected):
    spec = load_spec(
        write_spec("quick", search={"space": space}, train={"batch_size": 4}, adapter={"dropout": 0.25, "rank": 16})
    )
    prepared = Prepared(None, SimpleNamespace(train=range(100)))
    found = prepared.widest(spec).model_dump()
    assert {axis: found[axis] for axis in expected} == expected


def shown(monkeypatch, terminal, seconds):
    """What is written when it is told at these seconds that 1,000 more rows are read."""
    clock = iter([0.0, *seconds])
    monkeypatch.setattr(meanwhile.time, "monotonic", lambda: next(clock))
    output = io.StringIO()
    bar = ReadingBar(Console(file=output, force_terminal=terminal, width=100))
    for number, _ in enumerate(seconds, 1):
        bar.told(1000 * number, number / 10 if number < 5 else None)
    bar.end()
    return output.getvalue()


def test_in_a_file_it_is_a_line_now_and_then(monkeypatch):
    assert timeouts.READING_LINE_S <= 15
    assert shown(monkeypatch, False, [1, 9, 11, 12, 22]).splitlines() == [
        "[    11 s] reading data: 3,000 rows, 30% of the data",
        "[    22 s] reading data: 5,000 rows",
    ]
    assert shown(monkeypatch, False, [1, 2, 3]) == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    output = io.StringIO()
    bar = ReadingBar(Console(file=output, force_terminal=True, width=100))
    bar.told(12000, 0.25)
    bar.end()
    assert "12,000 rows" in output.getvalue()
    assert "25%" in output.getvalue()


def over_layers(write_spec, space, **sections):
    """A spec and what is known of a base of two blocks, whose `base.targets` is the attention."""
    names = [
        f"model.layers.{at}.{part}" for at in (0, 1) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    shapes = tuple(LayerShape(name, 8, 4) for name in names)
    info = BaseInfo("base", "none", "1", shapes, tuple(name for name in names if "attn" in name), 96, 1000)
    return load_spec(write_spec("quick", search={"space": space}, **sections)), info


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({}, {"self_attn.q_proj": 4, "self_attn.v_proj": 4}),
        ({"rank": [2, 8]}, {"self_attn.q_proj": 8, "self_attn.v_proj": 8}),
        ({"targets": ["q_proj", ["up_proj"]]}, {"self_attn.q_proj": 4, "mlp.up_proj": 4}),
        ({"targets": ["q_proj", "mlp in layers 0-1"], "rank": [2, 3], "rank_pattern": [{}, {"q_proj": 9}]},
         {"self_attn.q_proj": 9, "mlp.up_proj": 3}),
        ({"rank_pattern": [{"q_proj": 1}, {"v_proj": 16}]}, {"self_attn.q_proj": 4, "self_attn.v_proj": 16}),
    ],
)  # fmt: skip
def test_the_widest_adapter_has_in_each_layer_the_most_of_any(write_spec, space, expected):
    """In a pack trials on different layers stand beside each other, and a slot has room for all of them."""
    spec, info = over_layers(write_spec, space, adapter={"rank": 4})
    widest = Prepared(info, SimpleNamespace(train=range(100))).widest(spec)
    found = {layer.name: layer.rank for layer in info.layers(widest)}
    assert found == {f"model.layers.{at}.{part}": rank for at in (0, 1) for part, rank in expected.items()}


def test_targets_and_patterns_that_match_nothing_are_said_before_anything_starts(write_spec):
    spec, info = over_layers(
        write_spec,
        {"targets": ["attention", ["q_porj"], "mlp in layers 2-3"], "rank_pattern": [{}, {"down_proj": 2}]},
        adapter={"alpha_pattern": {"v_porj": 3}},
    )
    assert _misses(spec, info) == [
        "search.space.targets: 'mlp in layers 2-3' matches no linear layer of the base: its blocks are 0 to 1",
        "search.space.targets: 'q_porj' matches no linear layer of the base; did you mean q_proj?",
        "search.space.rank_pattern: 'down_proj' matches no linear layer of the base",
        "adapter.alpha_pattern: 'v_porj' matches no linear layer of the base",
    ]


def test_earlier_sweeps_are_read_with_base_and_data(write_spec, tmp_path):
    """The trials of one that is there are kept beside them; what is wrong with another is said."""
    there = tmp_path / "there"
    for name, given in (("there", []), ("now", [str(there)]), ("lost", [str(tmp_path / "nowhere")])):
        spec, info = over_layers(write_spec, {"rank": [4, 8]})
        spec = spec.model_copy(update={"search": spec.search.model_copy(update={"from_": given})})
        summary = SimpleNamespace(fingerprint="rows")
        prepared = Prepared(info, SimpleNamespace(train=range(100), summary=summary))
        if name == "there":
            config = prepared.trial(spec, {"rank": 8}).model_dump(mode="json")
            (there / "trials" / "t0000").mkdir(parents=True)
            (there / "sweep.yaml").write_text(dump_spec(spec))
            base = {"model": "base", "quantization": info.quantization, "revision": info.revision}
            counts = {"steps": 8, "tokens": 1, "seconds": 1.0, "adapter_params": 1, "adapter_bytes": 1}
            write_record(
                there / "trials" / "t0000",
                Record(trial_id="t0000", status="completed", reason="", config=config, eval_loss=2.5, **counts,
                       base=base, data={"fingerprint": "rows"}, versions={}, test_loss=None),
            )  # fmt: skip
            assert with_earlier(spec, prepared) == prepared
        elif name == "now":
            assert with_earlier(spec, prepared).earlier == (EarlierTrial({"rank": 8}, 2.5),)
        else:
            assert with_earlier(spec, prepared) == [
                f"search.from: {tmp_path / 'nowhere'}: there is no sweep; give the folder of one, with its sweep.yaml"
            ]
