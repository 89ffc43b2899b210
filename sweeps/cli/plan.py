"""What a sweep would do, from its spec, the base's shapes and the data's sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from bitlora.adapter.cost import adapter_bytes, adapter_params
from bitlora.config.trial import TrialConfig
from bitlora.quantizers.weights import Granularity, Quantizer
from sweeps.driver.prepare import Prepared
from sweeps.spec.space import extent
from sweeps.spec.spec import PacksConfig, Spec


@dataclass(frozen=True, slots=True)
class AdapterCost:
    """What an adapter of one rank, quantizer and granularity costs."""

    rank: int
    quantizer: Quantizer
    granularity: Granularity
    params: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep, before it runs."""

    trials: int
    confirming: int
    """Trials that confirm the best, at most."""
    test_rows: int
    steps: int
    """Of a full trial with the spec's own batch size."""
    evaluations: int
    """Of a full trial."""
    targets: int
    base_params: int
    adapted_params: int
    """Of the base, in the layers that get adapters."""
    adapters: tuple[AdapterCost, ...]
    packs: str
    """How many packs there may be, in words."""


def make_plan(spec: Spec, prepared: Prepared) -> Plan:
    """The plan of `spec`."""
    from sweeps.search.confirm import most
    from sweeps.spec import space as spaces

    trials = spec.search.trials
    if spec.search.sampler == "grid":
        trials = min(trials, len(spaces.grid(spec.search.space)))
    example: TrialConfig = prepared.trial(spec, {})
    shapes = prepared.base.targets
    costs = tuple(
        AdapterCost(
            rank,
            quantizer,
            granularity,
            adapter_params(shapes, rank, quantizer),
            adapter_bytes(shapes, rank, quantizer, granularity),
        )
        for rank, quantizer, granularity in product(
            _values(spec, "rank"), _values(spec, "quantizer"), _values(spec, "granularity")
        )
    )
    evaluations = -(-example.steps // example.eval_every)
    confirming = most(spec.confirm, spec.search.space) if spec.confirm is not None else 0
    test_rows = prepared.dataset.summary.test_rows
    return Plan(
        trials,
        confirming,
        test_rows,
        example.steps,
        evaluations,
        len(shapes),
        prepared.base.params,
        prepared.base.adapted_params,
        costs,
        _packs(spec),
    )


def _packs(spec: Spec) -> str:
    """How many packs there may be: how many GPUs there are is known when the sweep runs."""
    packs, workers = spec.resources.packs, spec.resources.workers_per_pack
    if isinstance(packs, PacksConfig):
        return f"{packs.min} to {packs.max} packs"
    if packs == "auto" and spec.resources.gpus_per_worker == 0:
        packs = 1
    if packs != "auto":
        return f"at most {packs} pack{'s' if packs > 1 else ''}"
    share = "each GPU" if workers == 1 else f"every {workers} GPUs"
    return f"a pack for {share} that the cluster has or can start, one on CPUs (resources.packs: auto)"


def _values(spec: Spec, axis: str) -> list[Any]:
    """The values an axis can take: all of a list, the ends of a range, the fixed one."""
    domain = spec.search.space.get(axis)
    return sorted(extent(domain)) if domain is not None else [getattr(spec.adapter, axis)]


def draw(console: Console, plan: Plan) -> None:
    """Print a plan."""
    console.print(
        f"{plan.trials} trials of at most {plan.steps} steps, {plan.evaluations} evaluations each; "
        f"adapters on {plan.targets} layers, which hold {plan.adapted_params / plan.base_params:.0%} of the base's "
        f"{plan.base_params / 1e6:.1f} M parameters",
        highlight=False,
    )
    if plan.confirming:
        console.print(
            f"then at most {plan.confirming} more confirm the best on fresh seeds, scored on {plan.test_rows} test rows",
            highlight=False,
        )
    console.print(f"in {plan.packs}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("rank", "quantizer", "parameters", "bytes as packed", "a scale per"):
        table.add_column(name, justify="left" if name in ("quantizer", "a scale per") else "right")
    for cost in plan.adapters:
        scale = {"none": "", "double_binary": "row"}.get(cost.quantizer, cost.granularity)
        table.add_row(str(cost.rank), cost.quantizer, f"{cost.params:,}", f"{cost.bytes:,}", scale)
    console.print(table)
