"""The model of a table: what becomes of a missing value, row by row, and nothing of the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.privacy.dpsgd import per_image_gradients
from shared.models import build_model, get_weights, initial_weights
from shared.protocol import Statistics
from shared.study import Study

NAN = math.nan
COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "sex", "categories": ["f", "m"]},
    {"name": "dose", "low": 0, "high": 1},
    {"name": "pain", "categories": ["none", "some", "much"]},
]
WAYS = ("drop", "mean", "median", "indicator", "embedding")
STATISTICS = Statistics(
    classes=(1, 1),
    columns=((0, 0, 1, 3, 5), (2, 4, 0), (10, 1, 1, 0, 0), (1, 0, 5, 2)),
    noise=0.0,
)
ROWS = torch.tensor(
    [
        [0.5, 1.0, -0.25, 2.0],
        [NAN, NAN, NAN, NAN],
        [0.1, NAN, 0.3, 0.0],
        [NAN, 0.0, 0.7, NAN],
    ]
)


def study(missing: str, layers: tuple[int, ...] = ()) -> Study:
    values: dict[str, Any] = {
        "name": "t",
        "task": {"classes": ["a", "b", "c"]},
        "table": {"columns": COLUMNS, "missing": missing, "bins": 4},
        "model": {"name": "table", "layers": layers},
    }
    return Study.model_validate(values)


def features(missing: str, statistics: Statistics | None = None) -> np.ndarray:
    """What the first layer sees: with a head that copies one feature to each output."""
    model = build_model(study(missing), statistics)
    width = model.get_parameter("head.weight").shape[1]
    model.head = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(width))
        if missing == "embedding":
            model.unknown.weight.copy_(torch.arange(1.0, width + 1)[None])
        return model(ROWS).numpy()


KNOWN = [0.5, 0, 1, -0.25, 0, 0, 1]
"""The first row: age, f, m, dose, none, some, much."""


def test_known_values_are_features_as_they_are() -> None:
    for missing in WAYS:
        assert features(missing, STATISTICS)[0, :7] == pytest.approx(KNOWN)


def test_without_statistics_or_when_dropping_a_missing_value_is_zero() -> None:
    for missing in ("drop", "mean", "median", "indicator"):
        found = features(missing)
        assert found[1, :7].tolist() == [0] * 7
        assert found[2, :7] == pytest.approx([0.1, 0, 0, 0.3, 1, 0, 0])
        assert found[3, :7] == pytest.approx([0, 1, 0, 0.7, 0, 0, 0])


@pytest.mark.parametrize(
    ("missing", "age", "dose"),
    [
        # Middles of four equal bins of [-1, 1]: -.75, -.25, .25, .75.
        ("mean", (0.25 + 3 * 0.75) / 4, (-7.5 - 0.25 + 0.25) / 12),
        # Half of 4 lie below the bin that starts at .5 and 1/3 of it; half of 12 at 6/10 of one.
        ("median", 0.5 + 0.5 / 3, -1 + 0.5 * 0.6),
    ],
)
def test_missing_values_are_filled_in_from_all_sites_statistics(
    missing: str, age: float, dose: float
) -> None:
    found = features(missing, STATISTICS)
    most = [0, 1], [0, 0, 1]  # m; much
    assert found[1] == pytest.approx([age, *most[0], dose, *most[1]])
    assert found[2] == pytest.approx([0.1, *most[0], 0.3, 1, 0, 0])
    assert found[3] == pytest.approx([age, 1, 0, 0.7, *most[1]])


def test_an_indicator_is_one_exactly_where_a_value_is_missing() -> None:
    flags = features("indicator")[:, 7:]
    assert np.array_equal(flags, ROWS.isnan().numpy())
    assert all(features(missing).shape[1] == 7 for missing in WAYS if missing != "indicator")


def test_an_embedding_puts_a_learned_vector_for_each_column() -> None:
    found = features("embedding")
    learned = [1, 2, 3, 4, 5, 6, 7]
    assert found[1] == pytest.approx(learned)
    assert found[2] == pytest.approx([0.1, *learned[1:3], 0.3, 1, 0, 0])
    assert found[3] == pytest.approx([1, 1, 0, 0.7, *learned[4:]])


@pytest.mark.parametrize("missing", WAYS)
@pytest.mark.parametrize("layers", [(), (6,), (8, 4)])
def test_every_row_has_a_gradient_of_its_own_and_of_nobody_else(
    missing: str, layers: tuple[int, ...]
) -> None:
    from opacus.validators import ModuleValidator

    model = build_model(study(missing, layers), STATISTICS).double().train()
    assert ModuleValidator.validate(model, strict=False) == []
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    alone = []
    for row in ROWS.double():
        model.zero_grad()
        model(row[None]).square().sum().backward()
        alone.append([parameter.grad.clone() for parameter in model.parameters()])
    with per_image_gradients(model) as watched:
        watched(ROWS.double()).square().sum().backward()
        for at, parameter in enumerate(model.parameters()):
            found = parameter.grad_sample
            for row in range(len(ROWS)):
                assert torch.allclose(found[row], alone[row][at], rtol=1e-9)
    assert all(torch.isfinite(g).all() for row in alone for g in row)


@pytest.mark.parametrize("missing", WAYS)
def test_what_is_filled_in_is_neither_trained_nor_sent(missing: str) -> None:
    plan = study(missing, (5,))
    before = initial_weights(plan)
    filled = get_weights(build_model(plan, STATISTICS))
    assert before.keys() == filled.keys()
    assert all(np.array_equal(array, filled[name]) for name, array in before.items())
    names = {"hidden.0.weight", "hidden.0.bias", "head.weight", "head.bias"}
    assert before.keys() == names | ({"unknown.weight"} if missing == "embedding" else set())
    assert not before["head.weight"].any()


def test_initial_weights_follow_from_the_model_and_leave_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first = initial_weights(study("embedding", (5,)))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    again = initial_weights(study("embedding", (5,)))
    assert all(np.array_equal(array, again[name]) for name, array in first.items())
    assert not np.array_equal(
        first["hidden.0.weight"], initial_weights(study("mean", (5,)))["hidden.0.weight"]
    )


def test_no_rows_give_no_logits() -> None:
    assert build_model(study("indicator"))(torch.zeros(0, 4)).shape == (0, 3)
