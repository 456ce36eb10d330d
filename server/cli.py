"""The command group `consilium server`: plan a study, and report on a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server import operate, runs_cli
from shared.errors import CoordinatorError, StudyError
from shared.study import Study, load_study

if TYPE_CHECKING:
    from shared.explain_noise import SiteNoise

app = typer.Typer(help="For the coordinator: plan, run and report studies.", no_args_is_help=True)
app.add_typer(operate.app)
app.add_typer(runs_cli.app)

Kind = Literal["xray", "ct", "mri", "ultrasound", "colour", "other"]
Hardware = Literal["cpu", "gpu"]
Network = Literal["auto", "cnn", "linear", "attention"]
Privacy = Literal["strong", "medium", "light", "none"]


def _unused(path: Path) -> Path:
    """Refuse a file that exists, before anything is asked."""
    if path.exists():
        raise StudyError("this file exists already", str(path), "Give another name, or remove it")
    return path


@app.command()
def check(
    study: Annotated[Path, typer.Argument(help="the study.toml")],
    patients: Annotated[
        list[int] | None,
        typer.Option(min=1, max=10_000_000, help="training patients of a site; repeatable"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Explain a study in plain words, with the noise it means for a site of N patients.

    Example: consilium server check study.toml --patients 250
    """
    from shared.explain import explain_study, parameters
    from shared.explain_noise import EXAMPLE_SITES, site_noise

    plan = load_study(study)
    noise = [site_noise(plan, n) for n in patients or EXAMPLE_SITES] if plan.privacy.enabled else []
    if as_json:
        record = {
            "study": plan.name,
            "digest": plan.digest,
            "parameters": parameters(plan),
            "explanation": explain_study(plan),
            "noise": [asdict(site) for site in noise],
        }
        typer.echo(json.dumps(record, indent=2))
        return
    _print_study(plan)
    if noise:
        _print_noise(noise)


@app.command("new-study")
def new_study(
    out: Annotated[
        Path, typer.Argument(help="file to write", callback=_unused, is_eager=True)
    ] = Path("study.toml"),
    name: Annotated[str, typer.Option(prompt="Name of the study")] = "my-study",
    classes: Annotated[
        str,
        typer.Option(
            prompt="Classes to tell apart, separated by commas; the one to find comes last"
        ),
    ] = "normal,finding",
    kind: Annotated[Kind, typer.Option(prompt="Kind of images")] = "xray",
    patients: Annotated[
        int, typer.Option(prompt="Labelled patients at the smallest site", min=10, max=10_000_000)
    ] = 500,
    sites: Annotated[int, typer.Option(prompt="Number of sites", min=1, max=10_000)] = 3,
    hardware: Annotated[Hardware, typer.Option(prompt="What the sites compute on")] = "cpu",
    privacy: Annotated[Privacy, typer.Option(prompt="How strong the privacy")] = "medium",
    size: Annotated[
        int | None, typer.Option(min=28, max=256, help="side of the images; default: by hardware")
    ] = None,
    model: Annotated[
        Network, typer.Option(help="kind of model; auto: by how much noise there is")
    ] = "auto",
) -> None:
    """Propose a study from a few answers, with the reason for every choice.

    Options answer in advance; whatever is left out is asked for.

    Example: consilium server new-study pneumonia.toml --classes normal,pneumonia --kind xray
    """
    from server.propose import Wishes, propose, study_name

    wished = tuple(part.strip() for part in classes.split(",") if part.strip())
    answers = Wishes(
        study_name(name), wished, kind, patients, sites, hardware, privacy, size, model
    )
    text = propose(answers).to_toml()
    _write_new(out, text)
    typer.echo(text)
    typer.echo(f"Wrote {out}. See what it means: consilium server check {out}")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="folder of the run: runs/NAME")],
    out: Annotated[
        Path | None, typer.Option(help="page to write; default: report.html in that folder")
    ] = None,
) -> None:
    """Write the report of a run, finished or not, as one self-contained page.

    Example: consilium server report ~/consilium/runs/pneumonia
    """
    from server.release import read_card
    from server.report import write_report

    test: dict[str, float | int | None] = {}
    if (run_dir / "model-card.json").exists():
        card = read_card(run_dir)
        test = {**card.test_metrics, **({} if card.test_auc is None else {"auc": card.test_auc})}
    page = out or run_dir / "report.html"
    write_report(run_dir, page, test=test)
    typer.echo(f"Wrote {page}")


def _print_study(plan: Study) -> None:
    from shared.explain import study_topics

    console = Console(highlight=False)
    console.print(Text(f"Study {plan.name}", style="bold"))
    console.print(Text(f"Digest {plan.digest}\n", style="dim"), soft_wrap=True)
    for topic, text in study_topics(plan):
        alarming = topic == "Privacy" and not plan.privacy.enabled
        style = "bold red" if alarming else ""
        console.print(Text.assemble((f"{topic}: ", "bold"), (text, style)))


def _print_noise(sites: Sequence[SiteNoise]) -> None:
    columns = "patients", "lot", "noise", "noise / lot", "epsilon", "replaced", "delta", "± counts"
    table = Table(*columns, "verdict")
    for site in sites:
        table.add_row(
            f"{site.patients:,}",
            f"{site.lot:.1f}",
            f"{site.noise_multiplier:.3f}",
            f"{site.noise_to_signal:.4f}",
            f"{math.ceil(100 * max(site.epsilon, site.held_out_epsilon)) / 100:g}",
            f"{math.ceil(100 * site.replacement_epsilon) / 100:g}",
            f"{site.delta:.2g}",
            f"{site.count_noise:.1f}",
            site.verdict,
        )
    console = Console(highlight=False)
    console.print(Text("\nThe noise at a site of so many training patients", style="bold"))
    console.print(table)
    console.print(
        "lot: patients in a step on average. noise: multiplier of one patient's largest "
        "influence. epsilon: what the study costs a patient at most. replaced: the same where a "
        "patient's data is replaced by other data instead of by nothing, for contributions of "
        "full length in opposite directions. ± counts: noise on each count of the score "
        "histograms, in patients."
    )


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _unused(path)
    except OSError as error:
        raise CoordinatorError(
            f"cannot write the study: {error.strerror}", str(path), "Give another file"
        ) from None
