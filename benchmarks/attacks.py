"""The enemies of `consilium privacy audit` at length, on the product and with faults planted.

    python benchmarks/attacks.py

Each enemy knows every patient but one, writes the study and the weights, and guesses from what
the hospital sends. `chance` is how often the best rule is right against the noise as stated.
"""

from __future__ import annotations

import argparse
from typing import Any

from audit_faults import NOTICED_BY, TELLTALES, findings_of, planted
from common import write_results

from simulations.audit.distinguish import Distinguished, distinguish
from simulations.audit.low_bits import training_bits
from simulations.seeded import SeededStream

CLAIMS = (8.0, 1.0, 0.1)
TRIALS = 100


def main() -> None:
    """Let the enemies loose and write what they achieved."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    product = distinguish(SeededStream(0, "attacks"), TRIALS, CLAIMS[0])
    results: dict[str, Any] = {"product": product.record()}
    for claim in CLAIMS[1:]:
        verdicts = training_bits(SeededStream(0, "attacks", claim), claim, TRIALS)
        found = Distinguished(tuple(verdicts), product.free)
        results[f"product, low bits at epsilon {claim:g}"] = found.record()["verdicts"]
    print(results, flush=True)
    results["faults"] = {fault: _of_fault(fault) for fault in TELLTALES}
    write_results("attacks", "python benchmarks/attacks.py", results)


def _of_fault(fault: str) -> dict[str, Any]:
    """Return what the enemy who must notice finds with a fault planted."""
    with planted(fault):
        found = findings_of(NOTICED_BY[fault], SeededStream(0, fault))
    row = {"noticed": bool(found), "findings": [finding[:200] for finding in found]}
    print(fault, row, flush=True)
    return row


if __name__ == "__main__":
    main()
