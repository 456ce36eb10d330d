"""A patient's contribution and scores are the same bits whoever else is there, and wherever.

Two attacks make the last bit of an activation count: a gate as crafted weights can build it opens
for a patient whom another one's presence moved to a place where other code computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from client.augment import draw_views
from client.data.patients import PatientSet
from client.evaluation import evaluate
from client.privacy.dpsgd import Grid, clipped_sum, per_image_gradients
from client.privacy.sampler import Lot
from client.privacy.stream import OsStream
from client.training import lot_batches, predict
from shared.losses import make_loss
from shared.models import MODELS, build_model
from shared.models.layers import row_sums
from shared.protocol import Statistics
from shared.study import Study
from simulations.seeded import SeededStream

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        torch.device("cuda"),
        id="cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
CLASSES = ("a", "b", "c")
COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "dose", "low": 0, "high": 1},
    {"name": "stage", "categories": ["one", "two", "three"]},
]
ALL_MODELS = (*sorted(MODELS), *(f"table {way}" for way in ("median", "indicator", "embedding")))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_study(kind: str, **sections: dict[str, object]) -> Study:
    name, _, missing = kind.partition(" ")
    table = {"table": {"columns": COLUMNS, "missing": missing, "bins": 4}} if missing else {}
    values = {
        "name": "t",
        "task": {"classes": CLASSES},
        "input": {"size": 28},
        "model": {"name": name},
    }
    return Study.model_validate(values | table | sections)


def make_patients(study: Study, counts: list[int], seed: int = 0) -> PatientSet:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    if study.table is None:
        images = torch.rand(len(owner), 1, 28, 28, generator=generator) * 2 - 1
    else:
        images = torch.rand(len(owner), len(study.table.columns), generator=generator) * 2 - 1
        if study.table.columns[-1].categories:
            images[:, -1] = torch.randint(0, 3, (len(owner),), generator=generator).float()
            images[torch.rand(images.shape, generator=generator) < 0.3] = torch.nan
    shape = (len(counts), 3) if study.task.findings else (len(counts),)
    labels = torch.randint(-study.task.findings, 2, shape, generator=generator)
    return PatientSet(images, owner, labels, tuple(f"{i:064x}" for i in range(len(counts))))


def make_model(study: Study) -> nn.Module:
    model = build_model(study, statistics(study))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
        # So that no patient's class is certain, and all have gradients.
        model.get_parameter("head.weight").mul_(0.1)
    return model


def statistics(study: Study) -> Statistics:
    classes = (30.0, 9.0, 5.0, 44.0, 17.0, 20.0) if study.task.findings else (50.0, 8.0, 9.0)
    columns = ((5.0, 9, 3, 1, 2), (1.0, 1, 8, 8, 2), (3.0, 9.0, 1, 4)) if study.table else ()
    return Statistics(classes=classes, columns=columns, noise=3.0)


class GivenViews(SeededStream):
    """A stream whose views are known, so that a patient has the same in any company."""

    def __init__(self, draws: torch.Tensor) -> None:
        super().__init__(0)
        self.draws = draws.flatten()

    def uniform(self, n: int) -> torch.Tensor:
        assert n == len(self.draws)
        return self.draws


def contribution(
    model: nn.Module,
    patients: PatientSet,
    who: list[int],
    study: Study,
    physical_batch: int,
    device: torch.device = CPU,
    draws: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of these patients' contributions in whole steps, by all their images."""
    chosen = torch.isin(patients.image_patient, torch.tensor(who))
    images = torch.nonzero(chosen).flatten()
    owner = torch.searchsorted(torch.tensor(who), patients.image_patient[images])
    lot = Lot(torch.tensor(who), images, owner)
    stream = SeededStream(0)
    if draws is not None:
        stream = GivenViews(draws[chosen.repeat_interleave(study.training.augment.views)])
    model.to(device).train()
    with per_image_gradients(model) as watched:
        batches = lot_batches(patients, lot, study, stream, watched, physical_batch)
        loss = make_loss(study, statistics(study))
        total = clipped_sum(watched, batches, Grid.of(study.privacy.clip), loss)
    return torch.cat([t.flatten() for t in total]).cpu()


def length(whole: torch.Tensor, study: Study) -> float:
    """The norm in units of the clipping norm."""
    return float(whole.double().norm()) / Grid.of(study.privacy.clip).radius


def check_contributions(
    study: Study, counts: list[int], batch: int, device: torch.device = CPU
) -> None:
    """Each of a few patients adds the same whole numbers to any company, first, last or alone."""
    model, patients = make_model(study), make_patients(study, counts)
    rows = len(patients.images) * study.training.augment.views
    views = draw_views(SeededStream(5), rows) if study.training.augment.shift else None

    def run(who: list[int]) -> torch.Tensor:
        return contribution(model, patients, who, study, batch, device, views)

    everyone = list(range(len(counts)))
    whole, rng = run(everyone), np.random.default_rng(3)
    for patient in (0, len(counts) - 1):
        alone = run([patient])
        assert 0.3 < length(alone, study) <= 1
        assert torch.equal(whole - run([p for p in everyone if p != patient]), alone)
    some = sorted({patient, *rng.choice(len(counts), len(counts) // 2).tolist()})
    assert torch.equal(run(some) - run([p for p in some if p != patient]), alone)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALL_MODELS)
def test_a_contribution_does_not_depend_on_company(
    name: str, device: torch.device, threads: int
) -> None:
    study = make_study(name, privacy={"clip": 0.01})
    check_contributions(study, [1] * 10, 7, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_nor_with_several_images_in_several_views(
    name: str, batch: int, device: torch.device
) -> None:
    views = {"views": 2, "shift": 0.1, "rotate": 9, "scale": 0.1, "intensity": 0.2, "flip": True}
    training = {} if name.startswith("table") else {"augment": views}
    study = make_study(name, privacy={"clip": 0.01, "images_per_patient": 4}, training=training)
    check_contributions(study, [1, 4, 2, 3], batch, device)


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("loss", ["focal", "class-balanced", "logit-adjustment"])
def test_nor_with_any_loss(loss: str, findings: bool) -> None:
    study = make_study(
        "table indicator",
        task={"classes": CLASSES, "findings": findings},
        training={"loss": {"name": loss}},
        privacy={"clip": 1e-3},
    )
    check_contributions(study, [1] * 41, 37)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_a_score_does_not_depend_on_company(
    name: str, findings: bool, device: torch.device, threads: int
) -> None:
    study = make_study(name, task={"classes": CLASSES, "findings": findings})
    model, images = make_model(study), make_patients(study, [1] * 23).images

    def scores(which: torch.Tensor) -> torch.Tensor:
        return predict(model, images[which], device, 7, findings=findings)

    expected, everyone = scores(torch.arange(23)), torch.arange(23)
    for seed in range(3):
        order = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
        some = order[: len(everyone) - 5 * seed]
        assert torch.equal(scores(some), expected[some])
    assert torch.equal(scores(everyone[4:5])[0], expected[4])


def gated(study: Study, patients: PatientSet, company: list[list[int]]) -> nn.Module:
    """A model that tells, if it can, in which of two companies a patient's row is computed.

    The first layer's output is multiplied so that its last bit decides the class.
    """
    model = make_model(study)
    seen: list[torch.Tensor] = []
    hook = model.hidden[0].register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    for who in company:
        predict(model, patients.images[torch.tensor(who)], CPU, 4)
        seen.append(torch.empty(0))
    hook.remove()
    cut = next(at for at, part in enumerate(seen) if not len(part))
    first, second = torch.cat(seen[:cut]), torch.cat(seen[cut + 1 : -1])
    common = company[1]
    place = [company[0].index(patient) for patient in common]
    moved = (first[place] - second[: len(common)]).abs() * (first[place] > 0.1)
    patient, unit = divmod(int(moved.argmax()), moved.shape[1])
    value = torch.minimum(first[place], second[: len(common)])[patient, unit]
    with torch.no_grad():
        for p in (*model.hidden[2].parameters(), *model.head.parameters()):
            p.zero_()
        model.hidden[2].weight[0, unit] = 2.0**30
        model.hidden[2].bias[0] = -(2.0**30) * value
        model.hidden[2].weight[1:, unit] = 1.0
        model.head.weight[0, 0], model.head.weight[1, 0] = 2.0**10, -(2.0**10)
    return model


def wide_table() -> Study:
    columns = [{"name": f"c{i}", "low": 0, "high": 1} for i in range(200)]
    return make_study(
        "table indicator",
        table={"columns": columns, "missing": "indicator", "bins": 4},
        model={"name": "table", "layers": [32, 32]},
        task={"classes": ("a", "b")},
        privacy={"clip": 1.0, "score_bins": 8},
    )


def nine_patients(study: Study) -> PatientSet:
    """Patients of one class but the first, who is with the others or not."""
    patients = make_patients(study, [1] * 9)
    return dataclasses.replace(patients, labels=(torch.arange(9) > 0).long())


def test_a_gate_on_the_last_bit_does_not_move_others() -> None:
    study = wide_table()
    patients = nine_patients(study)
    all_nine, without = list(range(9)), list(range(1, 9))
    model = gated(study, patients, [all_nine, without])
    runs = [contribution(model, patients, who, study, 4) for who in (all_nine, without)]
    assert length(runs[0] - runs[1], study) <= 1


def test_nor_does_it_move_others_scores() -> None:
    study = wide_table()
    patients = nine_patients(study)
    without = patients.only(torch.arange(9) > 0)
    model = gated(study, patients, [list(range(9)), list(range(1, 9))])
    counts = [
        np.array(
            evaluate(
                model,
                who,
                study,
                noise_multiplier=0.0,
                stream=OsStream(),
                device=CPU,
                physical_batch=4,
            ).overall.counts
        )
        for who in (patients, without)
    ]
    assert np.linalg.norm(counts[0] - counts[1]) <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("numbers", [1, 3, 128, 2401, 3969, 24_001])
def test_a_sum_does_not_depend_on_where_its_row_begins(numbers: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(numbers)
    rows = torch.randn(7, numbers, generator=generator).to(device)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4], device=device)
    for width in (torch.float32, torch.float64):
        wide = rows.to(width)
        assert torch.equal(row_sums(wide)[order], row_sums(wide[order]))
        assert torch.allclose(row_sums(wide).double(), rows.double().sum(dim=1), atol=1e-3)
