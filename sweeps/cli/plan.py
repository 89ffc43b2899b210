"""What a sweep would do, from its spec, the base's shapes and the data's sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitlora.adapter.cost import adapter_size
from bitlora.base.info import adapted_params
from bitlora.config.explain import show
from bitlora.config.sections import init_kind
from bitlora.config.trial import TrialConfig
from bitlora.quantizers.weights import Granularity, Quantizer
from sweeps.driver.prepare import Prepared
from sweeps.search.bounds import SHAPE, Bounds
from sweeps.spec import space as spaces
from sweeps.spec.keys.resources import PacksConfig
from sweeps.spec.spec import Spec


@dataclass(frozen=True, slots=True)
class AdapterCost:
    """What an adapter of one shape, quantizer and granularity costs."""

    targets: str
    rank: int
    rank_pattern: str
    quantizer: Quantizer
    granularity: Granularity
    dora: bool
    init: str
    """`pissa`, whose files hold more; or `others`."""
    layers: int
    params: int
    bytes: int
    fits: bool
    """It is within `search.where`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep, before it runs."""

    trials: int
    confirming: int
    """Trials that confirm the best, at most."""
    test_rows: int
    confirmation: tuple[str, ...]
    """What can be said of a confirmation that is chosen when the search has ended, line by line."""
    steps: int
    """Of a full trial with the spec's own batch size."""
    evaluations: int
    """Of a full trial."""
    layers: tuple[int, int]
    """That have adapters: of the trials the fewest and the most."""
    base_params: int
    adapted_params: tuple[int, int]
    """Of the base, in the layers that get adapters: the fewest and the most."""
    adapters: tuple[AdapterCost, ...]
    packs: str
    """How many packs there may be, in words."""
    prior: str = ""
    """What is known of learning rates before any trial, in words; empty: nothing."""


def make_plan(spec: Spec, prepared: Prepared) -> Plan:
    """The plan of `spec`."""
    from sweeps.search import first_look
    from sweeps.search.confirm import most
    from sweeps.search.sampling.prior import rate_prior

    trials = spec.search.trials
    bounds = Bounds(spec, prepared.base)
    if spec.search.sampler == "grid":
        trials = min(trials, sum(not bounds.over(point) for point in spaces.grid(spec.search.space)))
    example: TrialConfig = prepared.trial(spec, {})
    costs: list[AdapterCost] = []
    adapted: list[int] = []
    for shape in _shapes(spec):
        trial = prepared.trial(spec, shape)
        layers = prepared.base.layers(trial)
        size = adapter_size(prepared.base, trial)
        costs.append(
            AdapterCost(
                trial.targets,
                trial.rank,
                trial.rank_pattern,
                trial.quantizer,
                trial.granularity,
                trial.dora,
                "pissa" if init_kind(trial.init) == "pissa" else "others",
                len(layers),
                size.params,
                size.bytes,
                not bounds.over(shape),
            )
        )
        adapted.append(adapted_params(layers))
    evaluations = -(-example.steps // example.eval_every)
    confirming = most(spec.confirm, spec.search.space) if spec.confirm is not None else 0
    test_rows = prepared.dataset.summary.test_rows
    return Plan(
        trials,
        confirming,
        test_rows,
        tuple(first_look.planned(spec, test_rows, example.steps)),
        example.steps,
        evaluations,
        (min(cost.layers for cost in costs), max(cost.layers for cost in costs)),
        prepared.base.params,
        (min(adapted), max(adapted)),
        tuple(dict.fromkeys(costs)),
        _packs(spec),
        prior.words() if (prior := rate_prior(spec, prepared.base, example.steps)) is not None else "",
    )


def _shapes(spec: Spec) -> list[dict[str, Any]]:
    """What an adapter's axes can be together, in the order of `SHAPE`, each from small to large; full precision once, which
    has no scales that a granularity would be of."""
    alike: dict[tuple[Any, ...], dict[str, Any]] = {}
    for shape in sorted(spaces.together(spec.search.space, SHAPE), key=lambda shape: tuple(shape.values())):
        plain = shape.get("quantizer", spec.adapter.quantizer) == "none"
        alike.setdefault(tuple(value for axis, value in shape.items() if not (plain and axis == "granularity")), shape)
    return [*alike.values()]


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


def draw(console: Console, plan: Plan) -> None:
    """Print a plan."""
    console.print(
        f"{plan.trials} trials of at most {plan.steps} steps, {plan.evaluations} evaluations each; "
        f"adapters on {_range(*plan.layers)} layers, which hold "
        f"{_range(*(f'{params / plan.base_params:.0%}' for params in plan.adapted_params))} of the base's "
        f"{plan.base_params / 1e6:.1f} M parameters",
        highlight=False,
    )
    if plan.confirming:
        console.print(
            f"then at most {plan.confirming} more confirm the best on fresh seeds, scored on {plan.test_rows} test rows",
            highlight=False,
        )
    for line in plan.confirmation:
        console.print(line, highlight=False)
    if plan.prior:
        console.print(f"search.prior: {plan.prior}", highlight=False)
    console.print(f"in {plan.packs}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    varying = ("targets", "rank_pattern", "dora", "init")
    shaped = [name for name in varying if len({getattr(cost, name) for cost in plan.adapters}) > 1]
    bounded = not all(cost.fits for cost in plan.adapters)
    last = ("a scale per", "search.where") if bounded else ("a scale per",)
    for name in (*shaped, "rank", "quantizer", "parameters", "bytes as packed", *last):
        table.add_column(name, justify="left" if name in (*shaped, "quantizer", *last) else "right")
    for cost in plan.adapters:
        scale = {"none": "", "double_binary": "row"}.get(cost.quantizer, cost.granularity)
        own = [escape(show(value) if isinstance(value := getattr(cost, name), bool) else value) for name in shaped]
        fits = ["fits" if cost.fits else "not trained"] if bounded else []
        table.add_row(*own, str(cost.rank), cost.quantizer, f"{cost.params:,}", f"{cost.bytes:,}", scale, *fits)
    console.print(table)


def _range(low: object, high: object) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
