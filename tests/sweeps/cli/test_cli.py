"""The command line: what it answers at once, what it refuses, and that it then has started and written nothing."""

import io
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from bitlora.base.eight_bits import WholeInputLinear
from bitlora.base.info import BaseInfo, LayerShape
from sweeps.cli.doctor import examine
from sweeps.cli.plan import _packs, draw, make_plan
from sweeps.cli.plan_memory import Calibration
from sweeps.driver.prepare import Prepared
from sweeps.spec.spec import load_spec

PYTHON = [sys.executable, "-m", "sweeps"]


def quickest(command, times=3):
    """Seconds of the fastest of a few runs, and the last run."""
    best = float("inf")
    for _ in range(times):
        began = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        best = min(best, time.monotonic() - began)
    return best, ended


@pytest.mark.parametrize("args", [["--help"], ["sweep", "--help"], ["sweep", "nowhere.yaml"]])
def test_answers_within_a_second(args):
    seconds, ended = quickest([*PYTHON, *args])
    assert seconds < 1.0
    assert ended.returncode == (2 if "nowhere.yaml" in args else 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "rows.jsonl:2: not JSON"),
        ('{"a": 1}\n' * 3000, "no known shape"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_within_two_seconds(rows, said, write_spec, tmp_path, tiny_base):
    data = tmp_path / "rows.jsonl"
    if rows is not None:
        data.write_text(rows)
    seconds, ended = quickest([*PYTHON, "plan", str(write_spec(data={"source": str(data)}))])
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) <= 22
    assert seconds < 2.0


def test_a_folder_that_holds_no_model_is_said_within_two_seconds(write_spec, tmp_path):
    seconds, ended = quickest([*PYTHON, "plan", str(write_spec(base={"model": str(tmp_path)}))])
    assert (ended.returncode, "holds no config.json, so no model" in ended.stderr) == (2, True)
    assert seconds < 2.0


def test_a_wrong_spec_imports_neither_torch_nor_ray(write_spec):
    spec = write_spec(train={"stepz": 3})
    code = (
        "import sys\n"
        "from sweeps.cli.app import app\n"
        f"sys.argv = ['bitlora', 'sweep', {str(spec)!r}]\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert end.code == 2, end.code\n"
        "print(sorted({'torch', 'ray', 'pandas', 'optuna', 'transformers'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
    assert "train.stepz: unknown key; did you mean steps?" in ended.stderr


def lines(ended):
    return [line for line in ended.err.splitlines() if not line.startswith("reading base and data")]


def test_everything_wrong_with_a_spec_at_once(bitlora, tmp_path):
    spec = tmp_path / "bad.yaml"
    spec.write_text(
        "name: ../away\n"
        "base: {modle: x, quantization: none}\n"
        "data: {source: pydoc}\n"
        "train: {steps: many, weight_decay: -1}\n"
        "search:\n"
        "  space:\n"
        "    rank: []\n"
        "    learning_rate: {low: 1e-2, high: 1e-4}\n"
        "    quantizer: [bianry]\n"
    )
    before = sorted(tmp_path.iterdir())
    ended = bitlora("sweep", spec)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    found = lines(ended)
    assert len(found) == 8, found
    for number, (line, words) in enumerate(
        [
            (1, ["name", "../away"]),
            (2, ["base.model"]),
            (2, ["base.modle", "model"]),
            (4, ["train.steps", "many", "whole number"]),
            (4, ["train.weight_decay", "-1"]),
            (7, ["search.space.rank", "empty"]),
            (8, ["search.space.learning_rate"]),
            (9, ["search.space.quantizer", "bianry", "binary"]),
        ]
    ):
        (hit,) = [x for x in found if all(word in x for word in words) and (line == 2 or f"bad.yaml:{line}:" in x)][:1]
        assert hit, (number, found)
    assert sorted(tmp_path.iterdir()) == before


def test_broken_data_is_named_with_its_line_and_a_missing_base_with_its_neighbour(
    bitlora, write_spec, tmp_path, tiny_base
):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n{"txet": "c"}\n')
    spec = write_spec(base={"model": str(tiny_base.parent / "tini")}, data={"source": str(data)})
    before = sorted(tmp_path.iterdir())
    ended = bitlora("sweep", spec)
    assert ended.code == 2
    found = lines(ended)
    assert len(found) == 3, found
    assert f"did you mean {tiny_base}?" in found[0]
    assert f"{data}:2" in found[1]
    assert f"{data}:3" in found[2]
    assert sorted(tmp_path.iterdir()) == before


def test_data_and_output_are_refused_together(bitlora, write_spec, tmp_path):
    (tmp_path / "quick").write_text("a file")
    ended = bitlora("sweep", write_spec(data={"source": str(tmp_path / "rows.jsonl")}))
    assert ended.code == 2
    assert len(lines(ended)) == 2
    assert "quick: cannot be written: Not a directory; give a folder that can" in ended.err
    assert "rows.jsonl" in ended.err


def test_a_target_that_matches_nothing(bitlora, write_spec):
    ended = bitlora("sweep", write_spec(base={"targets": ["q_porj"]}))
    assert ended.code == 2
    assert "base.targets: 'q_porj' matches no linear layer" in ended.err
    assert "did you mean q_proj?" in ended.err


def test_a_hub_out_of_reach_is_told_apart(bitlora, write_spec):
    bitlora.env["HF_HUB_OFFLINE"] = "1"
    ended = bitlora("plan", write_spec(base={"model": "owner/some-model"}))
    assert ended.code == 2
    assert "the hub cannot be reached, and owner/some-model is not in its local cache" in ended.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--address", "ray://127.0.0.1:10001"], "--address: submitting to"),
        (["--set", "adapter.init=eva"], "eva is not available: it gives each layer"),
        (
            ["--set", "base.llm_int8_threshold=6"],
            "base.llm_int8_threshold=6: not available: packs leave the inputs of 8-bit",
        ),
        (["--set", "adapter.use_dora=true"], "adapter.use_dora"),
        (["--set", "resources.gpus_per_worker=2"], "resources.gpus_per_worker"),
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(bitlora, write_spec, args, said):
    ended = bitlora("sweep", write_spec(), *args)
    assert ended.code == 2
    assert len(lines(ended)) == 1
    assert said in ended.err


def test_a_folder_that_holds_a_sweep_is_not_written_over(bitlora, write_spec, tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "sweep.yaml").write_text("name: old\n")
    ended = bitlora("sweep", write_spec())
    assert ended.code == 2
    assert "already holds a sweep" in ended.err
    assert [p.name for p in (tmp_path / "quick").iterdir()] == ["sweep.yaml"]


def test_plan_says_what_it_takes_and_starts_nothing(bitlora, write_spec, tmp_path):
    spec = write_spec(search={"space": {"rank": [2, 8], "quantizer": ["none", "ternary"]}})
    ended = bitlora("plan", spec)
    assert ended.code == 0, ended.err
    # By hand: per block q, o 64->64; k, v 64->32; gate, up 64->128; down 128->64: in + out = 1,024; two blocks.
    assert "4 trials of at most 8 steps, 2 evaluations each; adapters on 14 layers" in ended.out
    assert "in a pack for each GPU that the cluster has or can start, one on CPUs (resources.packs: auto)" in ended.out
    rows = [line.split() for line in ended.out.splitlines()]
    table = {(row[0], row[1]): row[2:] for row in rows if row[1:2] in (["none"], ["ternary"])}
    header = len('{"weights":{"dtype":"F16","shape":[16384],"data_offsets":[0,32768]}}')
    header = 8 + -(-header // 8) * 8  # its length, and itself padded to words: what a safetensors file begins with
    assert table["8", "none"] == [f"{8 * 2048:,}", f"{2 * 8 * 2048 + header:,}"]
    assert table["2", "ternary"][0] == f"{2 * 2048:,}"
    [memory] = [line for line in ended.out.splitlines() if line.startswith("memory: ")]
    assert "(estimated)" in memory
    assert re.search(r"2 slots and whole steps of \d+ tokens$", memory)
    assert not (tmp_path / "quick").exists()


def test_plan_says_which_adapters_fit(write_spec):
    """At rank 2 there are 48 parameters over the two layers, at rank 8 192; the binary ones have hardly any bytes."""
    search = {"space": {"rank": [2, 8], "quantizer": ["none", "binary"]}, "sampler": "grid"}
    spec = load_spec(write_spec(search={**search, "where": {"adapter_bytes": {"max": 300}}}))
    shapes = tuple(LayerShape(f"model.layers.{at}.self_attn.q_proj", 8, 4) for at in (0, 1))
    info = BaseInfo("base", "none", "1", shapes, tuple(shape.name for shape in shapes), 96, 1000)
    dataset = SimpleNamespace(train=range(100), summary=SimpleNamespace(test_rows=0))
    plan = make_plan(spec, Prepared(info, dataset))
    fits = {(cost.rank, cost.quantizer): (cost.fits, cost.params, cost.bytes) for cost in plan.adapters}
    assert [key for key, (fits, _, _) in fits.items() if not fits] == [(8, "none")]
    assert fits[8, "none"][1] == 192
    assert plan.trials == 3
    console = Console(file=io.StringIO(), width=200)
    draw(console, plan)
    first, *rows = [line.split() for line in console.file.getvalue().splitlines()[2:]]
    assert first[-1] == "search.where"
    assert {(row[0], row[1]): row[-1] for row in rows} == {
        ("2", "none"): "fits",
        ("2", "binary"): "fits",
        ("8", "none"): "trained",  # not
        ("8", "binary"): "fits",
    }


def test_plan_says_what_is_known_of_learning_rates(write_spec):
    shapes = (LayerShape("model.layers.0.self_attn.q_proj", 8, 4),)
    info = BaseInfo("base", "none", "1", shapes, (shapes[0].name,), 96, 1000)
    dataset = SimpleNamespace(train=range(100), summary=SimpleNamespace(test_rows=0))
    said = {}
    for prior in ("auto", "none"):
        search = {"space": {"learning_rate": [1e-3, 2e-3]}, "prior": prior, "sampler": "tpe"}
        console = Console(file=io.StringIO(), width=200)
        draw(console, make_plan(load_spec(write_spec(search=search)), Prepared(info, dataset)))
        lines = console.file.getvalue().splitlines()
        said[prior] = [line for line in lines if line.startswith("search.prior: learning rates around 0.11, ")]
    assert [len(lines) for lines in said.values()] == [1, 0]


def test_plan_lists_the_adapters_that_can_be(write_spec):
    """No full precision of rank 16, where the rank hangs on the quantizer, and none for each granularity."""
    ranks = {"by": "quantizer", "none": [1], "default": [16, 8]}
    space = {"rank": ranks, "quantizer": ["none", "binary"], "granularity": ["tensor", "component"]}
    shape = LayerShape("model.layers.0.self_attn.q_proj", 8, 4)
    info = BaseInfo("base", "none", "1", (shape,), (shape.name,), 96, 1000)
    dataset = SimpleNamespace(train=range(100), summary=SimpleNamespace(test_rows=0))
    plan = make_plan(load_spec(write_spec(search={"space": space})), Prepared(info, dataset))
    found = [(cost.rank, cost.quantizer, cost.granularity) for cost in plan.adapters]
    assert found[0][:2] == (1, "none")
    assert found[1:] == [(rank, "binary", granularity) for rank in (8, 16) for granularity in ("component", "tensor")]


def test_a_space_in_which_nothing_fits_starts_nothing(bitlora, write_spec, tmp_path):
    search = {"space": {"rank": [2, 8]}, "where": {"adapter_params": {"max": "4K"}}}
    ended = bitlora("plan", write_spec(search=search))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[1:] == [
        "search.where: nothing in search.space fits: the smallest (rank: 2) has 4,096 parameters, and adapter_params.max "
        "is 4,000; give more, or smaller adapters"
    ]


def test_plan_measures_what_it_takes_here_and_writes_nothing(bitlora, write_spec, tmp_path):
    spec = write_spec(search={"space": {"rank": [2, 8]}}, resources={"slots": 3, "gpus_per_worker": 0})
    bitlora.env["RAY_ADDRESS"] = "127.0.0.1:1"  # whoever started Ray would end there
    before = sorted(tmp_path.rglob("*"))
    ended = bitlora("plan", spec, "--measure")
    assert ended.code == 0, ended.err
    memory, speed, hours = ended.out.splitlines()[-3:]
    assert re.search(r"^memory: .*\(measured in [\d.]+ s\); in .*, 3 slots and whole steps of", memory)
    assert re.search(r"^speed: [\d,]+ tokens/s; [\d.]+ s for a step of 3 trials, [\d.]+ s to evaluate them$", speed)
    assert re.search(r"^time: [\d.]+ (min|h) in one pack where every trial takes all its steps", hours)
    assert sorted(tmp_path.rglob("*")) == before


def test_hours_are_of_all_steps_and_evaluations_shared_by_the_slots():
    found = Calibration(slots=4, step=3.0, tokens=1.0, evaluation=30.0)
    assert found.hours(12, 100, 5) == pytest.approx((12 / 4) * (100 * 3 + 5 * 30) / 3600)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"packs": 1}, "at most 1 pack"),
        ({"packs": 3}, "at most 3 packs"),
        ({"packs": {"max": 4}}, "0 to 4 packs"),
        ({"gpus_per_worker": 0}, "at most 1 pack"),
        ({"workers_per_pack": 2}, "a pack for every 2 GPUs that the cluster has or can start, one on CPUs"),
    ],
)
def test_plan_says_how_many_packs_there_may_be(write_spec, resources, said):
    assert _packs(load_spec(write_spec(resources=resources))).startswith(said)


def test_doctor(bitlora):
    ended = bitlora("doctor")
    assert ended.code == 0, ended.out
    for what in ("torch", "bitsandbytes", "nf4", "int8", "memory", "packaged weights", "import sweeps"):
        assert what in ended.out


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (None, ("ok", "base.quantization: int8 works on cpu (largest error 0.00")),
        (lambda self, x: x @ self.weight.float(), ("note", "base.quantization: int8 is wrong on cpu (largest error ")),
        (lambda self, x: 1 / 0, ("note", "base.quantization: int8 does not work here: ZeroDivisionError: ")),
    ],
)
def test_doctor_says_whether_bases_in_8_bits_work_here(monkeypatch, breaks, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if breaks is not None:
        monkeypatch.setattr(WholeInputLinear, "forward", breaks)
    (found,) = (each for each in examine() if each.what == "int8")
    assert (found.verdict, found.text[: len(said[1])]) == said


def test_report_of_no_sweep(bitlora, tmp_path):
    ended = bitlora("report", tmp_path)
    assert ended.code == 2
    assert "holds no sweep" in ended.err
    assert ended.out == ""


def test_no_room_and_no_cluster_are_said_before_anything_is_written(bitlora, write_spec, tmp_path):
    ended = bitlora("sweep", write_spec(resources={"gpus_per_worker": 1}))
    assert ended.code == 2, ended.out + ended.err
    assert "resources.gpus_per_worker: a worker asks for 1 GPU" in ended.err
    ended = bitlora("sweep", write_spec(), "--address", "127.0.0.1:1")
    assert ended.code == 2, ended.out + ended.err
    assert "Ray at 127.0.0.1:1 cannot be reached" in ended.err
    assert not (tmp_path / "quick").exists()
