"""One cell of a sweep: a strategy on a scenario with a seed, computed and scored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load_file, save

from client.data.patients import trainable
from client.hospital import Hospital
from client.personal import personal_weights
from client.training import pick_device
from server.files import write_atomically
from shared.errors import CoordinatorError, SimulationError, SiteError
from shared.protocol import Statistics
from shared.study import Study
from simulations.build import Federation, SiteData
from simulations.hospital import site_id
from simulations.measure import Judge, Model, as_patient_set
from simulations.memory import MemoryWatch
from simulations.patients import concatenate
from simulations.records import Cell, Measurement, Missing, Outcome, Part, SiteRow
from simulations.scenario import Behaviour, Scenario, study_of
from simulations.trace import Spent, Trace, note_spent, read_checkpoints, read_trace

CURVE_POINTS = 32
"""Of a longer run only every so many rounds are scored."""

POOLED = "pooled"
PERSONAL = "personal"

Tell = Callable[[float], None]
"""Is told which part of a cell's rounds is done, 0 to 1."""


class Simulate(Protocol):
    """What computes a federation: `simulations.engine.simulate` with its resources given."""

    def __call__(
        self,
        federation: Federation,
        study: Study,
        run_dir: Path,
        *,
        seed: int,
        behaviour: Behaviour = ...,
        on_round: Callable[[int], None] | None = ...,
        inspect: Callable[[Mapping[str, Hospital]], None] | None = ...,
    ) -> None:
        """Run a federation; `run_dir` is left as a real run leaves it.

        Args:
            federation: The sites' data.
            study: The plan.
            run_dir: Of the run.
            seed: Of training and noise.
            behaviour: What the sites do over the rounds.
            on_round: Told how many rounds are done.
            inspect: Given the hospitals by id at the end.
        """


@dataclass(frozen=True)
class _Found:
    """What a setting leaves, before it is put together."""

    measurements: list[Measurement]
    parts: list[Part]
    spent: dict[str, Spent]
    rounds: int
    sites: tuple[SiteData, ...]
    bytes_up: int = 0
    bytes_down: int = 0
    notes: tuple[str, ...] = ()


def run_cell(
    cell: Cell,
    scenario: Scenario,
    federation: Federation,
    folder: Path,
    simulate: Simulate,
    device: str,
    tell: Tell,
) -> Outcome:
    """Compute a cell, or take it up where it was cut short, and score what comes of it.

    Args:
        cell: As planned.
        scenario: Its scenario.
        federation: Of its scenario and seed.
        folder: Of the runs; new, or of this cell. Call `tidy` once the outcome is stored.
        simulate: Computes.
        device: Where to score: "auto", "cpu" or "cuda".
        tell: Progress.

    Raises:
        ConsiliumError: The federation failed.
    """
    study = study_of(scenario, cell.strategy, len(federation.sites))
    judge = Judge(scenario.name, cell.strategy, cell.seed, federation, study, pick_device(device))
    run = _Run(cell, scenario, federation, study, folder, simulate, judge, tell)
    setting = scenario.strategy(cell.strategy).setting
    with MemoryWatch() as memory:
        found = {"federated": run.federated, "alone": run.alone, "pooled": run.pooled}[setting]()
    facts = federation.dataset
    epsilons = [spent.epsilon for spent in found.spent.values()]
    done = replace(
        cell,
        state="finished",
        reason="",
        study_digest=study.digest,
        private=study.privacy.enabled,
        seeded_noise=study.privacy.enabled,
        epsilon=max(epsilons, default=None),
        delta=max((spent.delta for spent in found.spent.values()), default=None),
        rounds=found.rounds,
        bytes_up=found.bytes_up,
        bytes_down=found.bytes_down,
        peak_bytes=memory.peak,
        dataset=facts.name,
        classes=facts.classes,
        findings=facts.findings,
        test_patients=len(federation.test),
        notes=(*federation.notes, *found.notes),
    )
    return Outcome(
        cell=done,
        measurements=found.measurements,
        sites=[_site_row(cell, site, study, found.spent.get(site.name)) for site in found.sites],
        parts=found.parts,
        missing=_missing(cell, federation, {site.name for site in found.sites}),
    )


@dataclass(frozen=True)
class _Run:
    """A cell in progress: the three settings."""

    cell: Cell
    scenario: Scenario
    federation: Federation
    study: Study
    folder: Path
    simulate: Simulate
    judge: Judge
    tell: Tell

    def federated(self) -> _Found:
        """All sites learn one model together."""
        run_dir, sites = self.folder / "run", self.federation.sites
        self.simulate(
            self.federation,
            self.study,
            run_dir,
            seed=self.cell.seed,
            behaviour=self.scenario.behaviour,
            on_round=partial(self._done, 0, 1),
            inspect=partial(self._keep, run_dir),
        )
        trace = self._read(run_dir, sites)
        measurements = self._one_model(run_dir, trace)
        if _stays_at_sites(self.study):
            statistics = trace.model.statistics
            models = {s.name: self._personal(n, statistics) for n, s in enumerate(sites)}
            measurements += self.judge.site_models(models, "personal")
        return _Found(
            measurements,
            list(trace.parts),
            trace.spent,
            trace.rounds,
            sites,
            trace.bytes_up,
            trace.bytes_down,
        )

    def pooled(self) -> _Found:
        """One site has everybody's patients."""
        everybody = SiteData(
            POOLED,
            concatenate([site.train for site in self.federation.sites]),
            concatenate([site.held_out for site in self.federation.sites]),
        )
        trace = self._by_itself(everybody, POOLED, 0, 1)
        measurements = self._one_model(self.folder / POOLED, trace)
        return _Found(measurements, list(trace.parts), trace.spent, trace.rounds, (everybody,))

    def alone(self) -> _Found:
        """Every site trains on its own patients only; one that cannot has no model."""
        sites, parts = self.federation.sites, list[Part]()
        models: dict[str, Model | None] = {}
        spent: dict[str, Spent] = {}
        rounds, reasons = 0, list[str]()
        for number, site in enumerate(sites):
            try:
                trace = self._by_itself(site, site_id(number), number, len(sites))
            except CoordinatorError as error:  # of a round: it has too few patients, for example
                models[site.name] = None
                why = error.where.removeprefix(f"{site_id(0)}: ")  # so is the only site called
                reasons.append(f"{site.name} could not train by itself: {error.what} ({why})")
                self.tell((number + 1) / len(sites))
                continue
            models[site.name], rounds = trace.model, max(rounds, trace.rounds)
            parts += trace.parts
            spent |= trace.spent
        if not any(models.values()):
            raise SimulationError("no site could train by itself", reasons[0])
        measurements = self.judge.site_models(models, "local")
        return _Found(measurements, parts, spent, rounds, sites, notes=tuple(reasons))

    def _by_itself(self, site: SiteData, folder: str, number: int, of: int) -> Trace:
        """Run the federation of one site, the `number`th of so many."""
        single = replace(self.federation, sites=(site,))
        run_dir = self.folder / folder
        self.simulate(
            single,
            self.study,
            run_dir,
            seed=self.cell.seed,
            on_round=partial(self._done, number, of),
            inspect=partial(note_spent, run_dir, self.study),
        )
        return self._read(run_dir, single.sites)

    def _read(self, run_dir: Path, sites: Sequence[SiteData]) -> Trace:
        """Read the run of these sites, which knows their ids, and tell of them by their names."""
        trace = read_trace(run_dir, self.study, self.cell.id)
        names = {site_id(number): site.name for number, site in enumerate(sites)}
        return replace(
            trace,
            parts=tuple(replace(part, site=names[part.site]) for part in trace.parts),
            spent={names[own_id]: spent for own_id, spent in trace.spent.items()},
        )

    def _keep(self, run_dir: Path, hospitals: Mapping[str, Hospital]) -> None:
        """Write down what the hospitals know alone, before their folders go."""
        note_spent(run_dir, self.study, hospitals)
        _keep_personal(self.study, self.folder / PERSONAL, hospitals)

    def _one_model(self, run_dir: Path, trace: Trace) -> list[Measurement]:
        """Score the released model, and those of the rounds on the way to it."""
        every = math.ceil(trace.rounds / CURVE_POINTS)
        curve = [
            row
            for number, weights in read_checkpoints(run_dir, every)
            for row in self.judge.checkpoint(Model(weights, trace.model.statistics), number)
        ]
        return self.judge.shared_model(trace.model) + curve

    def _personal(self, number: int, statistics: Statistics | None) -> Model | None:
        path = self.folder / PERSONAL / f"{site_id(number)}.safetensors"
        return Model(load_file(path), statistics) if path.exists() else None

    def _done(self, number: int, of: int, rounds: int) -> None:
        self.tell((number + rounds / self.study.federation.rounds) / of)


def _stays_at_sites(study: Study) -> bool:
    """Tell whether sites have models of their own in the end."""
    return study.training.personal_rounds > 0 or study.training.local_norms


def _keep_personal(study: Study, folder: Path, hospitals: Mapping[str, Hospital]) -> None:
    """Write down the models that stayed at the sites, if any."""
    if not _stays_at_sites(study):
        return
    folder.mkdir(exist_ok=True)
    for own_id, hospital in hospitals.items():
        with suppress(SiteError):  # a site that was away has none
            weights = personal_weights(hospital, study)
            write_atomically(folder / f"{own_id}.safetensors", save(weights))


def _site_row(cell: Cell, site: SiteData, study: Study, spent: Spent | None) -> SiteRow:
    trained = trainable(as_patient_set(site.train), study)
    labels, classes = trained.labels.numpy(), len(study.task.classes)
    if study.task.findings:
        counts, unknown = (labels == 1).sum(axis=0), (labels < 0).sum(axis=0)
    else:
        counts = np.bincount(labels[labels >= 0], minlength=classes)
        unknown = np.array([(labels < 0).sum()])
    return SiteRow(
        cell=cell.id,
        site=site.name,
        train_patients=len(trained),
        held_out_patients=len(site.held_out),
        train_images=len(trained.images),
        counts=tuple(counts.tolist()),
        unknown=tuple(unknown.tolist()),
        epsilon=spent.epsilon if spent else None,
        delta=spent.delta if spent else None,
        noise_multiplier=spent.noise_multiplier if spent else None,
    )


def _missing(cell: Cell, federation: Federation, sites: set[str]) -> list[Missing]:
    """Return what each site lacked; of pooled patients, what all of them did together."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    totals: Counter[tuple[str, str, str, str]] = Counter()
    for lack in federation.missing:
        site = lack.site if lack.site in sites else POOLED
        counts[site, lack.what, lack.name, lack.cause] += lack.count
        totals[site, lack.what, lack.name, lack.cause] += lack.total
    return [Missing(cell.id, *key, count, totals[key]) for key, count in counts.items()]


_KEPT = frozenset(
    {"model.safetensors", "model-card.json", "metrics.jsonl", "events.jsonl", "study.json"}
)


def tidy(folder: Path) -> None:
    """Remove what only the computing needed, such as checkpoints; models and logs stay."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name not in _KEPT:
            path.unlink()
