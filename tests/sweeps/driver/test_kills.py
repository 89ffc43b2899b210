"""Kills at moments and of victims that a seed draws: the sweep ends as if there had been none.

Twenty of them; `KILLS=8` for a shorter look, `KILLS_SEED=…` for another one.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import contract
import psutil
import pytest
from commands import command_line, spec_writer
from faults import changed_by, evaluations, events, nothing_is_left, processes, ray_head, results, same, wait_for

SEED = int(os.environ.get("KILLS_SEED", "1"))
KILLS = int(os.environ.get("KILLS", "20"))
DECK = {8: {"worker": 3, "host": 3, "pool": 1, "driver": 1}, 20: {"worker": 9, "host": 7, "pool": 2, "driver": 2}}[
    KILLS
]
"""How many of each kind are killed, in an order that the seed draws. Those are all there are: a trial has no process."""
TITLES = {"worker": "ray::RayTrainWorker", "host": "ray::PackHost", "pool": "ray::Pool"}
"""Of the processes that are killed; the fourth kind is the driver."""
STEPS = 60
SWEEP = {
    "train": {"steps": STEPS, "eval_every": 10, "batch_size": 2, "dtype": "float64", "checkpoint_every": 1},
    "adapter": {"dropout": 0.1},
    "search": {"trials": 8, "sampler": "grid", "space": {"rank": [2, 3, 4, 5], "quantizer": ["none", "ternary"]}},
    "resources": {"slots": 2, "packs": 2},
}
PACE_S = 0.8
"""What a step takes while there are kills to come: the sweep must not end before, on any machine."""

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]


class Supervised:
    """A sweep under a supervisor, which starts it again whenever it was killed or interrupted."""

    def __init__(self, bitlora, spec, head, folder, log):
        self._start = lambda: bitlora.start(
            "sweep", spec, "--resume", "auto", "--address", head, stdout=log, stderr=subprocess.STDOUT
        )
        self.folder = folder
        self.temp = bitlora.env["RAY_TMPDIR"]
        self.process = self._start()
        self.starts = 1
        self.ended = []
        """At each later start: when it was, and the trials that had ended by themselves."""

    def look(self):
        """Start it again where it needs that."""
        code = self.process.poll()
        assert code in (None, 130, -signal.SIGKILL), f"it ended with exit code {code} before the last kill"
        if code is not None:
            if code == 130:
                assert (self.folder / "exit_code").read_text() == "130\n"
            records = self.folder.glob("trials/*/record.json")
            ended = {path.parent.name for path in records if json.loads(path.read_text())["status"] == "completed"}
            self.ended.append((time.time(), ended))
            self.process = self._start()
            self.starts += 1

    def begun_again(self):
        """Trials that were begun once more after they had ended."""
        attached = [(e["time"], e["trials"][0]) for pack in events(self.folder) for e in pack if e["event"] == "attach"]
        return [trial for at, trial in attached if any(at > when and trial in ended for when, ended in self.ended)]

    def end(self):
        """Wait for its end; gives the exit code."""
        while (code := self.process.wait(300)) in (130, -signal.SIGKILL):
            self.look()
        return code

    def steps(self):
        """How many each trial has begun, over all packs."""
        return Counter(
            trial for pack in events(self.folder) for e in pack if e["event"] == "step" for trial in e["trials"]
        )

    def pids(self, kind):
        if kind == "driver":
            return [self.process.pid] if self.process.poll() is None else []
        return sorted(pid for pid, title in processes(self.temp).items() if TITLES[kind] in title)

    def goes_on(self):
        """Wait for a step."""
        before = sum(self.steps().values())
        wait_for(lambda: self.look() or sum(self.steps().values()) > before, "a step", 120)

    def victims(self, kind, alone):
        """Whom of a kind one may kill now."""
        return [pid for pid in self.pids(kind) if kind != "worker" or self.may_be_lost(self.inside(pid), alone)]

    def may_be_lost(self, inside, alone):
        """May a pack with these trials lose its worker? One that is alone in a pack which dies, and then once more without
        having got any further, is blamed, and rightly.

        Args:
            alone: the trials that were in such a pack -> the steps they had begun.
        """
        if len(inside) != 1:
            return True
        (trial,), steps = inside, self.steps()
        if trial in alone and steps[trial] <= alone[trial] + 4:
            return False
        alone[trial] = steps[trial]
        return True

    def inside(self, pid):
        """The trials in the pack of a worker; none where it is not the first one, or has no base yet."""
        inside = set()
        with contextlib.suppress(psutil.Error):
            for log in [
                file.path for file in psutil.Process(pid).open_files() if Path(file.path).name.startswith("pack-")
            ]:
                for event in map(json.loads, Path(log).read_text().splitlines()):
                    if event["event"] == "attach":
                        inside |= set(event["trials"])
                    elif event["event"] == "detach":
                        inside -= set(event["trials"])
        return inside


def test_kills(tmp_path, float64_base, arithmetic):
    """Of workers, hosts, pools and drivers. A killed driver or pool is followed by `--resume auto`, as a
    supervisor would. Most kills come up to two seconds after a step since the one before, the others at once after that."""
    write = spec_writer(tmp_path, float64_base, arithmetic)
    with command_line() as bitlora:
        ended = bitlora("sweep", write("reference", **SWEEP))
    assert ended.code == 0, ended.err

    pace = tmp_path / "pace"
    pace.touch()
    with command_line() as bitlora, (tmp_path / "said").open("w") as log:
        changed_by(bitlora.env, BITLORA_PACE=f"{PACE_S}:{pace}")
        with ray_head(bitlora.env) as head:
            sweep = Supervised(bitlora, write("quick", **SWEEP), head, tmp_path / "quick", log)
            try:
                killed = kill_at_random(sweep, random.Random(SEED))
                pace.unlink()
                code = sweep.end()
            finally:
                sweep.process.kill()
                sweep.process.wait()
            said = (tmp_path / "said").read_text()
            assert code == 0, said
            nothing_is_left(bitlora.env, head)
    assert killed == DECK
    assert contract.statuses(contract.holds(tmp_path / "quick")) == {"completed": 8}, said
    same(results(tmp_path / "quick"), results(tmp_path / "reference"))
    assert not sweep.begun_again()
    # They went on from their checkpoints, of each step: at each loss one or two steps of those in the packs were in vain.
    assert sum(sweep.steps().values()) < 8 * STEPS + 4 * 2 * sum(killed.values())
    assert not list(tmp_path.glob("quick/trials/*/checkpoint.safetensors"))
    assert "Traceback" not in said
    assert "the pool died" in said


def kill_at_random(sweep, draw):
    """Kill what the deck says, one after another; gives how many of each kind."""
    wait_for(lambda: sweep.look() or evaluations(sweep.folder)(), "the first evaluation", 120)
    assert not [title for title in processes(sweep.temp).values() if "Trainable" in title]
    deck = [kind for kind, count in DECK.items() for _ in range(count)]
    draw.shuffle(deck)
    alone, killed = {}, Counter()
    while deck:
        if draw.random() < 0.6:
            sweep.goes_on()
        time.sleep(draw.uniform(0, 2))
        kind = deck.pop()
        victims = wait_for(lambda kind=kind: sweep.look() or sweep.victims(kind, alone), kind, 120)
        try:
            os.kill(draw.choice(victims), signal.SIGKILL)
        except ProcessLookupError:  # it has just died of another kill
            deck.append(kind)
            continue
        killed[kind] += 1
        print(f"{time.strftime('%X')} {kind}, {len(victims)} to choose from", flush=True)
        if kind in ("pool", "driver"):
            sweep.process.wait(120)
    print(dict(killed), sweep.starts, "starts")
    return killed
