"""The command group `consilium simulate`: unbalanced, incomplete federations, answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from simulations.engine import Resources
    from simulations.runner import Job
    from simulations.scenario import Scenario

app = typer.Typer(help="Simulate unbalanced, incomplete federations.", no_args_is_help=True)

Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", help="compare this one; repeat it; default: the scenario's"),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="repeat it; default: the scenario's")
]
Data = Annotated[
    Path | None, typer.Option(help="data instead of the scenario's: a MedMNIST .npz file")
]
Out = Annotated[Path | None, typer.Option(help="results; default: consilium-simulations/NAME here")]
Address = Annotated[str, typer.Option(help="of a Ray cluster; default: this machine alone")]
Cpus = Annotated[float, typer.Option(min=0.01, help="processor cores of one site at a time")]
Gpus = Annotated[float, typer.Option(min=0, help="share of a GPU of one site at a time")]
Workers = Annotated[
    int, typer.Option(min=0, help="sites computed at a time; 0: as many as there are cores for")
]
Rounds = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="instead of the scenario's, to try it out")
]


@dataclass(frozen=True)
class _Plan:
    """What a command line asks for."""

    name: str
    scenarios: tuple[Scenario, ...]
    strategies: Sequence[str]
    seeds: Sequence[int]
    out: Path | None
    resources: Resources


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="a file, or a name that `list` tells")],
    strategy: Strategies = None,
    seed: Seeds = None,
    data: Data = None,
    out: Out = None,
    ray_address: Address = "",
    cpus_per_client: Cpus = 1.0,
    gpus_per_client: Gpus = 0.0,
    workers: Workers = 0,
    rounds: Rounds = None,
) -> None:
    """Simulate one scenario with every strategy it compares; ends in tables and a report.

    Called again, it goes on where it was, and computes nothing again that is finished.

    Example: consilium simulate run dirichlet-0.1 --strategy fedavg --seed 0
    """
    from simulations.engine import Resources
    from simulations.scenario import load_scenario

    found = load_scenario(scenario, _overrides(data, rounds))
    resources = Resources(cpus_per_client, gpus_per_client, ray_address, workers)
    plan = _Plan(found.name, (found,), strategy or (), seed or (), out, resources)
    raise typer.Exit(_compute(plan, Console(highlight=False)))


@app.command()
def sweep(
    sweep: Annotated[str, typer.Argument(help="a file, or a name that `list` tells")],
    strategy: Strategies = None,
    seed: Seeds = None,
    data: Data = None,
    out: Out = None,
    ray_address: Address = "",
    cpus_per_client: Cpus = 1.0,
    gpus_per_client: Gpus = 0.0,
    workers: Workers = 0,
    rounds: Rounds = None,
) -> None:
    """Simulate scenarios x strategies x seeds; stopped at any moment, it goes on when called again.

    Example: consilium simulate sweep ladder --out ladder
    """
    from simulations.engine import Resources
    from simulations.sweep import load_sweep

    found = load_sweep(sweep, _overrides(data, rounds))
    resources = Resources(cpus_per_client, gpus_per_client, ray_address, workers)
    plan = _Plan(found.name, found.scenarios, strategy or (), seed or (), out, resources)
    raise typer.Exit(_compute(plan, Console(highlight=False)))


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="the folder that `run` or `sweep` named")],
) -> None:
    """Write tables, plots and one HTML page from the results there are.

    Example: consilium simulate report consilium-simulations/ladder
    """
    from simulations.report import write_report

    typer.echo(f"Report: {write_report(results)}")


@app.command("list")
def list_all() -> None:
    """List the scenarios, sweeps and strategies that come with it, one line each.

    Example: consilium simulate list
    """
    from rich.table import Table

    from simulations.scenario import list_scenarios
    from simulations.strategies import BUILT_IN

    table = Table(box=None, show_header=False)
    for name, description, kind in list_scenarios():
        table.add_row(kind, name, description)
    for name, strategy in BUILT_IN.items():
        table.add_row("strategy", name, strategy.description)
    Console(highlight=False).print(table)


def _overrides(data: Path | None, rounds: int | None) -> dict[str, Any]:
    """Return what the options change in a scenario, by dotted key."""
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = {"source": "npz", "path": str(data.resolve())}
    if rounds is not None:
        changes["study.federation.rounds"] = rounds
    return changes


def _compute(plan: _Plan, console: Console) -> int:
    """Compute what is left of a plan, print what came of it, and return the exit code."""
    from functools import partial

    from simulations.engine import simulate
    from simulations.progress import ProgressBar
    from simulations.runner import plan_jobs, run_jobs

    command = " ".join(["consilium", *sys.argv[1:]])
    jobs = plan_jobs(plan.scenarios, strategies=plan.strategies, seeds=plan.seeds, command=command)
    folder = (plan.out or Path("consilium-simulations") / plan.name).resolve()
    device = "cuda" if plan.resources.gpus_per_client else "cpu"
    try:
        with ProgressBar(console) as bar:
            failed = run_jobs(
                jobs, folder, partial(simulate, resources=plan.resources), device, bar
            )
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command goes on with what is in {folder}.")
        return 130
    _conclude(folder, jobs, console)
    for cell in failed:
        name = f"{cell.scenario}, {cell.strategy}, seed {cell.seed}"
        console.print(f"[red]Failed:[/red] {name}: {escape(cell.reason)}", soft_wrap=True)
    return 1 if failed else 0


def _conclude(folder: Path, jobs: Sequence[Job], console: Console) -> None:
    """Print the tables, write the report, and say where everything is."""
    from simulations.report import write_report
    from simulations.results import FILE, Results
    from simulations.summary import tables

    with Results(folder) as results:
        for table in tables(results, (job.cell.scenario for job in jobs)):
            console.print(table)
        any_finished = bool(results.cells(state="finished"))
    console.print(f"Results: {folder / FILE}", soft_wrap=True)
    if any_finished:
        console.print(f"Report:  {write_report(folder)}", soft_wrap=True)
