"""docs/simulating.md: its examples load and run, and nothing is left out."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from simulation_kit import MadeUp, write_results

from simulations.build import build_federation
from simulations.cli import app
from simulations.engine import Resources, simulate
from simulations.experiment import run_cell
from simulations.records import FINAL
from simulations.runner import plan_jobs
from simulations.scenario import load_scenario, study_of
from simulations.strategies import BUILT_IN
from simulations.sweep import SweepPlan, load_sweep

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulating.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def block(kind: str, holds: str) -> str:
    (found,) = [text for k, text in BLOCKS if k == kind and holds in text]
    return found


def section(title: str) -> str:
    _, _, rest = PAGE.partition(f"\n{title}\n")
    return re.split(rf"\n#{{1,{title.count('#')}}} ", rest)[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, as a reader of the page has."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def run_snippet(text: str) -> None:
    saved("snippet.py", text)
    runpy.run_path("snippet.py")


def test_every_example_is_short() -> None:
    assert len(BLOCKS) == 9
    for _, text in BLOCKS:
        added = [line for line in text.splitlines() if line.strip()]
        if "+++ b/" in text:
            added = [line for line in added if re.match(r"[+-](?![+-]{2} )", line)]
        assert len(added) <= 30, text


def test_the_scenario_of_the_page_is_what_it_says(here: Path) -> None:
    text = block("toml", "two-blind-sites")
    scenario = load_scenario(saved("two-blind-sites.toml", text))
    federation = build_federation(scenario.model_copy(update={"degrade": scenario.degrade[:1]}), 0)
    there = [set(site.train.labels.tolist()) for site in federation.sites]
    assert there == [{0, 1}] * 4 + [{0}] * 2
    sizes = [len(site.train) + len(site.held_out) for site in federation.sites]
    assert sizes[0] / sizes[3] == pytest.approx(4 ** (np.log(10) / np.log(6)), rel=0.05)


def test_the_sweep_of_the_page_multiplies_out(here: Path) -> None:
    sweep = load_sweep(saved("skew.toml", block("toml", 'name = "skew"')))
    assert [s.name for s in sweep.scenarios] == [
        "skew-iid-none", "skew-iid-epsilon-8", "skew-strong-none", "skew-strong-epsilon-8",
    ]  # fmt: skip
    assert sweep.scenarios[3].labels == {"label skew": "strong", "privacy": "epsilon-8"}
    assert sweep.scenarios[3].compare == ("alone", "pooled", "fedavg", "scaffold")
    assert study_of(sweep.scenarios[3], "fedavg", 8).privacy.epsilon == 8


def test_the_strategy_of_the_page_changes_the_study(here: Path) -> None:
    text = block("toml", "two-blind-sites") + "\n" + block("toml", "[strategies.")
    changes: dict[str, Any] = {"compare": ["prox-and-balance"]}
    scenario = load_scenario(saved("own.toml", text), changes)
    training = study_of(scenario, "prox-and-balance", 6).training
    assert (training.proximal, training.loss.name, training.loss.beta) == (
        0.3, "class-balanced", 0.99,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("snippet", "scenario", "names"),
    [
        ("mine.npz", 'name = "mine"', ["site-1", "site-2", "site-3", "site-4"]),
        ("patients.csv", 'name = "clinics"', ["north", "south"]),
    ],
)
def test_the_data_sets_of_the_page_become_federations(
    here: Path, snippet: str, scenario: str, names: list[str]
) -> None:
    run_snippet(block("python", snippet))
    loaded = load_scenario(saved("mine.toml", block("toml", scenario)))
    federation = build_federation(loaded, 0)
    assert sorted(site.name for site in federation.sites) == names
    assert len(federation.test) >= 100


def test_the_images_of_the_page_can_be_learned(here: Path) -> None:
    run_snippet(block("python", "mine.npz"))
    short = {"compare": ["fedavg"], "study.federation.rounds": 4}
    scenario = load_scenario(saved("mine.toml", block("toml", 'name = "mine"')), short)
    compute = partial(simulate, resources=Resources(engine="local"))
    (job,) = plan_jobs([scenario])
    federation = build_federation(scenario, 0)
    done = run_cell(job.cell, scenario, federation, here / "cell", compute, "cpu", lambda _: None)
    (auc,) = (
        m.value for m in done.measurements
        if (m.metric, m.where, m.round, m.subgroup) == ("auc", "test", FINAL, "")
    )  # fmt: skip
    assert auc is not None
    assert auc > 0.8


def test_the_strategy_that_takes_code_works_as_the_diff_has_it(here: Path) -> None:
    for package in ("client", "server", "shared"):
        shutil.copytree(ROOT / package, here / package, ignore=shutil.ignore_patterns("*.pyc"))
    change = saved("change.diff", block("diff", "CutMean"))
    subprocess.run(["git", "apply", "--unidiff-zero", change], check=True)
    code = """
import numpy as np
from shared.study import parse_study
from server.robust import make_aggregator
federation = {"aggregator": "cut-mean"}
task = {"classes": ["a", "b"]}
study = parse_study({"name": "x", "task": task, "federation": federation}, "x")
sites = make_aggregator(study, {"w": np.zeros(2, np.float32)})
for values in ([3, 4], [0, -5], [300, 400]):
    sites.add("s", {"w": np.array(values, np.float32)}, 1)
combined = sites.finish()["w"]
assert combined.dtype == np.float32
assert np.allclose(combined, [2, 1]), combined  # the third is cut to [3, 4]
"""
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)


def test_the_figures_are_read_as_the_page_does_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = MadeUp(strategies=("alone", "fedavg"), seeds=2, sites=2, rounds=1)
    write_results(here / "consilium-simulations" / "dirichlet-0.1", [made_up])
    run_snippet(block("python", "aggregate(wanted)"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["dirichlet-0.1", "alone"], ["dirichlet-0.1", "fedavg"],
    ]  # fmt: skip
    for _, _, value, low, high in lines:
        assert 0 <= float(low) < float(value) < float(high) <= 1


def test_every_strategy_is_in_the_table_with_a_word_on_privacy() -> None:
    rows = re.findall(r"^\| (`.*?) \|.*?\| (.*?) \|$", section("## Strategies"), re.MULTILINE)
    named = [name for first, _ in rows for name in re.findall(r"`([a-z-]+)`", first)]
    assert sorted(named) == sorted(BUILT_IN)
    assert all(text.startswith("sound") for _, text in rows)


def test_every_key_of_a_sweep_is_named() -> None:
    text = section("## Sweeps")
    for name in SweepPlan.model_fields:
        assert re.search(rf"\b{name}\b", text), name


def test_every_option_of_the_commands_is_described() -> None:
    commands = typer.main.get_command(app).commands["simulate"].commands
    for name, command in commands.items():
        assert f"consilium simulate {name}" in PAGE
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in PAGE, parameter.opts[0]


def test_links_and_pictures_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#]+)", prose)
    assert len(targets) >= 3
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target
