"""All tables, one after another, each a program of its own with its share of the time: what `make bench` and
`make bench-gpu` run.

    .venv/bin/python tests/benchmarks/run.py cpu [--only steps]
    python tests/benchmarks/run.py gpu [--wheels FOLDER] [--dry]

`gpu` is for a machine with nothing on it but Python, PyTorch's driver and this repository: it installs the wheels that it
is given, runs the tests marked `gpu`, then the tables. Where there is no GPU, or with --dry, it says what it would do, and
does all of it up to the first call of CUDA. Only what Python itself has is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = Path("/tmp/bench-site")
"""Where the wheels are unpacked, so that the machine's own packages stay as they are."""
GRACE_S = 60
"""A table that is still running so long after its share is ended."""
STOP_S = 20
"""How long what is ended has for that."""
MOST_S = {"cpu": 11.5 * 60, "gpu": 7.5 * 60}
"""Of the whole command."""


@dataclass(frozen=True)
class Part:
    """A table: its program, what it is measured on, and its share of the time in seconds."""

    table: str
    seconds: int
    model: str = "smollm2"
    cells: str | None = None


CPU = (
    Part("steps", 170),
    Part("stock_sweep", 230),
    Part("base_start", 40),
    Part("step_operations", 30, cells="1x32,8x32"),
    Part("evaluation", 50),
    Part("memory_by_slots", 20, "large-vocabulary", "1x512,8x512"),
    Part("memory_by_slots", 40),
)
GPU = (
    Part("steps", 60, "1B"),
    Part("step_operations", 10, "1B"),
    Part("memory_by_slots", 10, "1B"),
    Part("stock_sweep", 100, "1B"),
    Part("evaluation", 20, "1B"),
    Part("base_start", 30, "1B"),
    Part("steps", 40, "8B", "8x128,8x512,1x128,4x512"),
    Part("memory_by_slots", 10, "8B", "1x512,4x512"),
    Part("steps", 30, "4B", "8x128,8x512,1x128,8x2048"),
)
TESTS_S = 120
"""What the tests marked `gpu` may take."""


def environment(site: Path | None) -> dict[str, str]:
    """Of the programs: the repository, the tests' helpers, what was installed."""
    helpers = ROOT / "tests" / "helpers"
    paths = [ROOT, helpers, helpers / "programs", helpers / "sweeping", *([site] if site else [])]
    before = os.environ.get("PYTHONPATH", "")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def command(part: Part, device: str, dtype: str, csv: Path, dry: bool) -> list[str]:
    options = ["--model", part.model, "--device", device, "--dtype", dtype, "--seconds", str(part.seconds)]
    options += ["--cells", part.cells] if part.cells else []
    options += ["--dry"] if dry else ["--csv", str(csv)]
    return [sys.executable, str(HERE / f"{part.table}.py"), *options]


def measured(part: Part, device: str, dtype: str, csv: Path, env: dict[str, str], most: float) -> str:
    """Run a table, at most so many seconds; gives what went wrong. What it has measured by then stands in the file."""
    began = time.monotonic()
    process = subprocess.Popen(
        command(part, device, dtype, csv, False), env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=max(1, min(most, part.seconds + GRACE_S)))
    except BaseException as error:
        ended(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return f"{part.table} of {part.model}: ended after {time.monotonic() - began:.0f} s"
        raise
    return f"{part.table} of {part.model}: failed\n{said[-3000:]}" if process.returncode else ""


def ended(process: subprocess.Popen[str]) -> None:
    """End a table with all that it has started: as a Ctrl-C does it, which a sweep ends by in order; then for good."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_S)
            return


def no_gpu() -> str:
    """Why nothing is run on a GPU here; empty where it can be."""
    if shutil.which("nvidia-smi") is None:
        return "there is no nvidia-smi here"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return "" if listed.returncode == 0 and "GPU" in listed.stdout else "nvidia-smi lists no GPU"


def gpu_tests() -> list[str]:
    """The files with tests marked `gpu`."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def install(wheels: Path, site: Path, dry: bool) -> None:
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"{wheels}: no wheels there; give --wheels a folder with those that the machine lacks")
    print(
        f"install {len(files)} wheels from {wheels} into {site}: {', '.join(file.name for file in files)}", flush=True
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    if not dry:
        subprocess.run([*pip, "--target", str(site), *map(str, files)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("on", choices=("cpu", "gpu"))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument(
        "--times", type=float, default=1, help="so many times the time, where others use the machine too"
    )
    parser.add_argument("--only", help="one table; its lines are added to those that are there")
    given = parser.parse_args()
    why = "asked for by --dry" if given.dry else (no_gpu() if given.on == "gpu" else "")
    site = None
    if given.on == "gpu":
        print(f"a dry run ({why}): this is what would be done" if why else "on the GPU:", flush=True)
        if given.wheels:
            site = SITE
            install(given.wheels, site, bool(why))
    env = environment(None if why else site)
    parts, device, dtype = (CPU, "cpu", "float32") if given.on == "cpu" else (GPU, "cuda", "bfloat16")
    parts = tuple(
        replace(part, seconds=round(given.times * part.seconds)) for part in parts if given.only in (None, part.table)
    )
    csv = HERE / "data" / f"{given.on}.csv"
    if why:
        return dry_run(parts, device, dtype, csv, env)
    began, failed = time.monotonic(), []
    if given.on == "gpu" and not given.only:
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *gpu_tests()]
        failed += ["tests"] if subprocess.run(tests, env=env, cwd=ROOT, timeout=2 * TESTS_S).returncode else []
    if not given.only:
        csv.unlink(missing_ok=True)
    for part in parts:
        left = given.times * MOST_S[given.on] - (time.monotonic() - began)
        print(f"\n{part.table} of {part.model}, {part.seconds} s; load {os.getloadavg()[0]:.1f}", flush=True)
        why = (
            measured(part, device, dtype, csv, env, left) if left > 0 else f"{part.table} of {part.model}: no time left"
        )
        failed += [why] if why else []
    print("", *failed, f"written: {csv.relative_to(ROOT)}", sep="\n", flush=True)
    return int(bool(failed))


def dry_run(parts: tuple[Part, ...], device: str, dtype: str, csv: Path, env: dict[str, str]) -> int:
    """Each step up to the device: the tests' names, and each table's own plan in one process that imports all of it."""
    if device == "cuda":
        print(f"run the tests marked gpu, at most {TESTS_S} s: {', '.join(gpu_tests())}", flush=True)
    if find_spec("torch") is None:
        print(f"{sys.executable} has no torch, so the tables say nothing here: make .venv/.ready, or WHEELS=FOLDER")
        return 1
    tables = [(part.table, part.model, part.cells, part.seconds) for part in parts]
    plans = (
        "import importlib, sys, torch; from measuring import Settings\n"
        f"for table, model, cells, seconds in {tables!r}:\n"
        f"    about = dict(device={device!r}, dtype={dtype!r}, seconds=seconds, cells=cells, dry=True)\n"
        "    settings = Settings(model=model, **about)\n"
        "    print(f'{table}, about {seconds} s:')\n"
        "    print(*('  ' + line for line in importlib.import_module(table).plan(settings)), sep='\\n')\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    paths = os.pathsep.join([str(HERE), env["PYTHONPATH"]])
    code = subprocess.run([sys.executable, "-c", plans], env=env | {"PYTHONPATH": paths}).returncode
    print(f"write {csv.relative_to(ROOT)}; {sum(part.seconds for part in parts)} s for the tables in all", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
