"""One trial never costs another: a trial that cannot be trained fails alone, and all others end with the losses of an
undisturbed sweep (float64, 1e-9). Each fault is done for real, in packs on Ray (`tests/helpers/culprits`).
"""

import json

import contract
import pytest
from commands import command_line, save_tokenizer, spec_writer
from faults import changed_by, events, results

RANKS = [7, 2, 3, 4, 5, 6]
"""Of the trials, in their order. The widest is no culprit: by it a pack measures, at its start, what fits."""
TRIALS = {
    "train": {"steps": 12, "eval_every": 4, "batch_size": 2, "dtype": "float64"},
    "search": {"trials": 6, "sampler": "grid", "space": {"rank": RANKS}},
    "resources": {"slots": 6},
}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


def write(write_spec, float64_base, name="quick", **sections):
    given = {key: {**TRIALS.get(key, {}), **sections.get(key, {})} for key in TRIALS.keys() | sections.keys()}
    return write_spec(name, base={"model": str(float64_base), "quantization": "none"}, **given)


@pytest.fixture(scope="module")
def undisturbed_trials(tmp_path_factory, float64_base, arithmetic, tiny_base):
    folder = tmp_path_factory.mktemp("undisturbed")
    with command_line() as bitlora:
        ended = bitlora("sweep", write(spec_writer(folder, tiny_base, arithmetic), float64_base))
    assert ended.code == 0, ended.err
    return results(folder / "quick")


def held(folder, undisturbed, failed):
    """All but those that `failed` (trial -> why) ended as they would have without them."""
    found = results(folder)
    ended = {trial: (record["status"], record["reason"]) for trial, (record, _) in found.items()}
    assert {trial: status for trial, (status, _) in ended.items()} == {
        trial: "failed" if trial in failed else "completed" for trial in undisturbed
    }
    for trial, why in failed.items():
        assert why in ended[trial][1]
    for trial in undisturbed.keys() - failed.keys():
        record, lines = undisturbed[trial]
        assert found[trial][0]["eval_loss"] == pytest.approx(record["eval_loss"], rel=1e-9, abs=0)
        for line, other in zip(found[trial][1], lines, strict=True):
            assert line == pytest.approx(other, rel=1e-9, abs=0)
    contract.holds(folder)
    return found


def test_layers_that_raise(bitlora, write_spec, tmp_path, float64_base, undisturbed_trials):
    """At the first step, at the seventh, and beyond one row, all in one pack: the last is trained row by row, and ends."""
    changed_by(bitlora.env, BITLORA_CULPRIT="4:7:raise 5:1:raise 6:1:rows")
    ended = bitlora("sweep", write(write_spec, float64_base))
    assert ended.code == 3, ended.err
    said = "at step {0}: RuntimeError: the culprit, at step {0}"
    found = held(tmp_path / "quick", undisturbed_trials, {"t0003": said.format(7), "t0004": said.format(1)})
    assert [len(found[trial][1]) for trial in ("t0003", "t0004", "t0005")] == [1, 0, 3]
    assert len(events(tmp_path / "quick")) == 1  # one pack did it all


@pytest.mark.slow
@pytest.mark.parametrize(("culprit", "workers", "trials"), [("4:7:exit", 1, 4), ("2:1:exit", 2, 2)])
def test_a_layer_that_ends_its_process(
    bitlora, write_spec, tmp_path, float64_base, undisturbed_trials, culprit, workers, trials
):
    """The culprit is the last of the trials; the first ones of a grid are the same whatever its size."""
    changed_by(bitlora.env, BITLORA_CULPRIT=culprit)
    search = {"trials": trials, "space": {"rank": RANKS[:trials]}}
    resources = {"workers_per_pack": workers, "slots": trials}
    ended = bitlora("sweep", write(write_spec, float64_base, search=search, resources=resources), timeout=380)
    assert ended.code == 3, ended.err
    same = dict(list(undisturbed_trials.items())[:trials])
    held(tmp_path / "quick", same, {f"t{trials - 1:04d}": "its pack was lost: a worker of the pack died"})


@pytest.mark.slow
def test_rows_beyond_a_sliding_window(bitlora, write_spec, tmp_path, arithmetic):
    """Four trials over a base with a window of 32, and one row of 40 tokens, which two of them never meet."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    base = tmp_path / "window"
    config = MistralConfig(
        vocab_size=save_tokenizer(base), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=32, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(base)
    rows = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(8) for b in range(8)]
    text = [json.dumps(row) + "\n" for row in [{"prompt": "1" * 20, "completion": "1"}, *rows]]
    data, held_out = tmp_path / "rows.jsonl", tmp_path / "eval.jsonl"
    data.write_text("".join(text))
    held_out.write_text("".join(text[1:9]))
    path = write_spec(
        "quick",
        base={"model": str(base)},
        data={"source": str(data), "eval_source": str(held_out)},
        train={"steps": 6, "eval_every": 2},
        search={"trials": 4, "sampler": "grid", "space": {"batch_size": [1, 32], "rank": [4, 8]}},
        resources={"slots": 4},
    )
    ended = bitlora("sweep", path)
    assert ended.code == 0, ended.err
    found = {trial: record for trial, (record, _) in results(tmp_path / "quick").items()}
    assert {record["status"] for record in found.values()} == {"completed"}
    assert len(found) == 4


@pytest.mark.slow
def test_memory_that_a_large_batch_breaks_and_a_small_one_does_not(bitlora, write_spec, tmp_path, float64_base):
    """A cap on the packs' address space: what does not fit at once is trained in parts, to the same numbers."""
    data = tmp_path / "long.jsonl"
    words = ["".join(chr(97 + number * place % 26) for place in range(200)) for number in range(80)]
    rows = [{"prompt": f"{number}: ", "completion": word} for number, word in enumerate(words)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "data": {"source": str(data), "max_length": 256, "eval_rows": 4},
        "train": {"steps": 3, "eval_every": 3},
        "search": {"trials": 2, "space": {"batch_size": [4, 32]}},
        "resources": {"slots": 4},
    }
    found = {}
    for name, memory in (("free", None), ("capped", "200")):
        bitlora.env |= {"RAY_TMPDIR": bitlora.env["RAY_TMPDIR"], "OMP_NUM_THREADS": "2"}
        if memory:
            changed_by(bitlora.env, BITLORA_MEMORY=memory)
        ended = bitlora("sweep", write(write_spec, float64_base, name, **sections))
        found[name] = results(tmp_path / name)
        assert ended.code == 0, (ended.err, found)
    for trial, (record, _) in found["free"].items():
        assert found["capped"][trial][0]["eval_loss"] == pytest.approx(record["eval_loss"], rel=1e-9, abs=0)
    said = {name: [e["event"] for pack in events(tmp_path / name) for e in pack] for name in found}
    planned = {name: [event for event in said[name] if event.startswith("memory: ")] for name in said}
    assert all(" and passes of " in event and "ulimit -v" in event for event in planned["capped"]), planned
    assert all(" and whole steps " in event for event in planned["free"]), planned
    assert planned["capped"]
    assert planned["free"]
    # It was known before the first step, which therefore never raised.
    assert not [event for name in said for event in said[name] if "at most" in event]
    for name in found:
        contract.holds(tmp_path / name)
        assert [*json.loads((tmp_path / name / "memory.json").read_text())]
