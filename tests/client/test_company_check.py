"""A site finds out, before it opens its cohort, that its kernels would betray who is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import shared.models
from client.company import check_company
from client.training import rows_at_once
from shared.errors import PolicyRefusal
from shared.models.cnn import Cnn
from shared.study import Study

CPU = torch.device("cpu")


def make_study(name: str, findings: bool = False, **sections: object) -> Study:
    return Study.model_validate(
        {
            "name": "t",
            "task": {"classes": ["a", "b"], "findings": findings},
            "input": {"size": 28},
            "model": {"name": name},
            "training": {"augment": {"shift": 0.1, "rotate": 5}},
        }
        | sections
    )


class LastRowApart(Cnn):
    """Rounds the last row in another way, as code for the rest of a block may."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.see(images)).flatten(1)
        x = torch.cat([x[:-1], x[-1:] * (1 + 2**-23)])
        return self.head(self.dense(x))


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("name", ["cnn", "attention", "linear"])
def test_the_models_compute_a_row_by_itself(name: str, findings: bool) -> None:
    check_company(make_study(name, findings), CPU, 5)


@pytest.mark.parametrize("missing", ["median", "indicator", "embedding"])
def test_those_of_tables_too(missing: str) -> None:
    columns = [{"name": "age", "low": 0, "high": 1}, {"name": "sex", "categories": ["f", "m"]}]
    table = {"columns": columns, "missing": missing}
    check_company(make_study("table", table=table, training={}), CPU, 37)


def test_a_layer_that_depends_on_the_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shared.models.MODELS, "cnn", LastRowApart)
    # A model no other test has, for what was found is kept in the process.
    study = make_study("cnn", model={"name": "cnn", "widths": [4, 20, 4]})
    with pytest.raises(PolicyRefusal, match="who else is computed with") as refused:
        check_company(study, CPU, 4)
    assert refused.value.code == "policy-device"
    assert "threads" in refused.value.where
    check_company(study, CPU, 1)  # the remedy that always helps: nobody else is there


def test_a_round_is_refused_before_the_cohort_is_opened(
    ward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shared.models.MODELS, "cnn", LastRowApart)
    study = ward.study(model={"widths": (4, 20)})
    ward.approve(study)
    assert ward.code(ward.ask(study, 1)) == "policy-device"
    assert ward.loads == 0


@pytest.mark.parametrize(
    ("size", "rate", "views", "most", "expected"),
    [
        (1000, 0.1, 1, 64, (64, 64)),
        (1000, 0.1, 1, 256, (128, 256)),
        (100, 0.05, 1, 64, (8, 32)),
        (100, 0.05, 3, 64, (16, 32)),
        (64, 0.5, 1, 64, (32, 16)),
        (1, 0.01, 1, 64, (1, 1)),
        (1000, 0.1, 1, 7, (7, 7)),
    ],
)
def test_the_rows_of_a_batch_follow_from_what_is_declared(
    size: int, rate: float, views: int, most: int, expected: tuple[int, int]
) -> None:
    augment = {"views": views, "shift": 0.1}
    study = make_study("cnn", training={"sampling_rate": rate, "augment": augment})
    assert rows_at_once(study, size, most) == expected
