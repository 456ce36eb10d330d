"""What numbers the noised values take tells nobody who was there: attacks that once did.

In float32 the sum of a patient's gradient t and noise n takes other values than 0 + n does, and
noise far above 2^24 leaves the parity of a count as it is.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import PatientSet
from client.privacy.counts import GRID, noised
from client.privacy.dpsgd import Batch, Grid, clipped_sum, per_image_gradients
from client.privacy.sampler import draw_lot
from client.training import train_round
from shared.accounting import calibrate
from shared.models import build_model
from shared.study import Study
from simulations.seeded import SeededStream

DELTA, PATIENTS, UNITS = 1e-5, 16, 512
RARE = 2  # the category of the one patient who is looked for


def impossible(seen: np.ndarray, t: np.ndarray) -> bool:
    """Whether some number seen is not the float32 sum of t and any float32 number n.

    Where the sum is below |t| / 4, n lies near -t and both are multiples of the last place of
    |t| / 2; so is their sum, which is then exact.

    Args:
        seen: float64 [n].
        t: What the patient adds to each, float64 [n]; a few per cent off does not matter.
    """
    place = np.spacing(np.abs(t).astype(np.float32)).astype(np.float64) / 4
    return bool(np.any((np.abs(seen) < np.abs(t) / 4) & (seen % place != 0)))


def make_study(layers: list[int], rate: float) -> Study:
    categories = [f"c{i}" for i in range(RARE + 1)]
    return Study.model_validate(
        {
            "name": "t",
            "task": {"classes": ["a", "b"]},
            "table": {"columns": [{"name": "kind", "categories": categories}], "missing": "drop"},
            "model": {"name": "table", "layers": layers},
            "training": {"local_steps": 1, "sampling_rate": rate, "learning_rate": 1.0},
            "privacy": {"clip": 1.0},
        }
    )


def make_patients(with_rare: bool) -> PatientSet:
    """Patients of the common categories; the last may be the one who is looked for."""
    kinds = torch.arange(PATIENTS) % RARE
    kinds[-1] = RARE if with_rare else 0
    names = tuple(f"{i:064x}" for i in range(PATIENTS))
    labels = torch.arange(PATIENTS) % 2
    return PatientSet(kinds.float()[:, None], torch.arange(PATIENTS), labels, names)


def rare_only_model(study: Study) -> nn.Module:
    """Weights that a coordinator might send: the hidden units fire for the one patient alone."""
    model = build_model(study)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("hidden.0.weight")[:, RARE] = 1.0
    return model


def step_of_head(
    model: nn.Module, patients: PatientSet, study: Study, sigma: float, seed: int
) -> np.ndarray:
    """The noised sum at the last layer's weights as the update shows it: they started at 0."""
    train_round(
        model,
        patients,
        study,
        size=PATIENTS,
        noise_multiplier=sigma,
        round_number=1,
        stream=SeededStream(seed),
        device=torch.device("cpu"),
        physical_batch=64,
    )
    unit = study.training.sampling_rate * PATIENTS  # a power of two, so nothing is rounded
    return -model.get_parameter("head.weight").detach().double().numpy() * unit


def was_there(study: Study, patients: PatientSet, seed: int) -> bool:
    """Whether the lot of the step of `step_of_head` holds the last patient."""
    rate = study.training.sampling_rate
    lot = draw_lot(SeededStream(seed), patients.image_patient, PATIENTS, rate, 4)
    return PATIENTS - 1 in lot.patients


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
def test_crafted_weights_do_not_show_who_was_in_a_lot(epsilon: float) -> None:
    study, patients = make_study([UNITS], rate=0.5), make_patients(with_rare=True)
    sigma = calibrate(epsilon, DELTA, 0.5, 1)
    # All units add alike: a gradient clipped to length 1 spreads over 2 * 512 weights.
    t = np.full((2, UNITS), (2 * UNITS) ** -0.5)
    seeds = range(40)
    present = {seed: was_there(study, patients, seed) for seed in seeds}
    assert 10 < sum(present.values()) < 30
    named_absent = [
        seed
        for seed in seeds
        if impossible(step_of_head(rare_only_model(study), patients, study, sigma, seed), t)
    ]
    assert named_absent == []


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_no_update_of_honest_weights_rules_a_patient_out(rate: float) -> None:
    study = make_study([], rate)
    sigma = calibrate(3.0, DELTA, rate, 1)
    # The patient's own category is nobody else's: half of what the bias gets, clipped or not.
    t = np.array([0.5, 0.5])
    ruled_out = [
        seed
        for seed in range(200)
        if impossible(
            step_of_head(build_model(study), make_patients(False), study, sigma, seed)[:, RARE], t
        )
    ]
    assert ruled_out == []


def test_the_attack_would_find_noise_in_float32() -> None:
    rng = np.random.default_rng(0)
    t, n = np.float32(0.03), rng.normal(0, 1, (100, 1024)).astype(np.float32)
    found = [impossible(row.astype(np.float64), np.full(1024, 0.03)) for row in n]
    assert sum(found) > 90
    with_patient = (n + t).astype(np.float64)
    assert not any(impossible(row, np.full(1024, 0.03)) for row in with_patient)


def test_noised_sums_are_whole_steps_whoever_is_there() -> None:
    study = make_study([UNITS], rate=1.0)
    for with_rare in (True, False):
        seen = step_of_head(rare_only_model(study), make_patients(with_rare), study, 1.0, 1)
        near = np.abs(seen) < 0.1  # where float32 holds whole steps exactly
        steps = seen[near] / Grid.of(1.0).step
        assert np.array_equal(steps, np.round(steps))
        assert set(np.unique(steps % 4)) == {0, 1, 2, 3}


def test_the_parity_of_counts_is_hidden_by_noise_of_any_size() -> None:
    counts = np.array([3, 8, 11, 4, 7, 7, 2, 5])
    seen = np.array([noised(counts, 2.0**27, SeededStream(seed)) for seed in range(25)])
    large = np.abs(seen) > 2**26  # in float32 all of these are multiples of 4 or more, and count
    for cell, far in zip(seen.T, large.T, strict=True):
        assert far.sum() > 10
        assert len(set(cell[far] % 4)) > 1
    parts = seen * GRID
    assert np.array_equal(parts, np.round(parts))
    assert (parts % 64 != 0).mean() > 0.9


@pytest.mark.parametrize("clip", [1e-45, 1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("length", [1e-30, 0.3, 1e4, 1e15])
def test_no_gradient_of_any_length_gets_past_any_clip(clip: float, length: float) -> None:
    rng = torch.Generator().manual_seed(1)
    rows = length * torch.randn(6, 700, generator=rng)
    model = nn.Linear(700, 2)
    nn.init.zeros_(model.weight)
    grid = Grid.of(clip)
    with per_image_gradients(model) as watched:
        for row in rows:
            one = Batch(row[None], torch.tensor([0]), torch.ones(1), torch.tensor([0]))
            total = torch.cat([t.flatten() for t in clipped_sum(watched, [one], grid)])
            assert (total.double() * grid.step).norm() <= clip


class Tokens(nn.Module):
    """A layer applied to every token of a row, as attention does, and summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(tokens).sum(dim=1)


def test_tokens_that_cancel_do_not_hide_a_gradients_length() -> None:
    # Products of tokens in float32, a shortcut to the norm, lose it altogether here.
    rng = torch.Generator().manual_seed(2)
    big = 1e4 * torch.randn(1, 64, generator=rng)
    small = torch.randn(1, 64, generator=rng)
    tokens = torch.cat([big, small - big])
    gram = float((tokens @ tokens.T).sum())
    true = float(tokens.double().sum(dim=0).square().sum())
    assert gram < 0 < true or abs(gram - true) > true / 2
    model, grid = Tokens(64), Grid.of(1.0)
    one = Batch(tokens[None], torch.tensor([0]), torch.ones(1), torch.tensor([0]))
    with per_image_gradients(model) as watched:
        (total,) = clipped_sum(watched, [one], grid)
    assert 0.9999 < total.double().norm() / grid.radius <= 1


def test_a_patient_moves_the_exact_sum_by_at_most_the_radius() -> None:
    rng = torch.Generator().manual_seed(3)
    rows, model, grid = 50 * torch.randn(40, 300, generator=rng), nn.Linear(300, 2), Grid.of(0.7)
    nn.init.zeros_(model.weight)

    def total(chosen: torch.Tensor) -> torch.Tensor:
        n = len(chosen)
        batch = Batch(chosen, torch.zeros(n, dtype=torch.int64), torch.ones(n), torch.arange(n))
        with per_image_gradients(model) as watched:
            return torch.cat([t.flatten() for t in clipped_sum(watched, [batch], grid)])

    moved = total(rows) - total(rows[:-1])
    assert 0.999 < math.sqrt(sum(int(x) ** 2 for x in moved)) / grid.radius <= 1
