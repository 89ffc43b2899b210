"""A sweep as a job of a cluster, as far as it goes without one: what travels, and what is refused."""

import shutil

import pytest
import s3
from typer.testing import CliRunner

from bitlora.files.opening import open_storage
from sweeps.cli.app import app
from sweeps.cli.job import DRIVER, bundle
from sweeps.driver import run
from sweeps.driver.kept import keep, places, source_file
from sweeps.driver.prepare import prepare
from sweeps.spec.spec import dump_spec, load_spec


def test_local_data_travels_under_its_name(write_spec, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/rows.jsonl", "b/rows.jsonl", "b/eval.jsonl"):
        (tmp_path / name).write_text(f"{name}\n")
    source = [
        str(tmp_path / "a/rows.jsonl"),
        "pydoc",
        "owner/rows",
        "/on/the/cluster.jsonl",
        str(tmp_path / "b/rows.jsonl"),
    ]
    path = write_spec(data={"source": source, "eval_source": str(tmp_path / "b/eval.jsonl")}, train={"steps": 5})
    folder = tmp_path / "job"
    folder.mkdir()
    assert bundle(load_spec(path, ["out=/mnt/x", "train.eval_every=5"]), folder) == []
    spec = load_spec(folder / "spec.yaml")
    # The names stay, and what was there under them is beside the spec.
    assert spec.data.source == source
    assert spec.data.eval_source == str(tmp_path / "b/eval.jsonl")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b/rows.jsonl").write_text("the cluster's own, by chance under the same path\n")
    found, said = places(spec.data, folder)
    assert {name: path.read_text() for name, path in found.items()} == {
        source[0]: "a/rows.jsonl\n",
        source[4]: "b/rows.jsonl\n",
    }
    assert {path.parent for path in found.values()} == {folder / "data"}
    assert [line.partition(" is another file")[0] for line in said] == [source[4]]
    # The rest is the spec as it was, overrides applied.
    assert spec.name == "quick"
    assert (spec.out, spec.train.steps, spec.train.eval_every) == ("/mnt/x", 5, 5)


def test_a_sweep_that_goes_on_may_have_the_files_in_its_folder(write_spec, tmp_path):
    spec = load_spec(write_spec(data={"source": ["none.jsonl"]}))
    assert len(bundle(spec, tmp_path)) == 1
    for resume in ("always", "auto"):
        assert bundle(spec, tmp_path, resume) == []
    assert load_spec(tmp_path / "spec.yaml").data.source == ["none.jsonl"]


def test_a_job_reads_what_travelled_and_a_sweep_that_goes_on_its_copies(write_spec, arithmetic, tmp_path, monkeypatch):
    """By the command itself, from folders in which the file is not there: on a disk and in object storage."""
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(arithmetic.parent)
        path = write_spec(data={"source": arithmetic.name})
        spec = load_spec(path)
        read = []

        def run_sweep(spec, prepared, *_):
            read.append((spec.data.source, prepared.dataset.summary.fingerprint, prepared.dataset.summary.files))
            return 0

        def here(spec, meanwhile, places, _):  # five processes more would import torch once more each
            return prepare(spec, places=places, here=True)

        monkeypatch.setattr(run, "run_sweep", run_sweep)
        monkeypatch.setattr("sweeps.driver.prepare.prepare", here)
        (job := tmp_path / "job").mkdir()
        assert bundle(spec, job) == []
        bucket = f"s3://{server.make_bucket('sweeps')}/quick"
        for out in (bucket, str(tmp_path / "begun")):
            with open_storage(out) as storage:
                keep([source_file(arithmetic.name)], storage.folder)
                (storage.folder / "sweep.yaml").write_text(dump_spec(spec))
                storage.push("data", "sweep.yaml")
        options = ["sweep", str(path), "--out"]
        assert CliRunner().invoke(app, [*options, str(tmp_path / "new")]).exit_code == 0
        monkeypatch.chdir(job)
        assert CliRunner().invoke(app, ["sweep", "spec.yaml", "--out", str(tmp_path / "new")]).exit_code == 0
        monkeypatch.chdir(tmp_path)
        without = CliRunner().invoke(app, [*options, str(tmp_path / "new")])
        assert without.exit_code == 2
        assert f"{arithmetic.name}: no such file" in without.output
        for out in (bucket, str(tmp_path / "begun")):
            ended = CliRunner().invoke(app, [*options, out, "--resume"])
            assert ended.exit_code == 0, ended.output
    assert [source for source, *_ in read] == [arithmetic.name] * 4
    assert len({fingerprint for _, fingerprint, _ in read}) == 1
    assert [files[0].path for *_, files in read] == [
        arithmetic,
        job / "data" / f"0-{arithmetic.name}",
        read[2][2][0].path,
        tmp_path / "begun" / "data" / f"0-{arithmetic.name}",
    ]


def lines(ended):
    return [line for line in ended.err.splitlines() if not line.startswith("reading base and data")]


def test_what_cannot_travel_is_said_at_once_and_together(bitlora, write_spec, tmp_path, tiny_base):
    spec = write_spec(base={"model": "tiny"}, data={"source": ["none.jsonl"]})
    args = ("--address", "http://127.0.0.1:1", "--out", "runs/x")
    ended = bitlora("sweep", spec, *args, cwd=tiny_base.parent)
    assert ended.code == 2
    out, base, data = lines(ended)
    assert out.startswith(f"{spec}: out: runs/x would lie in the job's own folder")
    assert "an absolute path on storage that every node sees, or s3://" in out
    assert base.startswith(f"{spec}: base.model: tiny is a folder of this machine")
    assert data.startswith(f"{spec}: data.source: none.jsonl: no such file")
    ended = bitlora("sweep", write_spec(train={"stepz": 1}), *args)
    assert ended.code == 2
    assert len(lines(ended)) == 1
    assert "train.stepz: unknown key" in ended.err


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1:99999", "ray://a:1"]
)
def test_a_job_server_out_of_reach_is_one_line(bitlora, write_spec, address):
    ended = bitlora("sweep", write_spec(), "--address", address)
    assert ended.code == 2
    assert len(lines(ended)) == 1, ended.err
    assert ended.err.startswith(f"--address: submitting to {address} ")
    assert ended.seconds < 10


def test_a_job_server_in_the_environment_is_one_too(bitlora, write_spec):
    bitlora.env["RAY_ADDRESS"] = "http://127.0.0.1:1"
    ended = bitlora("sweep", write_spec(), "--out", "/mnt/none")
    assert ended.code == 2
    assert ended.err.startswith("--address: submitting to http://127.0.0.1:1 failed: ")
    assert len(ended.err.splitlines()) == 1


def test_a_relative_folder_in_a_job_is_refused(bitlora, write_spec, tmp_path):
    bitlora.env[DRIVER] = "{}"
    spec = write_spec()
    ended = bitlora("sweep", spec, "--set", "out=null", cwd=tmp_path)
    assert ended.code == 2
    assert len(lines(ended)) == 1, ended.err
    assert lines(ended)[0].startswith(
        f"{spec}: out: runs/quick would lie in the job's own folder, which goes when the job"
    )
    assert not (tmp_path / "runs").exists()
