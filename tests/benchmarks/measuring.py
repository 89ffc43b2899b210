"""What all tables share: what is measured in turn, the ratios of it, and the file that they are written to.

A time alone is noise on a machine that others use too. So the ways that are compared run in turn, each round gives one
ratio, and the median of the rounds stands in the table, with the lowest and the highest beside it.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a table is measured on."""

    model: str
    """smollm2, or a shape of `bases.SHAPES`."""
    device: str
    dtype: str
    seconds: float
    """How long the table may take, about."""
    cells: str | None = None
    """Slots and tokens of each to measure instead of the table's own: 1x64,4x128."""
    dry: bool = False
    """Say what would be measured, up to the first call of the device."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One line of a table."""

    table: str
    model: str
    dtype: str
    slots: int
    tokens: int
    """Of each slot."""
    what: str
    ratio: float
    lowest: float
    highest: float
    rounds: int
    above: float
    """The numerator, as it was in the middle."""
    below: float
    unit: str


def cells(settings: Settings, own: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Slots and tokens of each that a table is measured at."""
    if settings.cells is None:
        return own
    given = [each.split("x") for each in settings.cells.split(",")]
    return [(int(slots), int(tokens)) for slots, tokens in given]


def in_turn(ways: Mapping[str, Callable[[], object]], seconds: float, most: int = 9) -> dict[str, list[float]]:
    """Seconds of each way in each round; a round to warm up before, at least two, until `seconds` are over."""
    import torch

    def once(way: Callable[[], object]) -> float:
        began = time.perf_counter()
        way()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    end = time.perf_counter() + seconds
    for way in ways.values():
        once(way)
    took: dict[str, list[float]] = {name: [] for name in ways}
    names = [*ways]
    while len(took[names[0]]) < 2 or (time.perf_counter() < end and len(took[names[0]]) < most):
        for name in names:
            took[name].append(once(ways[name]))
        names.reverse()  # nobody always runs behind the same neighbour
    return took


def ratio(above: list[float], below: list[float], **about: object) -> Ratio:
    """The ratio of two lists, round by round."""
    each = [one / other for one, other in zip(above, below, strict=True)]
    return Ratio(
        ratio=statistics.median(each),
        lowest=min(each),
        highest=max(each),
        rounds=len(each),
        above=statistics.median(above),
        below=statistics.median(below),
        **about,
    )


def show(rows: Iterable[Ratio]) -> None:
    """Print lines of a table as they come."""
    for row in rows:
        about = f"{row.table:<12} {row.model:<9} {row.slots:>3} slots × {row.tokens:>5} tokens  {row.what:<62}"
        spread = f"({row.lowest:.2f} to {row.highest:.2f}, {row.rounds} rounds)" if row.rounds > 1 else ""
        print(f"{about} {row.ratio:6.2f} {spread:<32} {row.above:.4g} / {row.below:.4g} {row.unit}", flush=True)


def machine() -> str:
    """The processor or the GPU, and the load of this minute."""
    import torch

    cores = f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} cores of"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    width = "AVX-512" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "no AVX-512"
    return f"{cores} {names[0] if names else 'unknown'} ({width})"


def commit() -> str:
    """Of the code that is measured."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def write(path: Path, rows: Iterable[Ratio]) -> None:
    """Add lines to the CSV file."""
    about = {
        "machine": machine(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Ratio)] + [*about], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            numbers = {
                name: f"{value:.5g}" if isinstance(value, float) else value for name, value in asdict(row).items()
            }
            writer.writerow(numbers | about)


def table(measure: Callable[[Settings], Iterable[Ratio]], plan: Callable[[Settings], Iterable[str]]) -> None:
    """A table as a program: measure, print, write to the file that it is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--cells", help="slots and tokens of each, instead of the table's own: 1x64,4x128")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--dry", action="store_true")
    given = vars(parser.parse_args())
    path = given.pop("csv")
    settings = Settings(**given)
    if settings.dry:
        print(*plan(settings), sep="\n")
        return
    rows = []
    for row in measure(settings):
        show([row])
        rows.append(row)
        if path is not None:
            write(path, [row])


def markdown(path: Path, whole: bool = True) -> str:
    """A file of ratios as two tables for a page, the steps by slots and tokens and all else, and where they are from.

    Args:
        whole: False: the steps alone.
    """
    with path.open() as file:
        rows = [*csv.DictReader(file)]
    names = {"smollm2": "SmolLM2-135M"}
    steps: dict[tuple[str, str, str], dict[str, str]] = {}
    others = []
    for row in rows:
        model = f"{names.get(row['model'], row['model'])}, {row['dtype']}"
        spread = f" ({float(row['lowest']):.2f} to {float(row['highest']):.2f})" if int(row["rounds"]) > 1 else ""
        found = f"{float(row['ratio']):.2f}{spread}"
        if row["table"] == "step":
            steps.setdefault((model, row["slots"], row["tokens"]), {})[row["what"]] = found
            continue
        numbers = f"{float(row['above']):,.4g} / {float(row['below']):,.4g} {row['unit']}".rstrip()
        others.append((row["table"], model, row["slots"], row["tokens"], row["what"], found, numbers))
    heads = [*dict.fromkeys(what for each in steps.values() for what in each)]
    first = [(*about, *(each.get(what, "") for what in heads)) for about, each in sorted(steps.items(), key=_order)]
    about = " and ".join(dict.fromkeys(row["machine"] for row in rows))
    when = " and ".join(dict.fromkeys(row["date"] for row in rows))
    loads = [float(row["load"]) for row in rows]
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
    where = f"{about}, {when}, commit {commits}; load of the machine while it ran {min(loads):.0f} to {max(loads):.0f}."
    second = ("table", "base", "slots", "tokens", "what", "ratio", "numbers")
    tables = [_table(("base", "slots", "tokens each", *heads), first), _table(second, others)]
    return "\n\n".join([where, *tables[: 2 if whole else 1]])


def _order(item: tuple[tuple[str, str, str], object]) -> tuple[str, int, int]:
    model, slots, tokens = item[0]
    return model, int(tokens), int(slots)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    right = {"slots", "tokens", "tokens each"}
    lines = [heads, tuple("---:" if head in right else "---" for head in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES = {ROOT / "README.md": False, ROOT / "reports/examples/speed/README.md": True}
"""Where the tables stand, and whether all of them."""


def fill(page: Path, path: Path) -> None:
    """Put the tables of `path` between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    marks = (f"<!-- measured: {path.name} -->", "<!-- end of measured -->")
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n\n{markdown(path, PAGES[page])}\n\n{marks[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        fill(page, DATA / "cpu.csv")
