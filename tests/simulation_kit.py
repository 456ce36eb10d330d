"""Made-up results of simulations, written the way a sweep leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from shared.study import Study, Task, Training
from simulations.records import (
    LOWER_IS_BETTER,
    MEAN,
    METRICS,
    WORST,
    Cell,
    Measurement,
    Missing,
    Outcome,
    Part,
    SiteRow,
)
from simulations.results import Results

SETTINGS = (("alone", "alone"), ("pooled", "pooled"))
SKILL = {
    "alone": 0.70, "alone-more": 0.75, "fedavg": 0.86, "fedprox": 0.865, "scaffold": 0.92,
    "pooled": 0.95, "pooled-more": 0.97,
}  # fmt: skip


@dataclass(frozen=True)
class MadeUp:
    """One scenario to make up.

    Attributes:
        name: Of the scenario.
        strategies: Their names.
        seeds: How many.
        sites: How many.
        classes: Their names.
        rounds: How many.
        harm: Taken off what everyone but pooled reaches.
        epsilon: Spent; None: without privacy.
        dropouts: Whether sites miss rounds.
        gaps: Whether data are missing.
        labels: Places in a sweep.
        subgroups: Whether subgroups are scored.
        failed: (strategy, seed) of cells that failed.
        settings: (strategy, setting) of own strategies that are no federations.
    """

    name: str = "dirichlet-0.1"
    strategies: tuple[str, ...] = ("alone", "pooled", "fedavg", "fedprox", "scaffold")
    seeds: int = 5
    sites: int = 8
    classes: tuple[str, ...] = ("normal", "pneumonia")
    rounds: int = 12
    harm: float = 0.0
    epsilon: float | None = None
    dropouts: bool = False
    gaps: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    subgroups: bool = False
    failed: tuple[tuple[str, int], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


def write_results(folder: Path, scenarios: Sequence[MadeUp]) -> Path:
    """Write `results.sqlite` of made-up scenarios; the same input gives the same figures."""
    with Results(folder, create=True) as results:
        for made_up in scenarios:
            cells = [
                cell_of(made_up, strategy, seed)
                for seed in range(made_up.seeds)
                for strategy in made_up.strategies
            ]
            results.plan(cells)
            for cell in cells:
                if (cell.strategy, cell.seed) in made_up.failed:
                    results.note(replace(cell, state="failed", reason="<b>out</b> of memory"))
                else:
                    results.store(outcome(made_up, cell))
    return folder


def cell_of(made_up: MadeUp, strategy: str, seed: int) -> Cell:
    """Return a planned cell."""
    return Cell(
        id=f"{hash_of(f'{made_up.name}/{strategy}/{seed}'):016x}",
        scenario=made_up.name,
        strategy=strategy,
        seed=seed,
        scenario_digest=f"{hash_of(made_up.name):064x}",
        strategy_digest=f"{hash_of(strategy):064x}",
        code="c0de" * 16,
        code_version="0.1.0 (abc1234)",
        machine="Imaginary CPU, 2 cores, Python 3.11",
        setting=dict((*SETTINGS, *made_up.settings)).get(strategy, "federated"),
        labels=dict(made_up.labels),
        command=f"consilium simulate run {made_up.name}.toml",
        description=f"made up as {strategy}",
        scenario_text=json.dumps({"name": made_up.name, "seeds": list(range(made_up.seeds))}),
        study_text=_study(strategy).canonical(),
    )


def _study(strategy: str) -> Study:
    """Return a study; of `often`, one that averages after half of the steps."""
    training = Training(local_steps=4 if strategy == "often" else 8)
    return Study(name="made-up", task=Task(classes=("normal", "pneumonia")), training=training)


def outcome(made_up: MadeUp, cell: Cell) -> Outcome:
    """Return what a cell would leave."""
    chance = np.random.default_rng(cell.seed)
    names = [f"site-{i + 1:02d}" for i in range(made_up.sites)]
    shares = chance.dirichlet(np.full(made_up.sites, 0.8))
    sizes = 20 + np.round(shares * 200 * made_up.sites).astype(int)
    mixes = chance.dirichlet(np.full(len(made_up.classes), 0.6), made_up.sites)
    counts = [chance.multinomial(size, mix) for size, mix in zip(sizes, mixes, strict=True)]
    private = made_up.epsilon is not None
    messages = made_up.sites * made_up.rounds if cell.setting == "federated" else 0
    finished = replace(
        cell,
        state="finished",
        started="2026-01-01T10:00:00+00:00",
        seconds=61.5 + cell.seed,
        study_digest=hashlib.sha256(f"{made_up.name} {cell.strategy}".encode()).hexdigest(),
        private=private,
        seeded_noise=private,
        # Strategies spend a little less than they may, each as its own plan comes out.
        epsilon=made_up.epsilon and made_up.epsilon - (0.003 if "fed" in cell.strategy else 0.1),
        delta=1e-5 if private else None,
        rounds=made_up.rounds,
        bytes_up=61_000 * messages,
        bytes_down=62_000 * messages,
        dataset="phantoms",
        classes=made_up.classes,
        test_patients=400,
        notes=("Made-up <phantoms> & no one's lungs.",),
    )  # fmt: skip
    rows = [
        SiteRow(
            cell=cell.id, site=name, train_patients=int(size), held_out_patients=int(size) // 5,
            train_images=int(size) * 2, counts=tuple(map(int, count)),
            epsilon=finished.epsilon, delta=finished.delta,
            noise_multiplier=1.1 if private else None,
        )
        for name, size, count in zip(names, sizes, counts, strict=True)
    ]  # fmt: skip
    if cell.setting == "pooled":
        size = sum(r.train_patients for r in rows)
        held_out = sum(r.held_out_patients for r in rows)
        total = tuple(int(n) for n in np.sum([r.counts for r in rows], axis=0))
        rows = [SiteRow(cell.id, "pooled", size, held_out, 2 * size, total)]
    return Outcome(
        finished,
        measurements=measurements(made_up, cell, names, [min(c) for c in counts]),
        sites=rows,
        parts=_parts(made_up, cell, [row.site for row in rows]),
        missing=_missing(made_up, cell, [row.site for row in rows]),
    )


def measurements(
    made_up: MadeUp, cell: Cell, names: Sequence[str], rarest: Sequence[int]
) -> list[Measurement]:
    """Return the figures of a cell: strategies differ by skill, sites and seeds by chance."""
    chance = np.random.default_rng(hash_of(f"{cell.strategy}/{cell.seed}"))
    skill = SKILL.get(cell.strategy, 0.80 + hash_of(cell.strategy) % 100 / 1000)
    if cell.setting != "pooled":
        skill -= made_up.harm
    skill -= 0.25 / (1 + (made_up.epsilon or np.inf)) + 0.01 * (cell.seed % 3)
    found: list[Measurement] = []
    first = Measurement(made_up.name, cell.strategy, cell.seed, "auc", None, patients=400)

    def note(level: float, like: Measurement, spread: float = 0.0) -> dict[str, float]:
        values = {}
        for metric in METRICS:
            value = level + spread * chance.normal()
            value = 0.35 * (1 - value) if metric in LOWER_IS_BETTER else value
            values[metric] = float(np.clip(value, 0.01, 0.999))
            low, high = max(values[metric] - 0.03, 0.0), min(values[metric] + 0.03, 1.0)
            m = replace(like, metric=metric, value=values[metric], low=low, high=high)
            found.append(m)
        return values

    def over_sites(like: Measurement, each: list[dict[str, float] | None]) -> None:
        known = [v for v in each if v is not None]
        for metric in METRICS:
            values = [v[metric] for v in known]
            worst = max(values) if metric in LOWER_IS_BETTER else min(values)
            for site, value in ((MEAN, sum(values) / len(values)), (WORST, worst)):
                m = replace(like, metric=metric, site=site, over=len(values), of=len(each))
                found.append(replace(m, value=value, low=value - 0.02, high=value + 0.02))

    model = "local" if cell.setting == "alone" else "global"
    if model == "global":
        for number in range(made_up.rounds + 1):
            reached = 0.5 + (skill - 0.5) * (1 - np.exp(-4 * number / made_up.rounds))
            note(float(reached), replace(first, round=number), 0.008)
        note(skill, first, 0.004)
        for group, less in (("sex:F", 0.0), ("sex:M", 0.03)):
            if made_up.subgroups:
                note(skill - less, replace(first, subgroup=group, patients=200), 0.01)
    else:
        tests = [
            note(skill - 0.1, replace(first, model=model, site=name), 0.06) for name in names
        ]  # fmt: skip
        over_sites(replace(first, model=model), list(tests))
    models = [model, "personal"] if cell.strategy == "personal" else [model]
    for kind in models:
        own: list[dict[str, float] | None] = []
        for name, rare in zip(names, rarest, strict=True):
            like = replace(first, where="own", model=kind, site=name, patients=40)
            own.append(note(skill, like, 0.05) if rare else None)
            if not rare:
                found.append(like)
        if any(own):
            over_sites(replace(first, where="own", model=kind), own)
    return found


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def _parts(made_up: MadeUp, cell: Cell, names: Sequence[str]) -> list[Part]:
    chance = np.random.default_rng(100 + cell.seed)
    parts = []
    for number in range(1, made_up.rounds + 1):
        for i, name in enumerate(names):
            state = "update"
            if made_up.dropouts and i % 3 == 1 and number % 3 == 0:
                state = "absent"
            elif made_up.dropouts and chance.random() < 0.08:
                state = str(chance.choice(["late", "failed", "refused"]))
            parts.append(Part(cell.id, number, name, state))
    return [*parts, *(Part(cell.id, made_up.rounds + 1, name, "evaluated") for name in names)]


def _missing(made_up: MadeUp, cell: Cell, names: Sequence[str]) -> list[Missing]:
    if not made_up.gaps:
        return []
    chance = np.random.default_rng(200 + cell.seed)
    return [
        Missing(cell.id, name, what, which, "missing-values", int(chance.integers(0, 100)), 120)
        for i, name in enumerate(names)
        for what, which in (("label", ""), ("image", ""), ("value", "age"))
        if i % 2 or what != "label"
    ]


class Tags(HTMLParser):
    """Collects elements, and fails where one is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.stack == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
