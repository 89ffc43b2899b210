"""Storages in an S3 server of the tests' own (`s3.py`)."""

import os

import pytest
import s3
import torch

torch.set_num_threads(1)
"""The matrices here are so small that a second thread costs more than it gives, many times as much on a busy machine."""


@pytest.fixture(scope="session")
def running():
    with s3.serve_s3() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch, tmp_path):
    """The server without faults; this process's environment leads to it alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**running.env, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    running.fault = None
    running.requests.clear()
    yield running
    running.fault = None


@pytest.fixture
def out(server):
    """A place in a bucket of its own."""
    return f"s3://{server.make_bucket('b')}/sweeps/one"


@pytest.fixture
def opened(tmp_path):
    """Opens storages, each with a scratch folder of its own, and closes them."""
    from bitlora.files.opening import open_storage

    kept = []

    def open_one(out):
        kept.append(open_storage(out, tmp_path / f"scratch-{len(kept)}"))
        return kept[-1]

    yield open_one
    for one in kept:
        one.close()


@pytest.fixture
def write():
    """Writes files below a folder, by their names, in which `__` stands for `/` and `_` for `.`."""

    def write_files(folder, **contents):
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return write_files
