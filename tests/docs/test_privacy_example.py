"""The worked example of docs/privacy.md: its snippets print what the page says, and it is right."""

from __future__ import annotations

import re
import runpy
import tomllib
from math import sqrt
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from shared.accounting import Mechanism, epsilon
from shared.explain import certainty
from shared.explain_noise import site_noise
from shared.study import parse_study

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def stated(pattern: str) -> float:
    """Return the one number of the page that a pattern's group matches."""
    found = re.findall(pattern, PAGE)
    assert len(found) == 1, (pattern, found)
    return float(found[0])


@pytest.mark.parametrize("number", range(4))
def test_every_snippet_prints_what_the_page_shows(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = SNIPPETS[number]
    script = tmp_path / "snippet.py"
    script.write_text(code)
    runpy.run_path(str(script))
    assert capsys.readouterr().out == shown
    assert len(SNIPPETS) == PAGE.count("```python")


def test_the_example_study_means_the_noise_the_page_states() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    study = parse_study(tomllib.loads(text), "docs/privacy.md")
    noise = site_noise(study, 1000)
    assert noise.noise_multiplier == pytest.approx(
        stated(r'"noise_multiplier": ([\d.]+)'), abs=5e-5
    )
    assert noise.count_noise == pytest.approx(stated(r'"count_noise": ([\d.]+)'), abs=5e-5)
    assert (study.total_steps, study.evaluations) == (55, 12)


def test_the_products_bound_lies_just_above_the_exact_epsilon() -> None:
    mu = sqrt(12) / 4.8316

    def excess(e: float) -> float:
        # Through the logarithm of the normal distribution: another way than the page's.
        first, second = norm.logcdf(mu / 2 - e / mu), norm.logcdf(-mu / 2 - e / mu)
        return float(norm.cdf(mu / 2 - e / mu) * (1 - 2.718281828459045 ** (e + second - first)))

    exact = brentq(lambda e: excess(e) - 1e-5, 0.1, 20)
    bound = epsilon([Mechanism(4.8316, 1.0, 12)], 1e-5)
    assert 2.98 < exact < 2.99
    assert exact < bound <= 3
    assert bound / exact - 1 == pytest.approx(0.003, abs=0.0005)


def test_the_chances_of_a_right_guess() -> None:
    row = re.search(r"([\d.]+) % at epsilon 1, ([\d.]+) % at 3, ([\d.]+) % at 8", PAGE)
    assert row is not None
    for budget, text in zip((1, 3, 8), row.groups(), strict=True):
        digits = len(text.partition(".")[2])
        shown = 100 * certainty(budget, 1e-5)
        assert float(text) == pytest.approx(shown, abs=1.01 * 10**-digits)
