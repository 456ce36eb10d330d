"""What a sweep found out: one SQLite file a researcher can open with anything, one row a figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping, Table, delete, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from shared.errors import CoordinatorError
from simulations.records import Cell, Measurement, Missing, Outcome, Part, SiteRow
from simulations.results_schema import (
    FORMAT,
    cell_table,
    measurement_table,
    metadata,
    missing_table,
    open_engine,
    part_table,
    site_table,
)

__all__ = ["FILE", "Cell", "Measurement", "Missing", "Outcome", "Part", "Results", "SiteRow"]

FILE = "results.sqlite"

Row = TypeVar("Row", SiteRow, Part, Missing)


class Results:
    """The results in a folder; use it in a `with` statement.

    Only the newest plan of a scenario counts: once the scenario, a strategy or the code has
    changed and was planned again, the cells of before stay in the file but are not returned.

    Args:
        folder: Holds `results.sqlite`.
        create: Whether to make folder and file if there are none.

    Raises:
        CoordinatorError: There are no results, or the file cannot be used.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / FILE
        if not create and not self.path.is_file():
            raise CoordinatorError(
                "there are no results here",
                str(folder),
                "Give the folder that `consilium simulate run` or `sweep` named at its end",
            )
        with _explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._engine = open_engine(self.path)
            with self._engine.begin() as connection:
                _prepare(connection, self.path)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def plan(self, cells: Iterable[Cell]) -> None:
        """Note which cells are to be computed; what is there of them already stays.

        But for their labels, which decide no figure: an axis of the sweep may have a new name.
        """
        with self._writing() as connection:
            for cell in cells:
                _supersede(connection, cell)
                mine = cell_table.c.id == cell.id
                again = update(cell_table).where(mine).values(current=True, labels=cell.labels)
                found = connection.execute(again)
                if not found.rowcount:
                    connection.execute(insert(cell_table).values(current=True, **asdict(cell)))

    def note(self, cell: Cell) -> None:
        """Write the new state of a planned cell (running, failed)."""
        with self._writing() as connection:
            _replace(connection, cell)

    def store(self, outcome: Outcome) -> None:
        """Write all that a finished cell leaves, in one transaction."""
        owner = outcome.cell.id
        records: dict[Table, list[dict[str, Any]]] = {
            measurement_table: [asdict(m) for m in outcome.measurements],
            site_table: [asdict(s) for s in outcome.sites],
            part_table: [asdict(p) for p in outcome.parts],
            missing_table: [asdict(m) for m in outcome.missing],
        }
        with self._writing() as connection:
            _replace(connection, outcome.cell)
            for table, rows in records.items():
                connection.execute(delete(table).where(table.c.cell == owner))
                known = table.c.keys()
                values = [{k: v for k, v in row.items() if k in known} for row in rows]
                if values:
                    connection.execute(insert(table), [value | {"cell": owner} for value in values])

    def cells(self, *, state: str = "") -> list[Cell]:
        """Return the cells of the newest plans, in the order they were first planned."""
        query = select(*(cell_table.c[f.name] for f in fields(Cell)))
        query = query.where(cell_table.c.current).order_by(cell_table.c.number)
        if state:
            query = query.where(cell_table.c.state == state)
        with _explained(self.path), self._engine.begin() as connection:
            return [Cell(**_tuples(row)) for row in connection.execute(query).mappings()]

    def measurements(self, **equal: str | int) -> Iterator[Measurement]:
        """Yield the figures of finished cells, e.g. `measurements(where="test", metric="auc")`.

        Args:
            equal: Wanted values by attribute of `Measurement`.
        """
        columns = {
            f.name: (measurement_table if f.name in measurement_table.c else cell_table).c[f.name]
            for f in fields(Measurement)
        }
        query = (
            select(*columns.values())
            .select_from(measurement_table.join(cell_table, onclause=_OF_CELL))
            .where(cell_table.c.current, cell_table.c.state == "finished")
            .where(*(columns[name] == value for name, value in equal.items()))
            .order_by(cell_table.c.number, measurement_table.c.id)
        )
        with _explained(self.path), self._engine.begin() as connection:
            rows = connection.execution_options(yield_per=5000).execute(query)
            for row in rows.mappings():
                yield Measurement(**row)

    def sites(self, cell: str) -> list[SiteRow]:
        """Return what each site of a cell had and spent."""
        return self._rows(SiteRow, site_table, cell)

    def parts(self, cell: str) -> list[Part]:
        """Return who took part in each round of a cell."""
        return self._rows(Part, part_table, cell)

    def missing(self, cell: str) -> list[Missing]:
        """Return what was missing where in a cell."""
        return self._rows(Missing, missing_table, cell)

    def _rows(self, kind: type[Row], table: Table, cell: str) -> list[Row]:
        query = select(*(table.c[f.name] for f in fields(kind)))
        query = query.where(table.c.cell == cell).order_by(table.c.id)
        with _explained(self.path), self._engine.begin() as connection:
            return [kind(**_tuples(row)) for row in connection.execute(query).mappings()]

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _explained(self.path), self._engine.begin() as connection:
            yield connection


_OF_CELL = cell_table.c.id == measurement_table.c.cell


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with the file."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CoordinatorError(
            f"the results cannot be used: {reason}", str(path), "Give another folder"
        ) from None


def _prepare(connection: Connection, path: Path) -> None:
    """Make the tables of a new file; refuse one of another release."""
    found = connection.exec_driver_sql("pragma user_version").scalar()
    if found == 0:
        metadata.create_all(connection)
        connection.exec_driver_sql(f"pragma user_version = {FORMAT}")
    elif found != FORMAT:
        raise CoordinatorError(
            f"the results have format {found}, this release reads {FORMAT}",
            str(path),
            "Use the release that made them, or another folder",
        )


def _supersede(connection: Connection, cell: Cell) -> None:
    """Take cells of an older scenario, strategy or code of the same name out of the tables."""
    table = cell_table.c
    other = or_(
        table.scenario_digest != cell.scenario_digest,
        table.code != cell.code,
        (table.strategy == cell.strategy) & (table.strategy_digest != cell.strategy_digest),
    )
    same = table.scenario == cell.scenario
    connection.execute(update(cell_table).where(same, other).values(current=False))


def _replace(connection: Connection, cell: Cell) -> None:
    connection.execute(update(cell_table).where(cell_table.c.id == cell.id).values(**asdict(cell)))


def _tuples(row: RowMapping) -> dict[str, Any]:
    """Return a row as values of a frozen record: JSON has no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
