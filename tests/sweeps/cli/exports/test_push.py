"""`bitlora push`, against a hub on this machine."""

import re

import pytest
from fake_hub import fake_hub
from huggingface_hub import ModelCard
from small_sweep import small_sweep
from typer.testing import CliRunner

from sweeps.cli.app import app


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny_base, arithmetic):
    trials = {"t0000": {"quantizer": "ternary"}, "t0001": {"quantizer": "binary", "activations": "int8"}}
    return small_sweep(tmp_path_factory.mktemp("push") / "small", tiny_base, arithmetic, trials)


def push(sweep, *options, trial="t0000", to="me/sums-lora"):
    return CliRunner().invoke(app, ["push", str(sweep / "trials" / trial), "--to", to, *options])


def test_adapter_card_and_report_go_there_in_one_commit(sweep, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        ended = push(sweep, "--private", to="team/sums-lora")
        assert ended.exit_code == 0, ended.stderr
        files = hub.repos["team/sums-lora"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "report/report.md"} <= files.keys()
    assert hub.private == {"team/sums-lora"}
    assert [line for line in hub.asked if "/commit/" in line] == ["POST /api/models/team/sums-lora/commit/main"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "# first, in a shell: hf download team/sums-lora --local-dir sums-lora\n" in card.text
    assert "'sums-lora')" in card.text
    assert b"# Sweep small" in files["report/report.md"]
    assert ended.stdout.splitlines()[-1].endswith(f"bytes: {hub.url}/team/sums-lora")
    assert not [name for name in files if name.startswith(".") and name != ".gitattributes"]


def test_a_dry_run_lists_all_of_it_and_asks_nothing(sweep, monkeypatch):
    with fake_hub(monkeypatch, token=None) as hub:
        ended = push(sweep, "--dry-run")
        assert ended.exit_code == 0, ended.stderr
        assert hub.asked == []
    listed = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ *([\d,]+)  (\S+)$", ended.stdout, re.M)}
    assert {"README.md", "adapter_model.safetensors", "report/report.html"} <= listed.keys()
    assert min(listed.values()) > 0
    assert "library_name: peft" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"dry run: \d+ files, [\d,]+ bytes would go to me/sums-lora, for all to see; nothing was sent", last
    )


def test_what_stock_peft_would_misread_goes_packed(sweep, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        ended = push(sweep, trial="t0001")
        assert ended.exit_code == 0, ended.stderr
        assert "adapter_model.safetensors" not in hub.repos["me/sums-lora"]
        assert ModelCard(hub.repos["me/sums-lora"]["README.md"].decode()).data.library_name == "bitlora"


def test_an_empty_repository_is_filled_and_a_full_one_is_not(sweep, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        hub.breaks_off = True
        ended = push(sweep)
        assert ended.exit_code == 1
        assert ended.stderr.startswith("--to: me/sums-lora: the hub answered 400: The disk is full")
        assert len(ended.stderr.splitlines()) == 1
        hub.breaks_off = False
        assert push(sweep).exit_code == 0
        before = dict(hub.repos["me/sums-lora"])
        ended = push(sweep)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert re.fullmatch(
            r"--to: me/sums-lora is on the hub already, with \d+ files; give a new name\n", ended.stderr
        )
        assert hub.repos["me/sums-lora"] == before


def test_what_keeps_it_from_the_hub_is_said_in_a_line_before_anything_is_made(sweep, monkeypatch):
    def refused(message, **options):
        ended = push(sweep, **options)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert re.fullmatch(f"{message}\n", ended.stderr), ended.stderr

    refused("--to: give owner/name, as the hub spells them: .*", to="only-a-name")
    refused("--to: give owner/name, as the hub spells them: .*", to="me/a b")
    with fake_hub(monkeypatch, token=None):
        refused("no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
    with fake_hub(monkeypatch, token="hf_wrong"):
        refused("--to: me/sums-lora: the hub does not take the token: .*")
    with fake_hub(monkeypatch) as hub:
        refused("--to: them/x: the token is of me, who may write to me, team", to="them/x")
        hub.gated.add("me/closed")
        refused("me/closed is gated on the hub: ask for access on its page", to="me/closed")
        assert hub.repos == {}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
        refused(r"the hub cannot be reached; nothing was sent \(--dry-run says what would be\)")
