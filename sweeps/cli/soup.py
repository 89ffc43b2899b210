"""`bitlora soup`: the finalists that are tied averaged, seed by seed, and scored on the test rows beside them.

Who is averaged: of the confirmed configurations the best and those that are tied with it, as far as they have its shape.
On each of the fresh seeds all of them began with the same values, so on each seed there is an average of its own, and the
comparison is the report's: over examples and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bitlora.adapter.soup import averaged, rescaled, same_shape
from bitlora.files import origin, record
from bitlora.files.opening import open_storage
from bitlora.files.record import TRIALS
from bitlora.files.writing import write_folder, write_json
from reports.document.document import Paragraph
from reports.load.soup import SOUP, SoupRecord
from reports.load.sweep import load_sweep
from reports.report import write_report
from reports.sections.soup import soup as section
from reports.statistics.findings import Findings, findings
from sweeps.cli.trial_folder import TrialFolder, device, read_trial
from sweeps.driver.resume import DECIDING, EXIT_CODE
from sweeps.spec.errors import InputError

if TYPE_CHECKING:
    from bitlora.adapter.latent import AdapterLatent
    from bitlora.data.rows import Rows

Members = dict[str, dict[int, TrialFolder]]
"""Finalist -> seed -> the trial that confirms it there."""


def make_soup(place: str, top: int, say: Callable[[str], object]) -> None:
    """Average the tied finalists of an ended sweep, score the soup, and make the report again.

    Args:
        place: the sweep's folder, or s3://….
        top: so many finalists at most.
        say: told what was found, a line at a time.

    Raises:
        InputError: there is no such sweep, it has not ended, or nothing in it can be averaged; nothing is written.
    """
    with open_storage(place) as storage:
        if not storage.exists(TRIALS) or not storage.exists(EXIT_CODE):
            raise InputError([f"{place}: holds no sweep that has ended (no {TRIALS}/, or no {EXIT_CODE})"])
        storage.pull("", only=DECIDING)
        found = findings(load_sweep(storage.folder))
        named = _tied(place, found)
        storage.pull(
            record.DATA, *(f"{TRIALS}/{trial}/{record.ADAPTER}" for row in named.values() for trial in row.values())
        )
        members = {
            name: {seed: read_trial(f"{place}/{TRIALS}/{trial}", storage.folder, trial) for seed, trial in row.items()}
            for name, row in named.items()
        }
        chosen = _of_one_shape(place, members, top)
        _write(storage.folder / SOUP, chosen)
        storage.push(SOUP)
        found = findings(load_sweep(storage.folder))
        made = section(found)
        assert made is not None
        for part in made.parts:
            if isinstance(part, Paragraph):
                say("".join(each if isinstance(each, str) else each.text for each in part.parts))
        write_report([storage.folder])
        storage.push("report")


def _tied(place: str, found: Findings) -> dict[str, dict[int, str]]:
    """Those that may be the best: name -> seed -> trial, the lowest loss first."""
    if not found.confirmed:
        raise InputError(
            [f"{place}: nothing was confirmed, so there are no rows to score a soup on; see confirm in the spec"]
        )
    rows = [*found.verdict.best, *(rival.row for rival in found.verdict.rivals if rival.tied)]
    seeds = found.sweep.trials.set_index("trial_id")["config.seed"]
    return {str(row["name"]): {int(seeds[trial]): trial for trial in row["trials"]} for row in rows}


def _of_one_shape(place: str, members: Members, top: int) -> Members:
    """The first, and those like it, on the seeds that all have."""
    name, first = next(iter(members.items()))
    seed = min(first)
    alike = {
        other: trials
        for other, trials in members.items()
        if seed in trials and same_shape(first[seed].config, trials[seed].config)
    }
    chosen = dict([*alike.items()][:top])
    if len(chosen) < 2:
        raise InputError(
            [f"{place}: nothing is tied with {name} and of its shape, so there is nothing to average it with"]
        )
    seeds = sorted(set.intersection(*(set(trials) for trials in chosen.values())))
    return {other: {seed: trials[seed] for seed in seeds} for other, trials in chosen.items()}


def _write(folder: Path, members: Members) -> None:
    """Score all of them and the soup by one loop, and write what there is to know."""
    trials = [trial for of in members.values() for trial in of.values()]
    first = trials[0]
    rows = first.test_rows()
    weighed = _Scorer(first, rows)
    seeds = list(next(iter(members.values())))
    losses: dict[str, list[float]] = {name: [] for name in ("soup", *members)}

    def write(part: Path) -> None:
        from bitlora.adapter.peft_folder import save_adapter

        for seed in seeds:
            of = {name: trials[seed] for name, trials in members.items()}
            latents = {name: rescaled(trial.latent, trial.config, first.config) for name, trial in of.items()}
            place = part / str(seed)
            config = first.config.model_copy(update={"seed": seed, "confirms": None})
            mixed = averaged([*latents.values()])
            (place / record.ADAPTER).mkdir(parents=True)
            save_adapter(place / record.ADAPTER, mixed, config, first.spec.base.model)
            write_json(place / record.CONFIG, config.model_dump(mode="json"))
            losses["soup"].append(weighed.score(mixed, place / record.TEST))
            for name, latent in latents.items():
                losses[name].append(weighed.score(latent, place / of[name].record.trial_id / record.TEST))
        written = SoupRecord(
            of={name: {str(seed): trial.record.trial_id for seed, trial in of.items()} for name, of in members.items()},
            test_loss={name: sum(found) / len(found) for name, found in losses.items()},
            base={**first.record.base, "dtype": str(first.dtype()).removeprefix("torch."), "device": str(device())},
            versions=origin.versions(),
        )
        write_json(part / record.RECORD, asdict(written))

    write_folder(folder, write)


class _Scorer:
    """One base with an adapter's layers over it, into which one adapter after the other is put."""

    def __init__(self, first: TrialFolder, rows: Rows) -> None:
        from bitlora.adapter.apply import attach_weights
        from bitlora.adapter.latent import quantized_weights
        from bitlora.adapter.peft_folder import adapted_experts, adapter_config

        config = first.config
        described = adapter_config(config, first.base.model, [*first.latent]) | {"activations": config.activations}
        self._experts = adapted_experts(first.latent, config)
        self._config, self._rows = config, rows
        self._model = attach_weights(first.model(), quantized_weights(first.latent, config), described)

    def score(self, latent: AdapterLatent, path: Path) -> float:
        """Write the scores of an adapter of the same shape and scaling; gives its loss in nats per completion token."""
        from bitlora.adapter.apply import put_weights
        from bitlora.adapter.latent import quantized_weights
        from bitlora.adapter.loss import example_losses

        rows = self._rows
        put_weights(self._model, quantized_weights(latent, self._config), self._experts)
        losses, tokens = example_losses(self._model, rows), rows.learn_tokens.tolist()
        record.write_scores(path, rows.example_ids, losses, tokens, rows.text_bytes.tolist(), groups=rows.groups)
        return math.fsum(losses) / int(rows.learn_tokens.sum())
