"""`bitlora serve`: the process as its users have it, under load, killed and started again; and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import threading
from pathlib import Path

import httpx
import pytest
import torch
from commands import command_line
from peft import PeftModel
from small_sweep import small_sweep
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bitlora.adapter.peft_folder import save_adapter, save_lora_adapter
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.gauge import Budget
from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.generation.greedy import KEPT_TOKENS
from bitlora.forward.inject import load_base
from bitlora.serving.asking import AskedRow, EngineThread
from sweeps.cli.app import app
from sweeps.cli.serving import keep_values
from sweeps.cli.trial_folder import open_trial

TRIALS = {
    "t0000": {},
    "t0001": {"quantizer": "binary", "rank": 2},
    "t0002": {"quantizer": "ternary", "learning_rate": 5e-2},
    "t0003": {"rank": 8, "alpha": 32.0, "learning_rate": 5e-2},
}
TURNS = [f"{number}+{number + 1}=" for number in range(10)]
AGAIN = 5
"""Times that each of them is asked of each trial: 200 requests."""
MOST = 12
TOKEN = "open-sesame"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, float64_base, arithmetic):
    """In float64: which token is the likeliest hangs on no order of sums. With adapters that say something else each."""
    folder = small_sweep(tmp_path_factory.mktemp("served") / "small", float64_base, arithmetic, TRIALS, dtype="float64")
    for number, place in enumerate(places(folder)):
        torch.manual_seed(number)
        with open_trial(place) as trial:
            random = {
                name: layer.map(lambda part: 0.3 * torch.randn_like(part)) for name, layer in trial.latent.items()
            }
            save_adapter(Path(place) / "adapter", random, trial.config, str(float64_base))
    return folder


def places(sweep):
    return [str(sweep / "trials" / name) for name in TRIALS]


@pytest.fixture(scope="module")
def stock(sweep, float64_base, tmp_path_factory):
    """What transformers' own `generate` makes of each turn, one by one, with the adapter in stock PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(float64_base)
    found = {}
    for name, place in zip(TRIALS, places(sweep), strict=True):
        out = tmp_path_factory.mktemp("stock")
        with open_trial(place) as trial:
            save_lora_adapter(out, trial.latent, trial.config, None)
        model = AutoModelForCausalLM.from_pretrained(float64_base, dtype=torch.float64)
        model = PeftModel.from_pretrained(model, out).to(torch.float64).eval()
        for turn in TURNS:
            text = f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            made = model.generate(**ids, do_sample=False, max_new_tokens=MOST, pad_token_id=0)
            found[name, turn] = tokenizer.decode(made[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    return found


@contextlib.contextmanager
def serving(sweep, *options, token=TOKEN):
    """The process; its address."""
    with command_line() as command:
        command.env.pop("BITLORA_TOKEN", None)
        command.env.update({"BITLORA_TOKEN": token} if token else {}, OMP_NUM_THREADS="1")
        process = command.start("serve", *places(sweep), "--port", "0", *options)
        try:
            line = process.stdout.readline()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1 answers as t0000, t0001, t0002, t0003\n", line), line
            yield process, line.partition("/v1")[0]
        finally:
            process.kill()
            process.communicate()


def body(name, turn, **more):
    return {"model": name, "messages": [{"role": "user", "content": turn}], "max_tokens": MOST, **more}


async def _ask_all(address, asked):
    limits = httpx.Limits(max_connections=len(asked))
    async with httpx.AsyncClient(base_url=address, headers=BEARER, limits=limits, timeout=120) as client:

        async def one(name, turn, stream):
            response = await client.post("/v1/chat/completions", json=body(name, turn, stream=stream))
            assert response.status_code == 200, response.text
            if not stream:
                return response.json()["choices"][0]["message"]["content"]
            *parts, done, _ = response.text.split("\n\n")
            assert done == "data: [DONE]"
            told = [json.loads(part.removeprefix("data: "))["choices"][0] for part in parts]
            return "".join(each["delta"].get("content", "") for each in told)

        return await asyncio.gather(*(one(*each) for each in asked))


def resident(process):
    """MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1000


def test_two_hundred_at_once_a_kill_and_a_restart(sweep, stock):
    asked = [(name, turn, again % 2 == 1) for again in range(AGAIN) for turn in TURNS for name in TRIALS]
    assert len(asked) == 200
    assert all(len({stock[name, turn] for name in TRIALS}) == len(TRIALS) for turn in TURNS)  # they do differ
    expected = [stock[name, turn] for name, turn, _ in asked]
    with serving(sweep) as (process, address):
        assert asyncio.run(_ask_all(address, asked)) == expected
        before = resident(process)
        assert asyncio.run(_ask_all(address, asked)) == expected
        assert resident(process) - before < 50
        wrong = httpx.post(
            f"{address}/v1/chat/completions", json=body("t0000", "a"), headers={"Authorization": "Bearer x"}
        )
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
        broken = httpx.post(f"{address}/v1/chat/completions", content=b'{"model": ', headers=BEARER)
        assert broken.status_code == 400
        assert len(broken.json()["error"]["message"].splitlines()) == 1
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    with serving(sweep) as (process, address):
        assert asyncio.run(_ask_all(address, asked[:40])) == expected[:40]
        # One that goes away in the middle, and one that is under way when the end is asked for: it comes to its own.
        long = body("t0000", "a", max_tokens=200, stream=True)
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=long, headers=BEARER, timeout=60) as stream:
            next(stream.iter_bytes())
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=long, headers=BEARER, timeout=60) as stream:
            parts = stream.iter_text()
            text = next(parts)
            process.send_signal(signal.SIGTERM)
            text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n")
        rest, said = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "")
        assert "Traceback" not in said


def refused(*args):
    ended = CliRunner().invoke(app, ["serve", *map(str, args)], env={"BITLORA_TOKEN": None})
    assert ended.exit_code == 2, ended.output
    (line,) = ended.stderr.splitlines()
    return line


def test_other_machines_need_a_token(sweep):
    assert "--host: 0.0.0.0 is reached from other machines, and there is no token" in refused(
        *places(sweep), "--host", "0.0.0.0"
    )
    assert refused(*places(sweep), "--token", " ").startswith("--token: it is empty")


def test_a_port_that_is_taken(sweep):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(*places(sweep), "--port", port) == f"--host 127.0.0.1 --port {port}: Address already in use"


def test_what_serves_is_an_extra(sweep, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "bitlora.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refused(*places(sweep), "--port", 0) == "uvicorn is not installed; run: pip install 'bitlora-sweeps[serve]'"


def test_trials_of_another_base_and_twice_the_same(sweep, tmp_path, tiny_base, arithmetic):
    other = small_sweep(tmp_path / "other", tiny_base, arithmetic, {"t0000": {}})
    first, another = sweep / "trials" / "t0000", other / "trials" / "t0000"
    line = refused(first, another, "--port", 0)
    assert line.startswith(f"{another}: base.model is {tiny_base}, and of {first} ")
    assert line.endswith("what is served is over one base")
    assert refused(first, first, "--port", 0).startswith("small/t0000: given twice")
    assert refused(sweep, "--port", 0).endswith("give one such as runs/mine/trials/t0000")


def test_a_lost_device_ends_it(sweep, monkeypatch):
    def lost(self):
        raise torch.AcceleratorError("the device is lost")

    start = EngineThread.start

    def start_and_ask(self):
        start(self)
        self.ask(AskedRow(0, [1], 1, lambda told: None))

    monkeypatch.setattr(Decoder, "step", lost)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    monkeypatch.setattr(EngineThread, "start", start_and_ask)
    ended = CliRunner().invoke(app, ["serve", *places(sweep), "--port", "0"])
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[-1] == "AcceleratorError: the device is lost"


@pytest.mark.parametrize(
    ("caches", "free", "kept"),
    [
        (["auto"], 10.0, True),
        (["auto"], 0.5, False),
        ([True, "auto"], 0.5, True),
        (["auto", False], 10.0, False),
        ([True, False], 10.0, False),
    ],
)
def test_values_of_the_base_are_kept_as_in_packs(quantized, monkeypatch, caches, free, kept):
    """`free`: of what the values and the rows that may be under way need."""
    base = quantized.base
    need = base.values_bytes + KEPT_TOKENS * 2 * 2 * 64 * 4  # two blocks, 64 wide, float32
    monkeypatch.setattr("bitlora.engine.gauge.held", lambda device: 1000)
    monkeypatch.setattr("bitlora.engine.gauge.budget", lambda device: Budget(1000 + int(free * need), "this test"))
    keep_values(quantized, caches)
    assert base.keep_values(False) == kept


@pytest.fixture(scope="module")
def quantized(tiny_base):
    return Engine(
        load_base(BaseConfig(model=str(tiny_base), quantization="nf4"), torch.float32, torch.device("cpu")), 1
    )


def test_trials_of_one_id_are_called_by_their_sweeps(sweep):
    from sweeps.cli.serving import names

    assert names(["runs/a/trials/t0", "s3://b/c/trials/t0", "runs/a/trials/t1"]) == ["a/t0", "c/t0", "t1"]
