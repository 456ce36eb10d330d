"""The command group `consilium privacy`: put the privacy claim to the test."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from simulations.audit.distinguish import Distinguished
    from simulations.audit.report import AuditReport

app = typer.Typer(help="Put the privacy claim to the test.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Put the privacy claim to the test."""


@app.command()
def audit(
    epsilon: Annotated[float, typer.Option(min=0.01, max=50, help="the claim")] = 8.0,
    delta: Annotated[float, typer.Option(min=1e-9, max=1e-3, help="the claim")] = 1e-5,
    canaries: Annotated[
        int, typer.Option(min=32, max=4096, help="patients a coin is thrown for")
    ] = 1024,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="rounds of the study")] = 48,
    steps: Annotated[int, typer.Option(min=1, max=100, help="steps of a round")] = 1,
    sampling_rate: Annotated[
        float, typer.Option(min=0.01, max=1, help="chance to be in a step's lot")
    ] = 0.5,
    trials: Annotated[
        int, typer.Option(min=0, max=10_000, help="coins for each enemy; 0: without them")
    ] = 40,
    seed: Annotated[
        int | None, typer.Option(help="repeat an audit; default: the hospital's own randomness")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Attack the product's own code, and say what can be told of a patient.

    One private training with canary patients bounds epsilon from below. Then enemies who write
    the study and the weights look for one patient in low bits, in what others contribute, and in
    all that travels beside the noise.

    The training is the hospitals' own code. Ends with status 1 if a finding contradicts the
    claim. No finding proves no claim: a bound below the claim is what a sound system shows.

    Example: consilium privacy audit --epsilon 1
    """
    from simulations.audit.canaries import AuditPlan
    from simulations.audit.report import audit as run_audit
    from simulations.seeded import SeededStream

    plan = AuditPlan(epsilon, delta, canaries, rounds, steps, sampling_rate)
    seeded = None if seed is None else SeededStream(seed, "privacy audit")
    with _without_warnings():
        report = run_audit(plan, seeded, trials)
    if as_json:
        typer.echo(json.dumps(report.record(), indent=2))
    else:
        _print(report)
    raise typer.Exit(1 if report.findings else 0)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep to themselves what the audited hospitals would tell their own staff."""
    log = logging.getLogger("client")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _print(report: AuditReport) -> None:
    plan, attack, bound = report.plan, report.attack, report.attack.bound
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Claim: epsilon {plan.epsilon:g} at delta {plan.delta:g} per patient")
    console.print(
        f"Training: {plan.rounds} rounds of {plan.steps} step(s), sampling rate "
        f"{plan.sampling_rate:g}, noise multiplier {attack.noise_multiplier:.3f}"
    )
    console.print(
        f"Canaries: {plan.canaries}, of which {attack.included} were included; "
        f"{bound.right} of {bound.guesses} guesses right"
    )
    console.print(f"Epsilon is at least {bound.epsilon:.2f} (95 % confidence)")
    console.print(f"The most that {plan.canaries} canaries could show: {attack.largest:.2f}")
    if attack.largest <= plan.epsilon:
        console.print("Too few to contradict this claim: most faults show better at a smaller one")
    for name, lots in (("the sampler alone", report.sampler), ("this training", report.training)):
        worst = max(abs(z) for z in lots.deviations.values())
        console.print(
            f"Lots of {name}: largest deviation {worst:.1f} sigma, limit {lots.limit:.1f}"
        )
    console.print(f"Replay: {'none' if report.replay.unpredictable else 'possible'}")
    if report.distinguished:
        _print_enemies(console, report.distinguished)
    for finding in report.findings:
        console.print(f"[red]Finding:[/red] {finding}")
    if not report.findings:
        console.print("Nothing found that contradicts the claim.")


def _print_enemies(console: Console, found: Distinguished) -> None:
    for v in found.verdicts:
        outcome = "told apart" if v.flagged else "not told apart"
        console.print(
            f"{v.name[0].upper()}{v.name[1:]}: {outcome}, right {v.right} of {v.trials} times "
            f"where chance is {v.chance:.1%} (p = {v.p_value:.2g}; {v.tried})"
        )
    names = {v.name.split(":")[0] for v in found.verdicts}
    if "company" not in names:
        console.print("Company: nothing to try, for this machine computes every row alike")
    free = found.free
    console.print(
        f"Free bits: {len(free.told_apart)} of {len(free.pairs)} pairs of data sets told apart by "
        "what travels beside the noise"
    )
    console.print(
        "Each enemy accuses sound code in one of a million audits at most; free bits never do."
    )
