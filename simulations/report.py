"""The report of simulations: tables, pictures and one self-contained page from their results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from shared.errors import CoordinatorError
from simulations.report_data import read_book


def write_report(folder: Path) -> Path:
    """Write the report of a results folder; an older one is replaced.

    Args:
        folder: Holds `results.sqlite`; gets `report.html`, `figures/*.png`, `figures/*.svg` and
            `tables/*.csv`. The same results give the same bytes.

    Returns:
        Where the page is.

    Raises:
        CoordinatorError: There are no results, matplotlib is missing, or nothing can be written.
    """
    if find_spec("matplotlib") is None:
        raise CoordinatorError(
            "the report needs matplotlib, which is not installed",
            "consilium simulate report",
            "Install the simulation extra: pip install 'consilium-fl[simulation]'",
        )
    book = read_book(folder)
    if not book.cells:
        raise CoordinatorError(
            "the results are empty: nothing was planned",
            str(folder),
            "Give the folder that `consilium simulate run` or `sweep` named at its end",
        )
    from simulations.report_files import write

    return write(folder, book)
