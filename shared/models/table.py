"""The model of a table: columns become features, missing values are met as the study says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from shared.models.layers import RowLinear
from shared.study import Column, Table, TableModel


class TableNet(nn.Module):
    """A perceptron on a table's columns, with the study's answer to missing values built in.

    A number is one feature, a category one feature per value it may have. Where a value is
    missing, its features are 0; with `mean` and `median` those of the column's centre; with
    `indicator` 0, and one feature more tells so; with `embedding` a learned vector for each
    column. What is filled in is constant or learned, so no row has a part in another's.

    Args:
        plan: Units of the hidden layers; none: logistic regression.
        table: The columns and what is done where a value is missing.
        classes: Number of outputs.
        centres: What to fill in with `mean` and `median`, one a column: a number scaled to
            [-1, 1], or the index of a category; empty: 0.
    """

    column: torch.Tensor
    code: torch.Tensor
    fill: torch.Tensor

    def __init__(
        self, plan: TableModel, table: Table, classes: int, centres: Sequence[float] = ()
    ) -> None:
        super().__init__()
        # For each feature: its column, the category it stands for (NaN: a number), what to fill.
        features = [
            (at, code) for at, column in enumerate(table.columns) for code in _codes(column)
        ]
        fill = [_fill(code, centres[at]) if centres else 0.0 for at, code in features]
        self.register_buffer("column", torch.tensor([at for at, _ in features]), persistent=False)
        self.register_buffer("code", torch.tensor([c for _, c in features]), persistent=False)
        self.register_buffer("fill", torch.tensor(fill), persistent=False)
        self.flags = table.missing == "indicator"
        self.unknown = nn.Embedding(1, len(features)) if table.missing == "embedding" else None
        width = len(features) + self.flags * len(table.columns)
        layers: list[nn.Module] = []
        for units in plan.layers:
            layers += [RowLinear(width, units), nn.ReLU()]
            width = units
        self.hidden = nn.Sequential(*layers)
        self.head = RowLinear(width, classes)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return logits [b, classes] of rows [b, columns].

        Args:
            rows: Numbers scaled to [-1, 1], categories as their index, NaN: missing.
        """
        values = rows[:, self.column]
        is_code = (values == self.code).to(values.dtype)
        features = torch.where(self.code.isnan(), values, is_code)
        features = torch.where(values.isnan(), self._unknown(rows), features)
        if self.flags:
            features = torch.cat([features, rows.isnan().to(features.dtype)], dim=1)
        return cast(torch.Tensor, self.head(self.hidden(features)))

    def _unknown(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what stands for missing values, [b or 1, features]."""
        if self.unknown is None:
            return self.fill[None]
        # One index a row: a bare vector would make one gradient of all rows together.
        index = torch.zeros(len(rows), 1, dtype=torch.int64, device=rows.device)
        return cast(torch.Tensor, self.unknown(index))[:, 0]


def _codes(column: Column) -> list[float]:
    return [float(code) for code in range(len(column.categories))] or [math.nan]


def _fill(code: float, centre: float) -> float:
    return centre if math.isnan(code) else float(code == centre)
