"""Terms against drift equal their papers' algorithms, and never see a patient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client.data.patients import PatientSet
from client.local_state import LocalState
from client.terms import ControlVariate, Proximal, Term, make_terms
from client.training import train_round
from shared.models import build_model, get_weights, initial_weights, set_weights
from shared.protocol import CONTROL
from shared.schedule import learning_rates
from shared.study import Study
from shared.transport import Weights
from simulations.seeded import SeededStream

Ward = Any  # the class in conftest.py
MakeWard = Callable[..., Ward]
CPU = torch.device("cpu")

# Every patient in every step, no noise and no clipping: a step is plain gradient descent.
PLAIN: dict[str, Any] = {
    "training": {"local_steps": 3, "sampling_rate": 1.0, "learning_rate": 40.0},
    "privacy": {"enabled": False, "clip": 1000.0},
}


def plain_study(ward: Ward, **training: Any) -> Study:
    return ward.study(training=PLAIN["training"] | training, privacy=PLAIN["privacy"])


def objective(model: nn.Module, patients: PatientSet, study: Study) -> torch.Tensor:
    """What plain training minimises: the mean over patients of the mean over their images."""
    losses = functional.cross_entropy(
        model(patients.images), patients.labels[patients.image_patient], reduction="none"
    )
    images = torch.bincount(patients.image_patient)
    weights = 1 / images[patients.image_patient] / len(patients)
    return (losses * weights).sum() / study.privacy.clip


def start_of(study: Study, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    weights = initial_weights(study).items()
    return {n: (a + 0.1 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in weights}


def test_fedprox_is_descent_on_the_loss_and_half_mu_times_the_squared_distance(
    make_ward: MakeWard,
) -> None:
    ward = make_ward(allow_without_privacy=True)
    study = plain_study(ward, proximal=0.01)
    ward.approve(study)
    weights = start_of(study)
    _, update = ward.answer(study, 1, weights=weights)

    patients = ward.cohort(None, study).train
    model = build_model(study)
    set_weights(model, weights)
    anchor = [p.detach().clone() for p in model.parameters()]
    for rate in learning_rates(study, 1):
        distance = sum(
            (p - a).square().sum() for p, a in zip(model.parameters(), anchor, strict=True)
        )
        loss = objective(model, patients, study) + 0.01 / 2 * distance
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p -= rate * g
    expected = np.concatenate(
        [(new - weights[name]).ravel() for name, new in get_weights(model).items()]
    )
    found = np.concatenate([update[name].ravel() for name in weights])
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def scaffold(study: Study, sites: list[PatientSet], weights: Weights, rounds: int) -> Weights:
    """Algorithm 1 of Karimireddy et al. 2020 with option II, all sites, global step 1."""
    x = {name: torch.tensor(array) for name, array in weights.items()}
    c = {name: torch.zeros_like(array) for name, array in x.items()}
    own = [dict(c) for _ in sites]
    model = build_model(study)
    for number in range(1, rounds + 1):
        rates = learning_rates(study, number)
        ends, deltas = [], []
        for at, patients in enumerate(sites):
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(x[name])
            for rate in rates:
                gradient = torch.autograd.grad(
                    objective(model, patients, study), list(model.parameters())
                )
                with torch.no_grad():
                    for (name, p), g in zip(model.named_parameters(), gradient, strict=True):
                        p -= rate * (g + c[name] - own[at][name])
            y = {name: p.detach().clone() for name, p in model.named_parameters()}
            new = {n: own[at][n] - c[n] + (x[n] - y[n]) / sum(rates) for n in x}
            deltas.append({n: new[n] - own[at][n] for n in x})
            own[at] = new
            ends.append(y)
        x = {n: torch.stack([end[n] for end in ends]).mean(0) for n in x}
        c = {n: c[n] + torch.stack([d[n] for d in deltas]).mean(0) for n in x}
    return {name: array.numpy() for name, array in x.items()}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_scaffold_over_rounds_and_restarts_is_the_papers_algorithm(
    make_ward: MakeWard, schedule: str
) -> None:
    wards = [make_ward(home, allow_without_privacy=True) for home in ("one", "two")]
    for ward, train, declared in zip(wards, (9, 14), (11, 16), strict=True):
        ward.train, ward.size = train, declared
    study = plain_study(wards[0], control=True, schedule=schedule)
    weights = start_of(study)
    control = {name: np.zeros_like(array) for name, array in weights.items()}
    expected = scaffold(study, [w.cohort(None, study).train for w in wards], weights, 3)
    for ward in wards:
        ward.approve(study)
    for number in (1, 2, 3):
        sent = weights | {CONTROL + name: array for name, array in control.items()}
        updates = [ward.answer(study, number, weights=sent)[1] for ward in wards]
        assert all(update.keys() == weights.keys() for update in updates)
        taken = sum(learning_rates(study, number))
        mean = {n: np.mean([u[n] for u in updates], axis=0) for n in weights}
        # What the server concludes from the updates alone.
        control = {n: c + np.float32(1) * (-c - mean[n] / taken) for n, c in control.items()}
        control = {n: c.astype(np.float32) for n, c in control.items()}
        weights = {n: w + mean[n] for n, w in weights.items()}
    found, reference = (
        np.concatenate([arrays[n].ravel() for n in expected]) for arrays in (weights, expected)
    )
    begun = np.concatenate([a.ravel() for a in start_of(study).values()])
    assert np.linalg.norm(found - reference) < 1e-3 * np.linalg.norm(reference - begun)


def moved_by(terms: list[Term], patients: PatientSet, study: Study) -> torch.Tensor:
    """How far one noised step goes."""
    model = build_model(study).double()
    with torch.no_grad():
        model.get_parameter("head.weight").add_(0.1)
    start = [p.detach().clone() for p in model.parameters()]
    train_round(
        model,
        patients,
        study,
        size=len(patients),
        noise_multiplier=1.0,
        round_number=1,
        stream=SeededStream(3),
        device=CPU,
        physical_batch=3,
        terms=terms,
    )
    ends = zip(model.parameters(), start, strict=True)
    return torch.cat([(p.detach() - s).flatten() for p, s in ends])


@pytest.mark.parametrize("which", ["proximal", "control"])
def test_a_term_adds_the_same_whoever_the_patients_are(ward: Ward, which: str) -> None:
    study = ward.study(training={"local_steps": 1, "sampling_rate": 1.0, "proximal": 0.5})
    one = ward.cohort(None, study).train
    other = PatientSet(one.images.flip(0) * 0.7, one.image_patient, 1 - one.labels, one.patients)
    model = build_model(study)
    term: Term = (
        Proximal(0.5, tuple(torch.full_like(p, 0.3) for p in model.parameters()))
        if which == "proximal"
        else ControlVariate(tuple(torch.full_like(p, 0.3) for p in model.parameters()))
    )
    added = [moved_by([term], who, study) - moved_by([], who, study) for who in (one, other)]
    assert added[0].norm() > 0.1
    assert (added[0] - added[1]).norm() < 1e-12 * added[0].norm()
    assert (moved_by([], one, study) - moved_by([], other, study)).norm() > 1e-3


def test_the_plan_says_which_terms_there_are(ward: Ward) -> None:
    zeros = {n: np.zeros_like(a) for n, a in initial_weights(ward.study()).items()}

    def kinds(sent: Weights, **training: Any) -> list[str]:
        study = ward.study(training=training)
        terms = make_terms(study, build_model(study), sent, LocalState())
        return [type(term).__name__ for term in terms]

    assert kinds({}) == []
    assert kinds({}, proximal=0.1) == ["Proximal"]
    assert kinds(zeros, control=True) == ["ControlVariate"]
    assert kinds(zeros, control=True, proximal=0.1) == ["Proximal", "ControlVariate"]


def test_own_norms_take_no_part_in_control(ward: Ward) -> None:
    study = ward.study(training={"control": True, "local_norms": True})
    model = build_model(study)
    ones = {name: np.ones_like(a) for name, a in initial_weights(study).items()}
    (term,) = make_terms(study, model, ones, LocalState())
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    term.correct(list(model.parameters()), gradients)
    names = [name for name, _ in model.named_parameters()]
    untouched = {n for n, g in zip(names, gradients, strict=True) if not g.any()}
    # In a stage of the cnn the second module is the group norm.
    assert untouched == {n for n in names if n.startswith("stages.") and n.split(".")[2] == "1"}
    assert len(untouched) == 4
    after = LocalState().after(study, 1, ones, ones, ones)
    assert after.control.keys() == set(names) - untouched
    assert after.norms.keys() == untouched
