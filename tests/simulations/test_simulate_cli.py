"""The simulate commands, as typed."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from click.testing import Result
from experiment_kit import least_patients
from rich.console import Console
from simulation_kit import MadeUp, write_results
from typer.testing import CliRunner

from shared.errors import ConsiliumError
from simulations.cli import run
from simulations.datasets import PhantomData
from simulations.processes import descendants
from simulations.results import Results
from simulations.scenario import list_scenarios, load_scenario
from simulations.simulate_cli import app
from simulations.strategies import BUILT_IN
from simulations.summary import tables

TINY = """
name = "tiny"
compare = ["pooled"]
[data]
source = "phantoms"
patients = 60
test_patients = 30
size = 28
[sites]
number = 2
[study]
training = {local_steps = 1}
model = {name = "cnn", widths = [4, 4], hidden = 0}
privacy = {enabled = false}
federation = {rounds = 50}
"""

SWEEP = """
name = "sizes"
compare = ["pooled"]
set = {"sites.number" = 1}
scenarios = [{scenario = "tiny.toml"}]
[grid.patients]
few = {"data.patients" = 40}
some = {"data.patients" = 60}
"""


NO_GPU = "PyTorch finds no CUDA device here"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "sizes.toml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"}, color=False)


def refused(*arguments: object) -> str:
    error = call(*arguments).exception
    assert isinstance(error, ConsiliumError), error
    assert "\n" not in str(error)
    return str(error)


def test_a_scenario_ends_in_a_table_and_a_report_and_is_not_computed_twice(here: Path) -> None:
    command = ("run", "tiny.toml", "--strategy", "pooled", "--rounds", 2, "--seed", 3, "--seed", 4)
    result = call(*command)
    assert result.exit_code == 0, result.output
    folder = here / "consilium-simulations" / "tiny"
    assert "2 cells to compute" in result.output
    assert "tiny: AUC, 2 seeds" in result.output
    assert re.search(r"pooled +\.\d{3} \[\.\d{3}, 1?\.\d{3}\] .* none +2 +0 ", result.output)
    assert f"Results: {folder / 'results.sqlite'}" in result.output
    assert f"Report:  {folder / 'report.html'}" in result.output
    assert (folder / "report.html").stat().st_size > 10_000
    with Results(folder) as results:
        found = results.cells()
    assert [(c.strategy, c.seed, c.rounds) for c in found] == [("pooled", 3, 2), ("pooled", 4, 2)]

    again = call(*command)
    assert "0 cells to compute (scenario x strategy x seed), 2 finished before." in again.output
    (folder / "report.html").unlink()
    assert call("report", folder).output.strip() == f"Report: {folder / 'report.html'}"


def test_a_sweep_has_a_table_for_each_scenario(here: Path) -> None:
    result = call("sweep", "sizes.toml", "--rounds", 1, "--out", here / "[/out]")
    assert result.exit_code == 0, result.output
    assert f"Results: {here / '[/out]' / 'results.sqlite'}" in result.output
    assert "sizes-tiny-few: AUC" in result.output
    assert "sizes-tiny-some: AUC" in result.output
    with Results(here / "[/out]") as results:
        found = [(c.labels["patients"], c.strategy) for c in results.cells()]
    # The references are in every table, whatever else a sweep compares.
    assert found == [
        (place, name) for place in ("few", "some") for name in ("pooled", "alone", "fedavg")
    ]


def test_a_cell_that_fails_is_named_and_makes_the_exit_code_1(here: Path) -> None:
    both = ("--strategy", "alone", "--strategy", "pooled")
    with least_patients(30):
        result = call("run", "tiny.toml", *both, "--rounds", 1)
    assert result.exit_code == 1
    assert "Failed: tiny, alone, seed 0: no site could train by itself" in result.output
    assert "pooled" in result.output.split("AUC")[1]


def test_a_run_that_cannot_work_is_refused_and_a_sweep_computes_the_rest(here: Path) -> None:
    skewed = TINY + '[[partition]]\nkind = "dirichlet"\nalpha = 1\n'
    (here / "tiny.toml").write_text(skewed)
    (here / "sizes.toml").write_text(
        SWEEP.replace("= 40}", '= 40, "partition.0.minimum" = 9}').replace("= 1}", "= 2}")
    )
    result = call("sweep", "sizes.toml", "--rounds", 1)
    assert result.exit_code == 1
    said = (
        "Failed: sizes-tiny-few, pooled, seed 0: a class of 16 patients cannot have 9 at each of 2"
    )
    assert said in result.output
    assert "sizes-tiny-some: AUC" in result.output

    (here / "tiny.toml").write_text(skewed + "minimum = 20\n")
    result = call("run", "tiny.toml", "--seed", 0, "--seed", 1)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["Error", " seed 0"], ["Error", " seed 1"]]
    assert "a class of 24 patients cannot have 20 at each of 2 sites" in lines[0]
    assert not (here / "consilium-simulations" / "tiny").exists()


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(here: Path) -> None:
    command = [sys.executable, "-m", "simulations.cli", "simulate", "run", "tiny.toml"]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **paths}, cwd=here
    ) as process:
        assert process.stdout is not None
        assert "3 cells to compute" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    folder = here / "consilium-simulations" / "tiny"
    assert said.splitlines()[-1] == f"Stopped. The same command goes on with what is in {folder}."
    assert process.returncode == 130


CRASHES_AT_ITS_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGSEGV)  # as threads of Ray have done it
from simulations.cli import main
main()
"""


def end_in_a_round(here: Path, number: int) -> tuple[int, str]:
    """Send a signal to a run with a worker once a round is done; return how it ended.

    Checks that it ends with all its processes, in seconds.
    """
    options = ["--strategy", "fedavg", "--workers", "1", "--out", "out"]
    finished = "out/cells/*/run/checkpoints/round-*.json"
    before = {path.name for path in here.glob(finished)}
    with subprocess.Popen(
        [sys.executable, "-c", CRASHES_AT_ITS_END, "simulate", "run", "tiny.toml", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=here,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while before >= {path.name for path in here.glob(finished)}:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        started = {child: os.pidfd_open(child) for child in descendants(process.pid)}
        assert len(started) > 4
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches them all
        said = process.stdout.read()
    assert not list(Path(tempfile.gettempdir()).glob(f"consilium-ray-{process.pid}-*"))
    deadline = time.monotonic() + 20
    for child, handle in started.items():
        left = max(0.0, deadline - time.monotonic())
        assert select.select([handle], [], [], left)[0], f"{child} is still there"
        os.close(handle)
    return process.returncode, said


def test_no_process_of_ray_outlives_ctrl_c_and_its_end_is_not_python_s(here: Path) -> None:
    (here / "tiny.toml").write_text(TINY.replace("rounds = 50", "rounds = 500"))
    for _ in range(2):
        code, said = end_in_a_round(here, signal.SIGINT)
        assert code == 130
        assert "Stopped. The same command goes on" in said.splitlines()[-1]


def test_everything_that_comes_along_is_listed_one_line_each() -> None:
    lines = call("list").output.splitlines()
    names = {line.split()[1] for line in lines}
    assert names == {name for name, _, _ in list_scenarios()} | set(BUILT_IN)
    assert len(lines) == len(list_scenarios()) + len(BUILT_IN)
    assert {line.split()[0] for line in lines} == {"scenario", "sweep", "strategy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere"], "there is no scenario 'nowhere'"),
        (["run", "tiny.toml", "--strategy", "magic"], "no strategy is named 'magic'"),
        (["run", "tiny.toml", "--data", "none.npz"], "there is no data 'none.npz'"),
        (["run", "tiny.toml", "--data", "tiny.toml"], "there is no data"),
        (["run", "sizes.toml"], "this is a sweep"),
        (["sweep", "tiny.toml"], "this is one scenario"),
        (["report", "."], "there are no results here"),
        (["run", "tiny.toml", "--gpus-per-client", "1"], NO_GPU),
        (["run", "tiny.toml", "--ray-address", "127.0.0.1:1"], "no Ray cluster answers"),
        (["run", "tiny.toml", "--ray-address", "nonsense"], "not the address of a Ray cluster"),
        (["run", "tiny.toml", "--ray-address", "host:abc"], "not the address of a Ray cluster"),
        (["run", "tiny.toml", "--ray-address", "http://h:1"], "not the address of a Ray cluster"),
        (["run", "tiny.toml", "--out", "tiny.toml"], "the results folder cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    here: Path, arguments: list[str], message: str
) -> None:
    if message == NO_GPU and torch.cuda.is_available():
        return
    assert message in refused(*arguments)
    assert not (here / "consilium-simulations").exists()


@pytest.mark.parametrize("package", ["ray", "matplotlib"])
def test_what_is_not_installed_is_said_before_anything_is_computed(
    here: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say there is none
    said = refused("run", "tiny.toml")
    assert f"simulations need {package}, which is not installed" in said
    assert "pip install 'consilium-fl[simulation]'" in said
    assert not (here / "consilium-simulations").exists()


def test_other_data_need_not_the_scenario_s_own(here: Path) -> None:
    (here / "own.toml").write_text(
        'name = "own"\nsites.number = 2\n[data]\nsource = "npz"\npath = "gone.npz"\n'
    )
    (here / "all.toml").write_text('name = "all"\nscenarios = [{ scenario = "own.toml" }]\n')
    assert "there is no data 'gone.npz'" in refused("run", "own.toml")
    for command in (["run", "own.toml"], ["sweep", "all.toml"]):
        assert "there is no data 'other.npz'" in refused(*command, "--data", "other.npz")
    assert load_scenario("own.toml", data="phantoms").data == PhantomData()


def said_by_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Return what the `consilium` command prints as it fails."""
    monkeypatch.setattr(sys, "argv", ["consilium", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (1, "")
    return printed.err


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("tiny.toml", "Run `pip install 'consilium-fl[simulation]'`"),
        ("wrong.toml", "should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'"),
        ("[/x]", "there is no scenario '[/x]'"),
        (":smile:", "there is no scenario ':smile:'"),
    ],
)
def test_the_command_prints_errors_as_they_are(
    here: Path,
    scenario: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "wrong.toml").write_text(TINY.replace('"tiny"', '"My Study"'))
    monkeypatch.setitem(sys.modules, "ray", None)
    said = said_by_command(["run", scenario], monkeypatch, capsys)
    assert said.startswith("Error: ")
    assert words in said
    assert said.count("\n") == 1


def test_tables_say_that_noise_is_seeded_and_over_how_many_sites_a_figure_is(
    tmp_path: Path,
) -> None:
    classes = ("a", "b", "c", "d", "e", "f", "g", "h")
    private = MadeUp("private", seeds=2, epsilon=8.0, classes=classes)
    write_results(tmp_path, [private, MadeUp("open", seeds=1)])
    console = Console(width=120, record=True, file=io.StringIO())
    with Results(tmp_path) as results:
        for table in tables(results, ["private", "open"]):
            console.print(table)
    first, second = console.export_text().split("open: AUC")
    assert "Noise of private runs is seeded" in " ".join(first.split())
    assert "Noise" not in second
    assert "over seeds (Student)" in " ".join(first.split())
    assert "over test patients (bootstrap)" in " ".join(second.split())
    assert re.search(r"\(\d/8\)", first)
