"""Scores the models of a cell on the common test set and on each site's own patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from client.data.cohort import PatientSet
from client.evaluation import patient_scores
from shared.models import build_model, set_weights
from shared.protocol import Statistics
from shared.study import Study
from shared.transport import Weights
from simulations.build import Federation
from simulations.patients import Patients
from simulations.records import MEAN, METRICS, WORST, Measurement
from simulations.scores import RESAMPLES, Floats, Ints, Score, Scores, over_sites, score

BATCH = 256


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        weights: By parameter.
        statistics: What it fills in missing values of a table from, if it does.
    """

    weights: Weights
    statistics: Statistics | None = None


SiteModels = Mapping[str, Model | None]
"""A model for each site by name; None where a site could not make one."""


@dataclass(frozen=True)
class Judge:
    """Scores models of one cell; every model meets the same patients and the same resamples.

    Attributes:
        scenario: Name of the scenario.
        strategy: Name of the strategy.
        seed: The cell's seed.
        federation: The test set and the sites' held-out patients.
        study: Says what the models are.
        device: Where to compute.
        resamples: Of the bootstrap.
    """

    scenario: str
    strategy: str
    seed: int
    federation: Federation
    study: Study
    device: torch.device
    resamples: int = RESAMPLES

    def shared_model(self, model: Model) -> list[Measurement]:
        """Score one model for all: on the test set and its subgroups, and at each site."""
        said = self._ask(model, self.federation.test)
        rows = [
            row
            for subgroup, members in self._subgroups()
            for row in _rows(
                self._score(said.take(members), "test"), replace(self._blank, subgroup=subgroup)
            )
        ]
        return rows + self._at_sites({site.name: model for site in self.federation.sites})

    def site_models(self, models: SiteModels, kind: str) -> list[Measurement]:
        """Score each site's own model: all on the test set, each on its site's patients.

        Of the test set's subgroups only the mean over sites and the worst site are told.

        Args:
            models: For every site its model, or None.
            kind: "local" or "personal".
        """
        rows: list[Measurement] = []
        test = self.federation.test
        said = {site: self._ask(m, test) if m else None for site, m in models.items()}
        for subgroup, members in self._subgroups():
            scores = {
                site: self._score(answers.take(members), "test") if answers else None
                for site, answers in said.items()
            }
            found = _of_sites(scores, replace(self._blank, model=kind, subgroup=subgroup))
            rows += [row for row in found if not subgroup or row.site in (MEAN, WORST)]
        return rows + self._at_sites(models, kind)

    def checkpoint(self, model: Model, round_number: int) -> list[Measurement]:
        """Score the global model after a round on the test set, without intervals."""
        found = self._score(self._ask(model, self.federation.test), "test", resamples=0)
        return _rows(found, replace(self._blank, round=round_number))

    @property
    def _blank(self) -> Measurement:
        """A figure of this cell yet to be filled in."""
        return Measurement(self.scenario, self.strategy, self.seed, METRICS[0], None)

    def _subgroups(self) -> Iterator[tuple[str, Ints]]:
        """Yield the test patients as indices, all of them and then by the cells of each group."""
        test, names = self.federation.test, self.federation.dataset.group_names
        yield "", np.arange(len(test))
        for grouping, cells in test.groups.items():
            for index, name in enumerate(names[grouping]):
                if (cells == index).any():
                    yield f"{grouping}:{name}", np.flatnonzero(cells == index)

    def _at_sites(self, models: SiteModels, kind: str = "global") -> list[Measurement]:
        """Score each site's model on its own held-out patients."""
        held_out = {site.name: site.held_out for site in self.federation.sites}
        scores = {
            site: self._score(self._ask(model, held_out[site]), site) if model else None
            for site, model in models.items()
        }
        return _of_sites(scores, replace(self._blank, where="own", model=kind))

    def _ask(self, model: Model, patients: Patients) -> _Answers:
        return _Answers(probabilities(model, patients, self.study, self.device), patients.labels)

    def _score(self, answers: _Answers, seed: str, resamples: int | None = None) -> Scores:
        known = answers
        if not self.study.task.findings:
            known = answers.take(np.flatnonzero(answers.labels >= 0))
        return score(
            known.probabilities,
            known.labels,
            self.study.task,
            resamples=self.resamples if resamples is None else resamples,
            seed=f"{self.seed}:{seed}",
        )


@dataclass(frozen=True)
class _Answers:
    """What a model said of patients, and the truth."""

    probabilities: Floats
    labels: Ints

    def take(self, chosen: Ints) -> _Answers:
        return _Answers(self.probabilities[chosen], self.labels[chosen])


def probabilities(model: Model, patients: Patients, study: Study, device: torch.device) -> Floats:
    """Return what a model says of each patient: the mean over the images, [n, classes]."""
    network = build_model(study, model.statistics)
    set_weights(network, model.weights)
    everyone, findings = as_patient_set(patients), study.task.findings
    return patient_scores(network, everyone, device, BATCH, findings=findings)


def as_patient_set(patients: Patients) -> PatientSet:
    """Return patients as a hospital's code takes them; simulated ones need no pseudonym."""
    return PatientSet(
        images=torch.from_numpy(np.ascontiguousarray(patients.images, dtype=np.float32)),
        image_patient=torch.from_numpy(patients.image_patient),
        labels=torch.from_numpy(patients.labels),
        patients=("",) * len(patients),
    )


def _of_sites(scores: Mapping[str, Scores | None], blank: Measurement) -> list[Measurement]:
    """Return each site's figures, their mean and the worst of them."""
    nothing = Score(None, np.empty(0), 0, 0, 1)
    rows: list[Measurement] = []
    for metric in METRICS:
        each = {site: s[metric] if s else nothing for site, s in scores.items()}
        mean, worst = over_sites(metric, each.values())
        for site, found in {**each, MEAN: mean, WORST: worst}.items():
            rows += _rows({metric: found}, replace(blank, site=site))
    return rows


def _rows(scores: Scores, blank: Measurement) -> list[Measurement]:
    return [
        replace(
            blank,
            metric=metric,
            value=found.value,
            low=found.interval[0],
            high=found.interval[1],
            patients=found.patients,
            over=found.over,
            of=found.of,
        )
        for metric, found in scores.items()
    ]
