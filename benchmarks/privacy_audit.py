"""The empirical lower bound on epsilon at three claims, and with faults planted.

    python benchmarks/privacy_audit.py --seeds 3

Every row is an audit of its own with the options of `consilium privacy audit`. Seeds make the
rows repeatable; the command itself audits with the hospital's own randomness.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib as mpl
from audit_faults import INSIDE, SAMPLERS, STREAMS, TRAINERS, planted
from common import RESULTS, write_results

from client.privacy.sampler import draw_lot
from client.privacy.stream import OsStream
from simulations.audit.attack import Trainer, attack, product_round
from simulations.audit.canaries import AuditPlan
from simulations.audit.lots import check_lots
from simulations.audit.replay import check_replay, hospital_streams
from simulations.audit.report import audit
from simulations.seeded import SeededStream

mpl.use("svg")
CLAIMS = (1.0, 3.0, 8.0)


def run_row(name: str, claim: float, trainer: Trainer, seeds: int) -> dict[str, Any]:
    """Audit one trainer at one claim, once per seed."""
    plan = AuditPlan(epsilon=claim)
    runs = [attack(plan, SeededStream(seed, "benchmark", name), trainer) for seed in range(seeds)]
    row = {
        "training": name,
        "claim": claim,
        "delta": plan.delta,
        "canaries": plan.canaries,
        "noise_multiplier": runs[0].noise_multiplier,
        "lower_bounds": [round(run.bound.epsilon, 3) for run in runs],
        "guesses": [f"{run.bound.right} of {run.bound.guesses}" for run in runs],
        "largest_possible": round(runs[0].largest, 3),
        "flagged": [run.bound.epsilon > claim for run in runs],
    }
    print(row, flush=True)
    return row


def check_chance() -> dict[str, Any]:
    """Check the product's lots and randomness, and faulty ones."""
    lots = {"the product's": check_lots(draw_lot, OsStream())}
    lots |= {name: check_lots(make(), SeededStream(0, name)) for name, make in SAMPLERS.items()}
    with hospital_streams(AuditPlan().study()) as open_stream:
        replays = {"the product's": check_replay(open_stream)}
    replays |= {name: check_replay(stream) for name, stream in STREAMS.items()}
    return {
        "lots": {
            name: {
                "flagged": not found.poisson,
                "sigma": {key: round(z, 1) for key, z in found.deviations.items()},
            }
            for name, found in lots.items()
        },
        "replay": {name: {"flagged": not found.unpredictable} for name, found in replays.items()},
    }


def audit_inside() -> dict[str, Any]:
    """Run the whole audit on the product, and with faults inside what it calls."""
    plan = AuditPlan(epsilon=1.0)
    found = {"the product": audit(plan, SeededStream(0, "inside")).findings}
    for fault in INSIDE:
        with planted(fault):
            found[fault] = audit(plan, SeededStream(0, "inside")).findings
    return {name: {"flagged": bool(said), "findings": said} for name, said in found.items()}


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw every bound beside its claim."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for y, row in enumerate(reversed(rows)):
        bounds = row["lower_bounds"]
        colour = "#b3261e" if all(row["flagged"]) else "#1f6f54"
        axes.plot([row["claim"]] * 2, [y - 0.35, y + 0.35], color="black", lw=2)
        axes.plot([row["largest_possible"]] * 2, [y - 0.35, y + 0.35], color="grey", ls=":")
        axes.plot(bounds, [y] * len(bounds), "o", color=colour, alpha=0.8)
    axes.plot([], [], color="black", lw=2, label="claim")
    axes.plot([], [], color="grey", ls=":", label="most the canaries could show")
    axes.plot([], [], "o", color="#1f6f54", label="bound, sound training")
    axes.plot([], [], "o", color="#b3261e", label="bound, fault planted")
    axes.set_yticks(range(len(rows)), [r["training"] for r in reversed(rows)])
    axes.set_xlabel("epsilon (lower bound at 95 % confidence)")
    axes.set_xlim(left=-0.1)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(RESULTS / "privacy_audit.svg")


def main() -> None:
    """Run all rows, write the results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    rows = [run_row(f"as it is, claim {claim:g}", claim, product_round, seeds) for claim in CLAIMS]
    rows += [run_row(f"{name}, claim 1", 1.0, fault, seeds) for name, fault in TRAINERS.items()]
    command = f"python benchmarks/privacy_audit.py --seeds {seeds}"
    write_results(
        "privacy_audit", command, {"audits": rows, **check_chance(), "whole": audit_inside()}
    )
    draw(rows)


if __name__ == "__main__":
    main()
