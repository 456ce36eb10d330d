"""The documents name every setting with its default, commands that exist, and real messages."""

from __future__ import annotations

import json
import math
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from annotated_types import Ge, Gt, Le, Lt
from click import Command, Group
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from client.data.labels import parse_labels
from client.data.table import parse_table
from client.site import DataSource, SiteConfig
from shared.protocol import RefusalCode, Reply, ScoreHistogram, Spending
from shared.study import Study
from simulations.cli import app
from simulations.scenario import Scenario

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def page(name: str) -> str:
    return (DOCS / name).read_text()


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables whose first cell is one `key`, by that key."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"\| `([\w.]+)` \|(.*)\|$", line):
            assert match[1] not in found, f"{match[1]} is described twice"
            found[match[1]] = [cell.strip() for cell in match[2].split(" | ")]
    return found


def reference(text: str) -> dict[str, list[str]]:
    """Return the rows of the page's reference table, which is headed key, default, range."""
    _, _, table = text.partition("| key | default | range | meaning |")
    return rows(table.split("\n\n")[0])


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = [m for m in parts(field.annotation) if issubclass(m, BaseModel)]
        for part in inner:
            yield from settings(part, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}", field


def parts(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    return [part for each in typing.get_args(annotation) for part in parts(each)]


def written(field: FieldInfo) -> str:
    """Return a default as the documents write it: as in TOML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {}:
        return "unset" if value is None else "empty"
    if isinstance(value, bool | str | tuple):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, int | float) else f'`"{value}"`'


@pytest.mark.parametrize(
    ("name", "model"),
    [("coordinator", Study), ("hospital", SiteConfig), ("simulating", Scenario)],
)
def test_every_setting_is_described_with_its_default_and_range(
    name: str, model: type[BaseModel]
) -> None:
    described = reference(page(f"{name}.md"))
    # Several models of a union may have the same key; the table describes it once.
    assert described.keys() == {key for key, _ in settings(model)}
    defaults: dict[str, list[str]] = {}
    for key, field in settings(model):
        defaults.setdefault(key, []).append(written(field))
        limits = [m for m in field.metadata if type(m) in BOUNDS]
        bounds = [getattr(m, n) for m in limits for n in m.__slots__]
        for bound in bounds:
            shown = f"{bound:.0f}" if float(bound).is_integer() else f"{bound:g}"
            assert re.search(rf"(?<![\d.]){shown}(?![\d.])", described[key][1]), (key, bound)
    for key, (default, *_) in described.items():
        assert default in defaults[key], f"{key}: the page says {default}, not {defaults[key]}"


BOUNDS = {Ge, Gt, Le, Lt}


def commands(command: Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    if isinstance(command, Group):
        for name, child in command.commands.items():
            yield from commands(child, (*words, name))
    yield " ".join(words), command


def test_every_command_in_the_documents_exists_with_its_options() -> None:
    known = dict(commands(typer.main.get_command(app)))
    named = set()
    for path in PAGES:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^    +|`)consilium ([^`\n]*)", text, re.MULTILINE):
            words = re.findall(r"^(?:[a-z-]+ ?)+", line.split(" --")[0])
            tried = words[0].split() if words else []
            while tried and " ".join(tried) not in known:
                tried.pop()  # an argument
            command = known[" ".join(tried)]
            assert tried, f"{path.name}: consilium {line}"
            assert not isinstance(command, Group), f"{path.name}: consilium {line}"
            options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"--[a-z-]+", line)) <= options, f"{path.name}: {line}"
            named.add(" ".join(tried))
    everything = {name for name, command in known.items() if not isinstance(command, Group)}
    assert everything - named <= {"demo", "version"}


def test_the_labels_example_can_be_read_with_the_settings_beside_it() -> None:
    text = page("hospital.md")
    (table,) = re.findall(r"^    Datei;.*\n(?:    .*\n)+", text, re.MULTILINE)
    toml, _ = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    data = tomllib.loads(toml)["data"]
    content = "".join(line.strip() + "\n" for line in table.splitlines()).encode()
    source = DataSource.model_validate({"images": "i", "labels": "l", "columns": data["columns"]})
    found = parse_labels(content, source, "docs").rows
    assert [(row.patient, data["values"][row.label]) for row in found] == [
        ("4711", "normal"),
        ("4711", "normal"),
        ("4712", "opacity"),
    ]


def test_the_table_of_patients_can_be_read_with_the_settings_beside_it() -> None:
    text = page("hospital.md")
    (table,) = re.findall(r"^    PatNr;.*\n(?:    .*\n)+", text, re.MULTILINE)
    _, toml = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    source = DataSource.model_validate(tomllib.loads(toml)["data"])
    study = Study.model_validate(
        {
            "name": "docs",
            "task": {"classes": ["healthy", "disease"]},
            "model": {"name": "table"},
            "table": {
                "columns": [
                    {"name": "age", "low": 21, "high": 101},
                    {"name": "sex", "categories": ["female", "male"]},
                    {"name": "chol", "low": 101.084, "high": 301.084},
                ]
            },
        }
    )
    content = "".join(line.strip() + "\n" for line in table.splitlines()).encode()
    first, second = parse_table(content, source, study, "docs").rows
    assert (first.patient, first.target, first.reason) == ("4711", (1,), None)
    assert first.values == pytest.approx((0, 0, 0))
    assert (second.target, second.values[1]) == ((0,), 1)
    assert [math.isnan(value) for value in second.values] == [True, False, True]


def test_all_that_may_leave_is_listed() -> None:
    _, _, after = page("hospital.md").partition("## What may leave the building")
    listed = set(re.findall(r"`([\w]+)", after.split("\n## ")[0]))
    names = {name for model in (Reply, Spending, ScoreHistogram) for name in model.model_fields}
    assert names <= listed


def test_every_refusal_code_is_explained_to_the_coordinator() -> None:
    assert set(typing.get_args(RefusalCode)) <= set(
        re.findall(r"`([a-z-]+)`", page("coordinator.md"))
    )


def source_text(*folders: str) -> str:
    """Return the program's text; what its messages fill in is "..."."""
    files = [path for name in folders for path in sorted((ROOT / name).rglob("*.py"))]
    source = " ".join(path.read_text() for path in files)
    # Adjacent string literals are one text.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    return re.sub(r"\{[^{}\n]*\}", "...", source)


def test_every_message_of_the_troubleshooting_table_is_in_the_program() -> None:
    _, _, table = page("hospital.md").partition("## Troubleshooting")
    source = source_text("client", "shared")
    messages = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(messages) > 30
    for message in messages:
        for text in re.split(r"\.\.\.|; | / |: ", re.sub(r"\(?`[^`]*`\)?", "", message)):
            part = text.strip(" .,()")
            assert len(part) < 8 or part in source or part.startswith("at the coordinator"), part


def test_what_two_releases_say_of_each_other_is_in_the_program() -> None:
    section = page("coordinator.md").partition("## Upgrading")[2].partition("\n## ")[0]
    source = source_text("client", "server", "shared")
    for said in (
        "the site runs another release: its node refused this server's bundle",
        "the bundle is not the one of this release",
        "the site runs an older release: its node speaks version ... of the protocol, this server "
        "version ...",
        "the study is of format ...",
        "; this release reads format ...",
    ):
        assert said in source, said
        assert re.search(re.escape(said).replace(r"\.\.\.", r"\d"), section), said
    codes = set(re.findall(r"`([a-z]+-[a-z]+)`", section)) - {"new-study"}
    assert codes == {
        *("site-failed", "site-refused", "round-refused"),
        *("bundle-refused", "message-invalid", "study-invalid"),
    }
