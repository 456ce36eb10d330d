"""Per-patient gradients equal a brute-force loop, and clipping holds whatever happens."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from client.privacy.dpsgd import (
    Batch,
    Grid,
    add_noise,
    clipped_sum,
    per_image_gradients,
    within,
)
from shared.models import MODELS, build_model
from shared.models.linear import Linear
from shared.study import Study, Task
from simulations.seeded import SeededStream


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Each registered model in float64, its weights moved away from their special start."""
    study = Study.model_validate(
        {"name": "t", "task": Task(classes=("a", "b", "c")), "model": {"name": request.param}}
        | {"input": {"size": 28, "channels": 3}}
    )
    model = build_model(study).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def make_batch(counts: list[int]) -> Batch:
    """A lot in which patient i has counts[i] images."""
    generator = torch.Generator().manual_seed(2)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.rand(len(owner), 3, 28, 28, generator=generator, dtype=torch.float64) * 2 - 1
    targets = torch.randint(0, 3, (len(counts),), generator=generator)[owner]
    return Batch(images, targets, 1 / torch.tensor(counts).double()[owner], owner)


def chosen(batch: Batch, rows: torch.Tensor) -> Batch:
    """The batch with these rows only."""
    return Batch(batch.images[rows], batch.targets[rows], batch.weights[rows], batch.owner[rows])


def cut(batch: Batch, size: int) -> list[Batch]:
    """The same images in batches of `size`, the last one filled up with blank rows."""
    rest = -len(batch.owner) % size
    owner = torch.cat([batch.owner, torch.full((rest,), -1)])
    index = torch.arange(len(owner)).clamp(max=len(batch.owner) - 1)
    weights = batch.weights[index].where(owner >= 0, 0)
    parts = zip(
        *(torch.split(t, size) for t in (batch.images[index], batch.targets[index], weights)),
        torch.split(owner, size),
        strict=True,
    )
    ends = [int(o[-1]) for o in torch.split(owner, size)]
    starts = [int(o[0]) for o in torch.split(owner, size)[1:]] + [-1]
    goes_on = [end == start >= 0 for end, start in zip(ends, starts, strict=True)]
    return [Batch(*part, goes_on=on) for part, on in zip(parts, goes_on, strict=True)]


def one_by_one(model: nn.Module, batch: Batch, clip: float) -> list[torch.Tensor]:
    """The clipped sum by one autograd call per patient, each cut to the grid."""
    step = 2.0 ** (math.floor(math.log2(clip)) - 25) if clip < math.inf else 2.0**-40
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for patient in range(int(batch.owner[-1]) + 1):
        mine = batch.owner == patient
        loss = functional.cross_entropy(model(batch.images[mine]), batch.targets[mine])
        gradient = torch.autograd.grad(loss, parameters)
        norm = torch.cat([g.flatten() for g in gradient]).norm().item()
        for t, g in zip(total, gradient, strict=True):
            t += torch.trunc(g * min(1.0, clip / norm) / step) * step
    return total


def clipped(model: nn.Module, batches: list[Batch], clip: float) -> list[torch.Tensor]:
    """The clipped sum in real units."""
    grid = Grid.of(clip)
    total = clipped_sum(model, batches, grid)
    assert all(t.dtype == torch.int64 for t in total)
    return [t.double() * grid.step for t in total]


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest relative difference over the parameters, each by its own norm."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


def test_each_images_gradient_is_that_of_its_own_autograd_call(model: nn.Module) -> None:
    batch = make_batch([1] * 5)
    with per_image_gradients(model) as watched:
        functional.cross_entropy(watched(batch.images), batch.targets, reduction="sum").backward()
        kept = {name: p.grad_sample for name, p in model.named_parameters()}
    for i in range(5):
        loss = functional.cross_entropy(model(batch.images[i : i + 1]), batch.targets[i : i + 1])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        assert distance([k[i] for k in kept.values()], list(expected)) < 1e-8


@pytest.mark.parametrize("physical", [1, 3, 4, 100])
def test_the_clipped_sum_equals_a_loop_over_patients(model: nn.Module, physical: int) -> None:
    batch = make_batch([1, 4, 2, 7, 1, 3])
    norms_on_both_sides = 0.5 if isinstance(model, Linear) else 3.0
    expected = one_by_one(model, batch, norms_on_both_sides)
    with per_image_gradients(model) as watched:
        found = clipped(watched, cut(batch, physical), norms_on_both_sides)
    assert distance(found, expected) < 1e-5
    assert distance(expected, one_by_one(model, batch, math.inf)) > 1e-2, "clipping had no effect"


def test_float32_models_agree_to_single_precision(model: nn.Module) -> None:
    batch = make_batch([2, 1, 3])
    expected = one_by_one(model, batch, 1.0)
    single = Batch(batch.images.float(), batch.targets, batch.weights.float(), batch.owner)
    with per_image_gradients(model.float()) as watched:
        found = clipped(watched, cut(single, 2), 1.0)
    assert distance(found, expected) < 1e-3


def test_no_patient_moves_the_sum_by_more_than_the_clip(model: nn.Module) -> None:
    batch = make_batch([1, 2, 3])
    batch = dataclasses.replace(batch, images=batch.images * 1e3)
    without = chosen(batch, batch.owner < 2)
    with per_image_gradients(model) as watched:
        full = clipped(watched, [batch], 0.01)
        less = clipped(watched, [without], 0.01)
    moved = torch.cat([(a - b).flatten() for a, b in zip(full, less, strict=True)]).norm()
    assert 0.0099 < moved <= 0.01


@pytest.mark.parametrize("width", [3, 50, 500_000, 5_000_000])
def test_the_norm_of_many_parameters_is_not_lost_to_rounding(width: int) -> None:
    images = 1 + 1e-3 * torch.rand(1, width, generator=torch.Generator().manual_seed(3))
    one = Batch(images, torch.tensor([0]), torch.ones(1), torch.tensor([0]))
    two = Batch(images.repeat(2, 1), torch.tensor([0, 0]), torch.ones(2), torch.tensor([0, 1]))
    model = nn.Linear(width, 2, bias=False)
    nn.init.zeros_(model.weight)
    with per_image_gradients(model) as watched:
        for batch, most in ((one, 0.1), (two, 0.2)):
            (found,) = clipped(watched, [batch], 0.1)
            assert 0.9999 * most < found.norm() <= most


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("physical", [1, 2, 100])
def test_a_patient_without_a_finite_gradient_contributes_nothing(
    model: nn.Module, poison: float, physical: int
) -> None:
    batch = make_batch([2, 3, 2])
    batch.images[3] = poison
    clean = chosen(batch, batch.owner != 1)
    with per_image_gradients(model) as watched:
        found = clipped(watched, cut(batch, physical), 1.0)
        expected = clipped(watched, [clean], 1.0)
    assert distance(found, expected) < 1e-9


@pytest.mark.parametrize("radius", [2**25, 2**26 - 1, 47_453_132])
def test_a_contribution_one_square_too_long_is_found(radius: int) -> None:
    parts, rest = [radius // 3], radius**2 - (radius // 3) ** 2
    while rest:  # squares that add up to the radius' own
        parts.append(math.isqrt(rest))
        rest -= parts[-1] ** 2
    row = torch.tensor([[*parts, 0]]).double()
    over = torch.tensor([[*parts, -1]]).double()
    assert within(row, radius).tolist() == [True]
    assert within(over, radius).tolist() == [False]
    assert within(torch.full((1, 5), 2.0**31).double(), radius).tolist() == [False]
    assert within(torch.full((1, 5), math.inf).double(), radius).tolist() == [False]


def test_an_empty_lot_gives_zero(model: nn.Module) -> None:
    with per_image_gradients(model) as watched:
        total = clipped(watched, [], 1.0)
    assert [t.shape for t in total] == [p.shape for p in model.parameters()]
    assert not any(t.any() for t in total)


def test_the_model_is_left_without_hooks_or_gradients(model: nn.Module) -> None:
    before = set(vars(model)), [set(vars(p)) for p in model.parameters()]
    with per_image_gradients(model) as watched:
        clipped(watched, [make_batch([1, 2])], 1.0)
    assert (set(vars(model)), [set(vars(p)) for p in model.parameters()]) == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    with per_image_gradients(model) as watched:  # and can be used again
        clipped(watched, [make_batch([1, 2])], 1.0)


def test_noise_has_the_standard_deviation_asked_for() -> None:
    grid = Grid.of(0.75)
    total = [
        torch.zeros(200, 100, dtype=torch.int64),
        torch.full((5000,), grid.radius, dtype=torch.int64),
    ]
    add_noise(total, grid, 2.5, SeededStream(1))
    drawn = torch.cat([total[0].flatten(), total[1] - grid.radius]).double() * grid.step / 0.75
    assert abs(float(drawn.std()) - 2.5) < 4 * 2.5 / (2 * 25_000) ** 0.5
    assert abs(float(drawn.mean())) < 4 * 2.5 / 25_000**0.5
