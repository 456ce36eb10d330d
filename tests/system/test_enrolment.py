"""Enrolling is checked against the hospital's own name, and nothing about it is for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from system_kit import Federation, small_study
from typer.testing import CliRunner

from client.cli import app as site_app
from client.site import Site, load_site
from server.cli import app
from server.countersign import Countersigner, HeadBook
from server.home import ServerHome
from server.standing import sites_of, start_run
from shared.errors import ConsiliumError
from shared.flower.admission import Gate
from shared.flower.node import read_node_key
from shared.protocol import LedgerHead

pytestmark = pytest.mark.system


class Coordinator:
    """Types commands of the coordinator."""

    def __init__(self, home: ServerHome) -> None:
        self.home = home

    def does(self, command: str, *arguments: object) -> str:
        words = [command, "--home", str(self.home.path), *map(str, arguments)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def cannot(self, command: str, *arguments: object) -> str:
        with pytest.raises(ConsiliumError) as caught:
            self.does(command, *arguments)
        return str(caught.value)


def admitted(site: Site) -> bool:
    key, ca = read_node_key(site.node_key), (site.home / "ca.pem").read_bytes()
    with Gate(site.config.server.address, ca, key) as gate:
        return gate.try_to_enter().verdict == "admitted"


def test_nothing_about_enrolment_is_for_ever(federation: Federation) -> None:
    server = Coordinator(federation.home)
    site = federation.add_site(enrol=False, start=False)
    name, key = site.config.name, site.home / "node.pub"
    assert f"the key is of '{name}', not of 'Hospitl 1'" in server.cannot("enrol", "Hospitl 1", key)
    assert not admitted(site)
    server.does("enrol", name, key)
    assert admitted(site)
    assert f"a site of this name is enrolled already ({name})" in server.cannot("enrol", name, key)
    federation.home.create_run("r", small_study())

    server.does("revoke", name)
    assert not admitted(site)
    server.does("enrol", name, key)
    assert admitted(site)
    start_run(federation.home, "r")
    (again,) = federation.home.sites()
    assert sites_of(federation.home.run_folder("r")) == {again.node: name}

    old = read_node_key(site.node_key)
    assert CliRunner().invoke(site_app, ["renew-key", "--home", str(site.home)]).exit_code == 0
    assert read_node_key(site.node_key).private_numbers() != old.private_numbers()
    assert not admitted(site)
    server.does("new-key", name, key)
    assert admitted(site)
    (site.home / "node.key").write_bytes((site.home / "node.key.old").read_bytes())
    assert not admitted(site)


def test_a_new_name_takes_what_is_known_of_the_ledger_along(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path / "s", "127.0.0.1:1", 1, ["localhost"])
    server = Coordinator(home)
    home.add_site("Hospitl 1", 7, "key")
    book = HeadBook(home.heads, Countersigner.open(home.path))
    head = LedgerHead(entries=4, hash="a" * 64)
    book.confirm({"Hospitl 1": head}, "b" * 64)
    run = home.create_run("r", small_study())
    (run / "events.jsonl").write_text(json.dumps({"event": "run-started"}) + "\n")
    assert "takes part in a run that is not over (r)" in server.cannot("rename", "hospitl 1", "X")
    (run / "events.jsonl").write_text(json.dumps({"event": "run-failed"}) + "\n")
    assert "cannot be a hospital's name" in server.cannot("rename", "Hospitl 1", "a\u202eb")
    server.does("rename", "Hospitl 1", "Universitätsspital Zürich, Klinik 1")
    (site,) = home.sites()
    assert (site.name, site.node) == ("Universitätsspital Zürich, Klinik 1", 7)
    known, _ = book.known(site.name)
    assert known is not None
    assert known.head == head
    assert book.known("Hospitl 1") == (None, "")


def test_a_server_that_does_not_run_is_what_is_said(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path / "s", "127.0.0.1:1", 1, ["localhost"])
    home.add_site("North", 7, "key")
    assert "the server does not answer" in Coordinator(home).cannot("revoke", "North")


def test_a_name_that_is_changed_at_the_site_goes_with_its_key(federation: Federation) -> None:
    site = federation.add_site(start=False)
    settings = site.home / "site.toml"
    settings.write_text(settings.read_text().replace(f'"{site.config.name}"', '"東京病院"', 1))
    federation.start_node(load_site(site.home))
    federation.wait("new name", lambda: "東京病院" in (site.home / "node.pub").read_text())
