"""The one command `consilium`: groups `site`, `server` and `simulate`, and the demo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from client.cli import app as site_app
from server.cli import app as server_app
from shared.errors import ConsiliumError
from simulations.audit_cli import app as privacy_app
from simulations.processes import ending_workers
from simulations.simulate_cli import app as simulate_app

app = typer.Typer(
    name="consilium",
    help="Federated learning across hospitals: images stay, noised weights travel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(site_app, name="site")
app.add_typer(server_app, name="server")
app.add_typer(privacy_app, name="privacy")
app.add_typer(simulate_app, name="simulate")


@app.command()
def version() -> None:
    """Print the release, and the digest of the bundle that names its sources."""
    from importlib.metadata import version as installed

    from shared.flower.bundle import bundle_digest

    typer.echo(f"consilium {installed('consilium-fl')}, bundle {bundle_digest()}")


@app.command()
def demo(
    model: Annotated[Literal["cnn", "linear", "attention"], typer.Option(help="the model")] = "cnn",
    images: Annotated[
        Path | None, typer.Option(help="MedMNIST-layout .npz to use instead of phantoms")
    ] = None,
    sites: Annotated[int, typer.Option(min=1, max=20, help="number of hospitals")] = 3,
    rounds: Annotated[int | None, typer.Option(min=1, max=200)] = None,
    epsilon: Annotated[float, typer.Option(help="privacy budget of each hospital")] = 8.0,
    no_dp: Annotated[bool, typer.Option("--no-dp", help="train without privacy")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="where to train")] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, help="of the made-up data only, never of the noise")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for the results")] = None,
) -> None:
    """Run the main job here: hospitals train one model privately, over TLS; ends in a report."""
    from simulations.demo import run_demo
    from simulations.demo_options import DemoOptions

    options = DemoOptions(model, images, sites, rounds, epsilon, not no_dp, device, seed, out)
    raise typer.Exit(run_demo(options, Console(highlight=False)))


def main() -> None:
    """Run the command as a process of its own, which ends with it."""
    with ending_workers():
        run()


def run() -> None:
    """Run the command; errors are one line, never a traceback."""
    # Settled before anything imports Flower or torch.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        app()
    except ConsiliumError as error:
        # A text and not markup: errors quote what people typed, and it may have brackets.
        said = Text.assemble(("Error:", "red"), f" {error}")
        Console(stderr=True, highlight=False, soft_wrap=True).print(said)
        sys.exit(1)


if __name__ == "__main__":
    main()
