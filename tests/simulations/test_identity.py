"""What finished cells stand on: a change to code that makes figures, and no other, redoes them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from simulations.identity import PACKAGES, ROOT, code_version, sources

COMPUTES = (
    *("simulations.experiment", "simulations.engine", "simulations.measure", "simulations.build"),
    *("simulations.apps", "simulations.runner", "client.app", "client.data.decoder", "server.app"),
)
"""Where the computing of figures begins, and what is started as a process of its own."""


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imports(path: Path) -> Iterator[str]:
    """Every module a file names in an import, wherever it stands; those for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_all_code_that_figures_are_made_by_is_in_the_digest() -> None:
    todo, reached = list(COMPUTES), dict[str, Path]()
    while todo:
        module = todo.pop()
        path = file_of(module) if module.split(".")[0] in PACKAGES else None
        if path and module not in reached:
            reached[module] = path
            todo += imports(path)
    assert len(reached) > 100
    assert {m for m, path in reached.items() if path not in sources()} == set()


def test_what_shows_figures_only_is_not() -> None:
    shown = {str(p.relative_to(ROOT)) for k in PACKAGES for p in (ROOT / k).rglob("*.py")}
    shown -= {str(path.relative_to(ROOT)) for path in sources()}
    assert {
        *("simulations/plots.py", "simulations/report_words.py", "simulations/summary.py"),
        *("simulations/simulate_cli.py", "server/report.py", "client/cli.py"),
    } <= shown


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a commit, and in it a virtual environment that git ignores."""
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    author = ("-c", "user.name=a", "-c", "user.email=a@b.org", "-c", "commit.gpgSign=false")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "mine")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_the_version_is_the_commit_of_a_checkout(repository: Path) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert code_version(repository) == f"{version('consilium-fl')}, commit {head}"


def test_the_version_is_never_the_commit_of_a_repository_around(repository: Path) -> None:
    assert code_version(repository / ".venv" / "lib") == version("consilium-fl")


def test_the_version_outside_of_any_repository_is_the_release(tmp_path: Path) -> None:
    assert code_version(tmp_path) == version("consilium-fl")
