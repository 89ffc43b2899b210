"""The cluster files, and `ray submit`, as far as they go without a cluster."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import psutil
import pytest
import yaml
from faults import wait_for

from sweeps.drain import parser
from sweeps.driver.resources import pack_limits, worker_resources
from sweeps.onray.cluster import offered
from sweeps.spec.errors import InputError
from sweeps.spec.spec import load_spec

ROOT = Path(__file__).parents[2]
CLUSTERS = ("cluster.yaml", "cluster-local.yaml")


# ---- cluster.yaml, cluster-local.yaml


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / name).read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "idle_timeout": 5})
    # What is copied is there, and is all that an installation needs.
    assert {str(Path(local)) for local in config["file_mounts"].values()} - {"~/.ray/auth_token"} == {
        "pyproject.toml", "README.md", "LICENSE", "bitlora", "reports", "sweeps"
    }  # fmt: skip
    assert all((ROOT / local).exists() for local in config["file_mounts"].values() if local[0] != "~")


def test_the_cloud_cluster_is_what_it_says():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["min_workers"] == on_demand["min_workers"] == 0
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    import ray

    images = [config["docker"]["head_image"], config["docker"]["worker_image"]]
    assert images == [f"rayproject/ray:{ray.__version__}-py311-{kind}" for kind in ("cpu", "gpu")]


BARE = {"Alive": True, "Resources": {"node:__internal_head__": 1.0}}
"""A head that nothing trains on."""


def asked(spec, growth, machines=(), overrides=()):
    """What a worker asks for, and the most packs, on a cluster of a head and `machines`."""
    spec = load_spec(spec, ["out=/mnt/sweep", *overrides])
    nodes = [BARE, *({"Alive": True, "Resources": resources} for resources in machines)]
    worker = worker_resources(spec, nodes, growth)
    return worker, pack_limits(spec, nodes, growth, worker)[1]


def test_packs_have_the_cluster_files_gpus():
    """A spec that says nothing of resources, on each: all the GPUs that the cloud's autoscaler may start; on machines that
    are there already, theirs; while such are still to come, the spec has to say."""
    spec = ROOT / "sweeps" / "quickstart.yaml"
    from ray.autoscaler._private.util import prepare_config

    cloud, local = (prepare_config(yaml.safe_load((ROOT / name).read_text())) for name in CLUSTERS)
    assert asked(spec, offered(cloud, 0)) == ({"GPU": 1.0, "CPU": 4.0}, 8)
    assert offered(local, 0) is None
    for resources, right in (
        ({"CPU": 32.0, "GPU": 2.0}, ({"GPU": 1.0, "CPU": 4.0}, 4)),
        ({"CPU": 32.0}, ({"CPU": 32.0}, 1)),
    ):
        assert asked(spec, offered(local, 2), [resources] * 2) == right
    with pytest.raises(InputError, match=r"give 1 to train on GPUs, or 0 to train on CPUs"):
        asked(spec, offered(local, 1), [{"CPU": 32.0}])
    assert asked(spec, offered(local, 1), [{"CPU": 32.0, "GPU": 1.0}]) == ({"GPU": 1.0, "CPU": 4.0}, 1)
    # Changed to unlike machines: eight of one GPU and three cores at most, two of them of four GPUs and eight cores.
    types = cloud["available_node_types"]
    types["gpu_spot"]["resources"], types["gpu_on_demand"]["resources"] = {"CPU": 3, "GPU": 1}, {"CPU": 8, "GPU": 4}
    assert asked(spec, offered(cloud, 0)) == ({"GPU": 1.0, "CPU": 2.0}, 2 * 4 + 6)
    # And one machine of eight that is up beside the head, all of them asked for by `packs: auto`.
    types["gpu_spot"]["max_workers"] = types["gpu_on_demand"]["max_workers"] = 0
    assert asked(spec, offered(cloud, 1), [{"CPU": 64.0, "GPU": 8.0}]) == ({"GPU": 1.0, "CPU": 4.0}, 8)


def ray_commands(text):
    """Every `ray …` command line of a file, in its commands, comments and code blocks, as words."""
    text = re.sub(r"\n#? +(?=--[a-z])", " ", text)  # folded lines
    for line in text.splitlines():
        line = line.strip().lstrip("#-").strip().partition("   #")[0]
        for part in re.split(r"[;`]|&&|\|\|", line):
            words = part.split()
            if words[:1] == ["ray"] and len(words) > 1:
                yield shlex.split(part, comments=True)


def commands_known(words):
    """Walk Ray's command line along `words`; the options among them that it does not have."""
    from ray.scripts.scripts import cli

    command, rest = cli, words[1:]
    while isinstance(command, click.Group):
        assert rest[0] in command.commands, f"{' '.join(words)}: there is no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    rest = rest[: rest.index("--")] if "--" in rest else rest
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known]


@pytest.mark.parametrize(("name", "least"), [("cluster.yaml", 9), ("cluster-local.yaml", 9), ("docs/clusters.md", 9)])
def test_every_ray_command_exists_in_this_ray(name, least):
    found = list(ray_commands((ROOT / name).read_text()))
    assert len(found) >= least, found
    assert [(words, wrong) for words in found if (wrong := commands_known(words))] == []


def test_that_check_can_fail():
    (words,) = ray_commands("  - ulimit -n 65536; ray start --head --prot=6379\n    --dashbord-host=127.0.0.1")
    assert commands_known(words) == ["--prot=6379", "--dashbord-host=127.0.0.1"]
    with pytest.raises(AssertionError, match="there is no upp"):
        commands_known(["ray", "upp", "cluster.yaml"])


RAYLET = """
import sys, time
print(flush=True)
time.sleep(60)
"""


def test_the_cloud_clusters_machines_watch_for_a_notice(tmp_path):
    """The command as `ray up` runs it: in a shell on a terminal that is gone a moment later."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    *before, command = config["worker_start_ray_commands"]
    assert any("ray start" in each for each in before)
    assert all("sweeps.drain" not in each for each in config["head_start_ray_commands"])
    # What it looks for, as its process shows.
    raylet = ["raylet", "-c", RAYLET, f"--node_id={'ab' * 28}", f"--temp_dir={tmp_path}", "--gcs-address=127.0.0.1:1"]
    node = subprocess.Popen(raylet, executable=sys.executable, stdout=subprocess.PIPE)
    assert node.stdout.readline()
    ours, theirs = pty.openpty()
    env = {**os.environ, "HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-i", "-c", f"true && ({command})"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env=env,
        cwd=tmp_path,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert shell.wait(timeout=10) == 0
        os.close(ours)
        (watcher,) = wait_for(lambda: watchers(tmp_path), "the watcher", 20)
        assert watcher.environ()["RAY_AUTH_MODE"] == "token"
        wait_for(lambda: (tmp_path / "drain.log").exists(), "its log", 10)
    finally:
        node.kill()
        node.communicate()
    wait_for(lambda: not watchers(tmp_path), "the watcher to end with Ray", 60)
    assert "Traceback" not in (tmp_path / "drain.log").read_text()


def watchers(home):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if words[1:] == ["-m", "sweeps.drain"] and process.environ().get("HOME") == str(home):
                found.append(process)
    return found


def test_what_the_files_say_of_leaving_is_what_the_program_takes(manifests):
    """Also what is only a comment: every way to call it that stands in a file or on the page."""
    texts = [(ROOT / name).read_text() for name in ("cluster-local.yaml", "docs/clusters.md", "README.md")]
    found = {words for text in texts for words in re.findall(r"python -m sweeps\.drain[ a-zA-Z0-9-]*", text)}
    (worker,) = manifests[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    found.add(shlex.join(worker["lifecycle"]["preStop"]["exec"]["command"]))
    assert {"python -m sweeps.drain --now 120", "python -m sweeps.drain --now 110"} <= found
    for command in found:
        options = parser().parse_args(shlex.split(command)[3:])
        assert options.now is None or options.now > 0


# ---- rayjob.yaml


@pytest.fixture(scope="module")
def manifests():
    return list(yaml.safe_load_all((ROOT / "rayjob.yaml").read_text()))


@pytest.fixture(scope="module")
def schema():
    schema = json.loads(Path(__file__).with_name("rayjob-schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_rayjob_holds_to_its_schema(manifests, schema):
    _, job = manifests
    assert [error.message for error in schema.iter_errors(job)] == []
    for change in (
        lambda spec: spec.update(entrypiont="x"),
        lambda spec: spec["rayClusterSpec"]["autoscalerOptions"].update(version="v3"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(imag="x"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(
            lifecycle={"preStop": {"exec": {"command": "python -m sweeps.drain"}}}
        ),
    ):
        wrong = json.loads(json.dumps(job))
        change(wrong["spec"])
        assert len(list(schema.iter_errors(wrong))) == 1


def test_the_rayjob_runs_a_valid_spec_on_gpus_from_zero(manifests, tmp_path):
    config, job = manifests
    spec = tmp_path / "sweep.yaml"
    spec.write_text(config["data"]["sweep.yaml"])
    assert yaml.safe_load(spec.read_text())["out"].startswith("s3://")
    cluster = job["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (volume,) = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    (mount,) = head["volumeMounts"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert mount["name"] == volume["name"]
    assert job["spec"]["entrypoint"] == f"python -m sweeps sweep {mount['mountPath']}/sweep.yaml --resume auto"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    # Under KubeRay what can be started is not known, and no pod with a GPU is up: a pack asks for a whole one all the same,
    # and there are as many packs as pods. A spec that leaves it open is refused, not trained on a core of a GPU pod.
    worker, packs = asked(spec, None)
    assert worker == {"GPU": float(limits["nvidia.com/gpu"]), "CPU": 1.0}
    assert float(limits["cpu"]) >= worker["CPU"]
    assert packs == workers["maxReplicas"]
    with pytest.raises(InputError, match="no machine that is up has a GPU"):
        asked(spec, None, overrides=["resources.gpus_per_worker=auto"])
    import ray

    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"] is True


def test_a_worker_pod_leaves_in_order_and_has_time_for_it(manifests):
    """The hook waits, then Ray has its own 30 s; Kubernetes kills what is still there. A head is not drained."""
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    cluster = manifests[1]["spec"]["rayClusterSpec"]
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    *program, now, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, now) == (["python", "-m", "sweeps.drain"], "--now")
    assert float(seconds) + RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < pod["terminationGracePeriodSeconds"]
    assert "lifecycle" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]


# ---- sweeps/submit.py: alone, as `ray submit` starts it


@pytest.fixture
def submit(tmp_path):
    """Runs submit.py as Ray does: a copy of it alone, on a terminal, with a PATH of the test's own."""
    script = tmp_path / "home" / "submit.py"
    script.parent.mkdir()
    script.write_text((ROOT / "sweeps" / "submit.py").read_text())
    (tmp_path / "bin").mkdir()

    def start(*args, python=sys.executable, **env):
        ours, theirs = pty.openpty()
        env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(script.parent), **env}
        process = subprocess.Popen(
            [python, str(script), *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=script.parent
        )
        os.close(theirs)
        return process, os.fdopen(ours, "rb", buffering=0)

    return start


def read(terminal):
    """What the terminal showed until its last user was gone."""
    shown = b""
    while True:
        try:
            part = terminal.read(4096)
        except OSError:
            part = b""
        if not part:
            return shown.decode().replace("\r\n", "\n").splitlines()
        shown += part


def fake(tmp_path, body, name="bitlora"):
    path = tmp_path / "bin" / name
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(("ends", "code", "said"), [("0", 0, 0), ("3", 1, 3), ("130", 1, 130), ("-9", 1, 137)])
def test_submit_gives_0_or_1_and_says_the_true_code(submit, tmp_path, ends, code, said):
    fake(tmp_path, f"os.kill(os.getpid(), 9) if {ends} < 0 else sys.exit({ends})")
    process, terminal = submit("a.yaml")
    assert read(terminal)[-1] == f"exit code: {said}"
    assert process.wait() == code


def test_submit_gives_plain_lines_on_a_terminal(submit, tmp_path):
    # With rich itself, told to use colours: what decides is what submit.py sets.
    fake(
        tmp_path,
        "from rich.console import Console\n"
        "console = Console()\n"
        "console.print('[red]hello[/]', 1)\n"
        "print(console.is_terminal, os.environ['RAY_ADDRESS'], *sys.argv[1:])",
    )
    process, terminal = submit("a.yaml", "--set", "train.steps=2", FORCE_COLOR="1", TERM="xterm-256color")
    lines = read(terminal)
    assert lines[1:] == ["False auto sweep a.yaml --set train.steps=2", "exit code: 0"]
    assert "\x1b" not in lines[1]
    assert process.wait() == 0


def test_submit_finds_the_project(submit, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = str(bare / "bin" / "python")
    process, terminal = submit("a.yaml", python=python)
    lines = read(terminal)
    assert len(lines) == 2
    for looked in (f"{tmp_path}/bin", python, "BITLORA_PYTHON"):
        assert looked in lines[0]
    assert lines[1] == "exit code: 2"
    assert process.wait() == 1
    process, terminal = submit("nowhere.yaml", python=python, BITLORA_PYTHON=sys.executable)
    assert "nowhere.yaml: no such file" in read(terminal)[0]
    process, terminal = submit("nowhere.yaml")  # the running python has it
    assert "nowhere.yaml: no such file" in read(terminal)[0]
    process, terminal = submit("a.yaml", python=python, BITLORA_PYTHON="/no/python")
    assert read(terminal)[0].startswith("BITLORA_PYTHON=/no/python: no such program")


SLOW = """
def asked(number, frame):
    print("asked by", signal.Signals(number).name, flush=True)
    time.sleep(0.5)
    print("in order", flush=True)
    open(os.path.join(os.environ["HOME"], "ended"), "w").close()
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, asked)
print("ready", flush=True)
time.sleep(60)
"""


def test_ctrl_c_on_the_terminal_arrives_once(submit, tmp_path):
    fake(tmp_path, SLOW)
    process, terminal = submit("a.yaml")
    assert terminal.readline().strip() == b"ready"
    process.send_signal(signal.SIGINT)
    assert read(terminal)[-3:] == ["asked by SIGINT", "in order", "exit code: 130"]
    assert process.wait() == 1


def test_a_lost_connection_ends_the_sweep_in_order(submit, tmp_path):
    fake(tmp_path, SLOW)
    process, terminal = submit("a.yaml")
    assert terminal.readline().strip() == b"ready"
    terminal.close()
    process.send_signal(signal.SIGHUP)  # what a shell gets when ssh is gone
    assert process.wait(timeout=10) == 1
    assert (tmp_path / "home" / "ended").exists()
