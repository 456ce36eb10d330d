"""The command group `consilium simulate`: unbalanced, incomplete federations, answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from shared.errors import SimulationError

if TYPE_CHECKING:
    from simulations.engine import Resources
    from simulations.runner import Job
    from simulations.scenario import Scenario

FOLDER = Path("consilium-simulations")
"""Where results go unless told otherwise, in a folder named like the scenario."""

app = typer.Typer(help="Simulate unbalanced, incomplete federations.", no_args_is_help=True)

Strategies = Annotated[
    list[str] | None,
    typer.Option("--strategy", help="compare this one; repeat it; default: the scenario's"),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="repeat it; default: the scenario's")
]
Data = Annotated[
    str | None, typer.Option(help="file or folder instead of the scenario's, such as a .npz")
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
    from simulations.sweep import is_sweep

    if is_sweep(scenario):
        raise SimulationError("this is a sweep", scenario, "Use `consilium simulate sweep`")
    found = load_scenario(scenario, _changes(strategy, seed, rounds), data)
    resources = Resources(cpus_per_client, gpus_per_client, ray_address, workers)
    raise typer.Exit(_compute([found], out or FOLDER / found.name, resources, whole=True))


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
    from simulations.sweep import is_sweep, load_sweep

    if not is_sweep(sweep):
        raise SimulationError("this is one scenario", sweep, "Use `consilium simulate run`")
    found = load_sweep(sweep, _changes(strategy, seed, rounds), data)
    resources = Resources(cpus_per_client, gpus_per_client, ray_address, workers)
    raise typer.Exit(_compute(found.scenarios, out or FOLDER / found.name, resources))


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
    from simulations.scenario import list_scenarios
    from simulations.strategies import BUILT_IN

    lines = [(kind, name, description) for name, description, kind in list_scenarios()]
    lines += [("strategy", name, strategy.description) for name, strategy in BUILT_IN.items()]
    width = max(len(name) for _, name, _ in lines)
    for kind, name, description in sorted(lines, key=lambda line: line[0]):
        typer.echo(f"{kind:8}  {name:{width}}  {description}")


def _changes(
    strategies: list[str] | None, seeds: list[int] | None, rounds: int | None
) -> dict[str, Any]:
    """Return what the options change in every scenario, by dotted key."""
    changes = {"compare": strategies, "seeds": seeds, "study.federation.rounds": rounds}
    return {key: value for key, value in changes.items() if value}


def _compute(
    scenarios: Sequence[Scenario], folder: Path, resources: Resources, *, whole: bool = False
) -> int:
    """Compute what is left to do, print what came of it, and return the exit code.

    With `whole`, nothing is computed unless every cell can be.
    """
    from simulations.engine import simulate
    from simulations.processes import signals_as_interrupts
    from simulations.progress import ProgressBar
    from simulations.runner import plan_jobs, run_jobs

    _check_machine(resources)
    console, place = Console(highlight=False), folder.resolve()
    jobs = plan_jobs(scenarios, " ".join(["consilium", *sys.argv[1:]]))
    if whole and _refused(jobs):
        return 1
    device = "cuda" if resources.gpus_per_client else "cpu"
    try:
        with signals_as_interrupts(), ProgressBar(console) as bar:
            failed = run_jobs(jobs, place, partial(simulate, resources=resources), device, bar)
    except KeyboardInterrupt:
        said = f"Stopped. The same command goes on with what is in {place}."
        console.print(said, soft_wrap=True)
        return 130
    _conclude(place, jobs, console)
    for cell in failed:
        name = f"{cell.scenario}, {cell.strategy}, seed {cell.seed}"
        console.print(f"[red]Failed:[/red] {name}: {escape(cell.reason)}", soft_wrap=True)
    return 1 if failed else 0


def _refused(jobs: Sequence[Job]) -> bool:
    """Say, in a line for each seed, what cannot be computed; return whether there is any."""
    from simulations.runner import infeasible

    errors = infeasible(jobs)
    told = {job.cell.seed: errors[job.cell.id] for job in jobs if job.cell.id in errors}
    for seed, error in told.items():
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]Error:[/red] seed {seed}: {escape(str(error))}")
    return bool(told)


def _check_machine(resources: Resources) -> None:
    """Refuse what would fail only after hours."""
    for package in ("ray", "matplotlib"):
        if find_spec(package) is None:
            raise SimulationError(
                f"simulations need {package}, which is not installed",
                todo="Run `pip install 'consilium-fl[simulation]'`",
            )
    if resources.ray_address:
        from shared.flower.workers import check_reachable

        check_reachable(resources.ray_address)
    if resources.gpus_per_client:
        import torch

        if not torch.cuda.is_available():
            raise SimulationError(
                "PyTorch finds no CUDA device here", "--gpus-per-client", "Leave the option out"
            )


def _conclude(folder: Path, jobs: Sequence[Job], console: Console) -> None:
    """Print the tables, write the report, and say where everything is."""
    from simulations.report import write_report
    from simulations.results import FILE, Results
    from simulations.summary import LEGEND, tables

    with Results(folder) as results:
        for table in tables(results, (job.cell.scenario for job in jobs)):
            console.print(table)
        any_finished = bool(results.cells(state="finished"))
    console.print(LEGEND)
    console.print(f"Results: {folder / FILE}", soft_wrap=True)
    if any_finished:
        console.print(f"Report:  {write_report(folder)}", soft_wrap=True)
