"""Enemies who look for one patient: they learn nothing of the product, and notice every fault."""

import importlib.util
import json
from pathlib import Path

import pytest
from scipy import stats
from typer.testing import CliRunner

from simulations.audit.company import find_gate
from simulations.audit.distinguish import Distinguished
from simulations.audit.free_bits import FreeBits, cases
from simulations.audit.verdict import Verdict, gaussian_chance
from simulations.audit_cli import app
from simulations.seeded import SeededStream

_spec = importlib.util.spec_from_file_location(
    "audit_faults", Path(__file__).parents[2] / "benchmarks" / "audit_faults.py"
)
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


@pytest.mark.parametrize("fault", faults.TELLTALES)
def test_a_planted_fault_is_noticed_by_its_enemy(fault: str) -> None:
    enemy = faults.NOTICED_BY[fault]
    if enemy == "company" and find_gate() is None:
        pytest.skip("this machine computes every row alike")
    with faults.planted(fault):
        assert enemy in "; ".join(faults.findings_of(enemy, SeededStream(0, fault)))
    # Without the fault the same enemy says nothing.
    assert faults.findings_of(enemy, SeededStream(0, fault)) == []


def test_the_command_lets_all_enemies_loose_and_none_tells_the_product_apart() -> None:
    options = ["audit", "--canaries", "64", "--rounds", "2", "--trials", "4", "--seed", "1"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    assert "Low bits: spacing of noised gradients: not told apart, right " in shown.output
    assert "Low bits: counts under large noise: not told apart" in shown.output
    assert "Company: " in shown.output
    assert f"Free bits: 0 of {len(list(cases()))} pairs" in shown.output
    assert "one of a million audits" in shown.output
    assert "take no part" not in shown.output  # what hospitals log for their own staff


def test_a_report_is_json_and_names_what_was_told_apart() -> None:
    verdict = Verdict.of("low bits: x", "y", [True] * 40, [True] * 40, 0.5)
    found = Distinguished(
        (verdict,), FreeBits(("pair",), {"pair": "message 0: patients is 1 or 2"})
    )
    assert found.findings == [
        "low bits: x: right 40 of 40 times, where 50.0% is the most the noise allows (p = 9e-13)",
        "free bits: pair: message 0: patients is 1 or 2",
    ]
    record = json.loads(json.dumps(found.record()))
    assert record["verdicts"][0]["flagged"]
    assert record["free_bits"]["pairs"] == ["pair"]


def test_a_verdict_is_the_exact_tail_of_the_binomial() -> None:
    verdict = Verdict.of("x", "y", [True] * 20 + [False] * 10, [True] * 30, 0.55)
    expected = sum(stats.binom.pmf(k, 30, 0.55) for k in range(20, 31))
    assert verdict.p_value == pytest.approx(expected)
    assert not verdict.flagged
    # 20 right guesses in a row are the fewest that prove anything.
    assert [Verdict("x", "y", n, n, 0.5).flagged for n in (19, 20)] == [False, True]


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (0.5, 4), (30.0, 25)])
def test_no_rule_on_gaussians_is_right_more_often_than_stated(noise: float, releases: int) -> None:
    # The best rule compares the mean of the releases with 1/2; its errors are those of a normal.
    spread = noise / releases**0.5
    expected = stats.norm.cdf(0.5, loc=0, scale=spread)
    assert gaussian_chance(noise, releases) == pytest.approx(expected)


def test_a_gate_opens_for_its_rows_only() -> None:
    gate = find_gate()
    if gate is None:
        pytest.skip("this machine computes every row alike")
    assert gate.value > 0
    assert 0 < gate.rows < 63
