"""A round of training equals a plain loop over patients, and spends what it says."""

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

from client.augment import augment, draw_views
from client.data.cohort import PatientSet
from client.privacy.sampler import draw_lot
from client.privacy.stream import OsStream, RandomStream
from client.training import pick_device, predict, train_round
from shared.errors import SiteError
from shared.models import MODELS, build_model
from shared.study import Study
from simulations.seeded import SeededStream

CPU = torch.device("cpu")


class SilentStream(SeededStream):
    """A seeded stream without noise, so that the rest of a step can be compared."""

    def rounded_gaussian(self, shape: Sequence[int], s: float) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def make_study(model: str = "cnn", **sections: dict[str, object]) -> Study:
    values: dict[str, object] = {
        "name": "t",
        "task": {"classes": ["a", "b", "c"]},
        "input": {"size": 28},
        "model": {"name": model},
        "federation": {"rounds": 4},
    }
    return Study.model_validate(values | sections)


def make_patients(counts: Sequence[int], seed: int = 0) -> PatientSet:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts).long())
    images = torch.rand(len(owner), 1, 28, 28, generator=generator) * 2 - 1
    labels = torch.randint(0, 3, (len(counts),), generator=generator)
    return PatientSet(images, owner, labels, tuple(f"{i:064x}" for i in range(len(counts))))


def make_model(study: Study) -> nn.Module:
    model = build_model(study).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def train(model: nn.Module, patients: PatientSet, study: Study, stream: RandomStream, **k: int):
    train_round(
        model,
        patients,
        study,
        size=len(patients),
        noise_multiplier=1.0,
        round_number=k.get("round_number", 1),
        stream=stream,
        device=CPU,
        physical_batch=k.get("physical_batch", 64),
    )


def slow_round(model: nn.Module, patients: PatientSet, study: Study, stream: RandomStream) -> None:
    """The same round, one autograd call per patient and plain gradient descent."""
    plan, clip = study.training, study.privacy.clip
    step = 2.0 ** (math.floor(math.log2(clip)) - 25)
    for _ in range(plan.local_steps):
        lot = draw_lot(
            stream,
            patients.image_patient,
            len(patients),
            plan.sampling_rate,
            study.privacy.images_per_patient,
        )
        draws = draw_views(stream, len(lot.images) * plan.augment.views)
        rows = lot.images.repeat_interleave(plan.augment.views)
        views = augment(patients.images[rows].double(), draws, plan.augment)
        total = [torch.zeros_like(p) for p in model.parameters()]
        for position, patient in enumerate(lot.patients):
            mine = lot.owner.repeat_interleave(plan.augment.views) == position
            targets = patients.labels[patient].expand(int(mine.sum()))
            loss = functional.cross_entropy(model(views[mine]), targets)
            gradient = torch.autograd.grad(loss, list(model.parameters()))
            norm = float(torch.cat([g.flatten() for g in gradient]).norm())
            for t, g in zip(total, gradient, strict=True):
                t += torch.trunc(g * min(1.0, clip / norm) / step) * step
        divisor = plan.sampling_rate * len(patients) * clip
        with torch.no_grad():
            for p, t in zip(model.parameters(), total, strict=True):
                p -= plan.learning_rate * t / divisor


def moved(model: nn.Module, start: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(
        [(p.detach() - s).flatten() for p, s in zip(model.parameters(), start, strict=True)]
    )


@pytest.mark.parametrize(("private", "clip"), [(True, 2.0), (False, 2.0), (True, 1000.0)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_round_equals_a_loop_over_patients(name: str, private: bool, clip: float) -> None:
    study = make_study(
        name,
        training={
            "learning_rate": 0.1,
            "local_steps": 2,
            "sampling_rate": 0.6,
            "augment": {"views": 3, "shift": 0.1, "rotate": 9, "scale": 0.1, "intensity": 0.2}
            | {"flip": True},
        },
        privacy={"clip": clip, "images_per_patient": 2, "enabled": private},
    )
    patients = make_patients([1, 5, 2, 1, 3, 2, 1, 4])
    expected, start = make_model(study), list(make_model(study).parameters())
    slow_round(expected, patients, study, SilentStream(7))
    for physical in (2, 64):
        model = make_model(study)
        stream = SilentStream(7) if private else SeededStream(7)
        train(model, patients, study, stream, physical_batch=physical)
        difference = moved(model, list(expected.parameters())).norm()
        assert difference / moved(expected, start).norm() < 1e-5


def test_the_noise_of_a_step_is_sigma_over_the_expected_lot() -> None:
    # Nobody is sampled (the rate is tiny), so that the step is noise alone, and it is taken.
    study = make_study(
        training={"learning_rate": 1.0, "local_steps": 1, "sampling_rate": 1e-4},
        privacy={"clip": 0.5},
    )
    model = make_model(study)
    start = [p.detach().clone() for p in model.parameters()]
    patients = make_patients([1] * 10)
    train_round(
        model,
        patients,
        study,
        size=len(patients),
        noise_multiplier=3.0,
        round_number=1,
        stream=SeededStream(1),
        device=CPU,
        physical_batch=8,
    )
    step = moved(model, start)
    std = 3.0 / (1e-4 * 10)  # in units of the clipping norm
    assert abs(float(step.std()) / std - 1) < 4 / (2 * len(step)) ** 0.5


def test_an_empty_lot_without_privacy_changes_nothing() -> None:
    study = make_study(training={"sampling_rate": 1e-4}, privacy={"enabled": False})
    model = make_model(study)
    start = [p.detach().clone() for p in model.parameters()]
    train(model, make_patients([1, 2]), study, SeededStream(1))
    assert not moved(model, start).any()


def test_two_runs_differ_in_lots_and_noise_unless_the_stream_is_seeded() -> None:
    study = make_study(training={"local_steps": 1})
    patients = make_patients([1] * 30)

    def end(stream: RandomStream) -> torch.Tensor:
        model = make_model(study)
        train(model, patients, study, stream)
        return moved(model, [torch.zeros_like(p) for p in model.parameters()])

    assert not torch.equal(end(OsStream()), end(OsStream()))
    assert torch.equal(end(SeededStream(3)), end(SeededStream(3)))
    assert not torch.equal(end(SeededStream(3)), end(SeededStream(4)))


def test_the_cosine_schedule_falls_over_the_whole_study() -> None:
    lengths = {}
    for schedule in ("constant", "cosine"):
        study = make_study(
            training={"local_steps": 1, "schedule": schedule, "sampling_rate": 1.0},
            privacy={"enabled": False},
        )
        for round_number in (1, 3, 5):
            model = make_model(make_study())
            start = [p.detach().clone() for p in model.parameters()]
            train(model, make_patients([1] * 5), study, SeededStream(1), round_number=round_number)
            lengths[schedule, round_number] = float(moved(model, start).norm())
    for round_number, part in ((1, 1.0), (3, 0.5), (5, 0.0)):  # 4 rounds: 1 + cos(pi r / 4)
        expected = part * lengths["constant", round_number]
        assert lengths["cosine", round_number] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "training",
    [
        {"optimiser": "sgd", "momentum": 0.9, "learning_rate": 0.1, "weight_decay": 0.01},
        {"optimiser": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
    ],
)
def test_training_without_privacy_learns_and_starts_afresh_each_round(
    training: dict[str, object],
) -> None:
    study = make_study(
        training=training | {"local_steps": 30, "sampling_rate": 0.8}, privacy={"enabled": False}
    )
    patients = make_patients([1] * 24)
    patients.images[:] += (patients.labels - 1)[:, None, None, None].float() * 0.5
    model = build_model(study)
    for round_number in (1, 2):
        train(model, patients, study, SeededStream(round_number), round_number=round_number)
    right = predict(model, patients.images, CPU, 10).argmax(dim=1) == patients.labels
    assert right.float().mean() > 0.9


def test_private_training_needs_noise() -> None:
    study = make_study()
    with pytest.raises(ValueError, match="noise"):
        train_round(
            make_model(study),
            make_patients([1]),
            study,
            size=1,
            noise_multiplier=0.0,
            round_number=1,
            stream=OsStream(),
            device=CPU,
            physical_batch=8,
        )


def test_predictions_are_probabilities_whatever_the_batch() -> None:
    study = make_study()
    model, images = make_model(study).float(), make_patients([1] * 11).images
    whole = predict(model, images, CPU, 100)
    assert whole.shape == (11, 3)
    assert whole.dtype == torch.float32
    assert torch.allclose(whole.sum(dim=1), torch.ones(11))
    assert torch.allclose(predict(model, images, CPU, 3), whole, atol=1e-6)
    assert predict(model, images[:0], CPU, 3).shape == (0, 3)


def test_a_device_asked_for_is_used_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert pick_device("cpu") == CPU
    if torch.cuda.is_available():
        assert pick_device("cuda").type == pick_device("auto").type == "cuda"
    else:
        assert pick_device("auto") == CPU
        with pytest.raises(SiteError, match="CUDA"):
            pick_device("cuda")
    study = make_study(training={"local_steps": 1})
    with caplog.at_level(logging.INFO):
        train(make_model(study), make_patients([1, 1]), study, OsStream())
    assert "cpu" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_round_on_cuda_equals_the_one_on_the_cpu(name: str) -> None:
    study = make_study(name, training={"local_steps": 2, "sampling_rate": 0.6})
    patients = make_patients([1, 5, 2, 1, 3, 2, 1, 4])
    start = list(make_model(study).parameters())
    ends = []
    for device in (CPU, torch.device("cuda")):
        model = make_model(study)
        train_round(
            model,
            patients,
            study,
            size=len(patients),
            noise_multiplier=1.0,
            round_number=1,
            stream=SeededStream(1),
            device=device,
            physical_batch=5,
        )
        ends.append(moved(model, start))
    assert (ends[0] - ends[1]).norm() / ends[0].norm() < 1e-5
