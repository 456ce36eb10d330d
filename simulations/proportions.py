"""Tables of counts with given margins that are as near to given weights as can be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.errors import SimulationError
from simulations.parts import Indices

Floats = npt.NDArray[np.float64]

STEPS = 20_000
TOLERANCE = 0.1  # patients; rounding is exact below a half


def fitted_counts(log_weights: Floats, rows: Indices, columns: Indices) -> Indices:
    """Return counts with exact row and column sums whose odds ratios are those of the weights.

    Iterative proportional fitting (Deming and Stephan 1940), in logarithms since weights may
    differ by hundreds of orders of magnitude, then rounding that keeps both margins.

    Args:
        log_weights: float64 [rows, columns], natural logarithms.
        rows: int64 [rows], each row's sum, at least 0.
        columns: int64 [columns], each column's sum, at least 0, with the same total.

    Returns:
        int64 [rows, columns].

    Raises:
        SimulationError: The fitting does not settle.
    """
    with np.errstate(divide="ignore"):
        log_rows, log_columns = np.log(rows), np.log(columns)
    fitted = log_weights.astype(np.float64)
    for _ in range(STEPS):
        fitted = fitted + (log_rows - _log_sum(fitted, axis=1))[:, None]
        fitted = fitted + log_columns - _log_sum(fitted, axis=0)
        if np.abs(np.exp(fitted).sum(axis=1) - rows).max() < TOLERANCE:
            return rounded(np.exp(fitted), rows, columns)
    raise SimulationError(
        "this label skew cannot be combined with these sizes of the sites",
        "partition",
        "Take a larger alpha, or milder sizes",
    )


def _log_sum(values: Floats, axis: int) -> Floats:
    """Return log(sum(exp(values))) along an axis; of nothing but -inf it is 0, to be harmless."""
    top = values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(values - top).sum(axis=axis)
    with np.errstate(divide="ignore"):
        return np.where(total > 0, np.log(total) + top.squeeze(axis), 0.0)


def rounded(exact: Floats, rows: Indices, columns: Indices) -> Indices:
    """Round a table to whole numbers with exact row and column sums.

    Every cell is rounded down; then the cell that lost most goes up by one, among those whose row
    and column are still short.

    Args:
        exact: float64 [rows, columns], at least 0, with these margins to less than a half.
        rows: int64 [rows], each row's sum.
        columns: int64 [columns], each column's sum, with the same total.
    """
    counts = np.floor(exact + 1e-9).astype(np.int64)
    lost = exact - counts
    short_rows, short_columns = rows - counts.sum(axis=1), columns - counts.sum(axis=0)
    while short_rows.sum() > 0:
        open_cells = (short_rows > 0)[:, None] & (short_columns > 0)
        row, column = np.unravel_index(np.where(open_cells, lost, -np.inf).argmax(), lost.shape)
        counts[row, column] += 1
        lost[row, column] -= 1
        short_rows[row] -= 1
        short_columns[column] -= 1
    return counts
