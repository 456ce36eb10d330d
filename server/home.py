"""The server's home folder: its keys, its enrolled sites and its runs."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from server.countersign import Countersigner
from shared import pki
from shared.errors import CoordinatorError
from shared.folders import made_whole
from shared.names import SiteName, same_name
from shared.study import Study

HOME = "CONSILIUM_SERVER_HOME"
"""Environment variable that tells the ServerApp's process where the server's home is."""


class Settings(BaseModel):
    """Addresses of the server, as written in `server.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fleet: str = Field(
        pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$", description="host:port hospitals connect to"
    )
    control_port: int = Field(ge=1, le=65535, description="loopback port of the control API")


class EnrolledSite(BaseModel):
    """One hospital that may connect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SiteName
    node: int
    public_key: str
    since: str


_SITES = TypeAdapter(tuple[EnrolledSite, ...])


class ServerHome:
    """A coordinator's server folder.

    Args:
        path: The folder (mode 0700).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, fleet: str, control_port: int, hosts: list[str]) -> ServerHome:
        """Make a home: authority, server certificate, countersigning key, settings.

        Args:
            path: New or empty folder.
            fleet: host:port to listen on for hospitals.
            control_port: Loopback port of the control API.
            hosts: Names and addresses hospitals reach the server by.

        Raises:
            CoordinatorError: An address or name cannot be one, or there is a server already.
            OSError: The folder cannot be written; nothing is left of it.
        """
        try:
            settings = Settings(fleet=fleet, control_port=control_port)
        except ValidationError as error:
            raise CoordinatorError(
                f"these cannot be the server's addresses: {error.errors()[0]['msg']}",
                f"--listen {fleet}, --control-port {control_port}",
                "Give HOST:PORT to listen on, and a port from 1 to 65535",
            ) from None
        if (path / "ca.key").exists():
            raise CoordinatorError(
                "a certificate authority exists already", str(path), "Keep it, or use a new folder"
            )
        with made_whole(path) as draft:
            pki.create_authority(draft)
            # The control API is reached on loopback with the same certificate.
            pki.issue_server_certificate(draft, list(dict.fromkeys([*hosts, "127.0.0.1"])))
            Countersigner.open(draft)
            _write(draft / "server.json", settings.model_dump_json(indent=1))
        return cls(path)

    @property
    def settings(self) -> Settings:
        """The server's addresses.

        Raises:
            CoordinatorError: The folder is not a server's home.
        """
        file = self.path / "server.json"
        try:
            return Settings.model_validate_json(file.read_text())
        except (OSError, ValidationError):
            raise CoordinatorError(
                "this is not a server's home", str(self.path), "Run `consilium server init`"
            ) from None

    @property
    def heads(self) -> Path:
        """File of the sites' ledger heads as last countersigned."""
        return self.path / "heads.json"

    def sites(self) -> tuple[EnrolledSite, ...]:
        """Return the enrolled sites."""
        file = self.path / "sites.json"
        return _SITES.validate_json(file.read_text()) if file.exists() else ()

    def add_site(self, name: str, node: int, public_key: str) -> EnrolledSite:
        """Remember an enrolled site; names are unique.

        Raises:
            CoordinatorError: The name is taken.
        """
        sites = self.sites()
        if any(site.name == name for site in sites):
            raise CoordinatorError("a site of this name is enrolled already", name)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        site = EnrolledSite(name=name, node=node, public_key=public_key, since=now)
        _write(self.path / "sites.json", _SITES.dump_json((*sites, site), indent=1).decode())
        return site

    def site(self, name: str) -> EnrolledSite:
        """Return an enrolled site by name.

        Raises:
            CoordinatorError: No such site is enrolled.
        """
        for site in self.sites():
            if same_name(site.name, name):
                return site
        raise CoordinatorError("no site of this name is enrolled", name, "See `server sites`")

    def change_site(self, name: str, after: EnrolledSite) -> None:
        """Remember an enrolled site otherwise than before."""
        sites = tuple(after if site.name == name else site for site in self.sites())
        _write(self.path / "sites.json", _SITES.dump_json(sites, indent=1).decode())

    def remove_site(self, name: str) -> None:
        """Forget an enrolled site."""
        rest = tuple(site for site in self.sites() if site.name != name)
        _write(self.path / "sites.json", _SITES.dump_json(rest, indent=1).decode())

    def run_folder(self, run: str) -> Path:
        """Return the folder of a run.

        Raises:
            CoordinatorError: The name is not a run's.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run):
            raise CoordinatorError("this is not the name of a run", run)
        return self.path / "runs" / run

    def create_run(self, run: str, study: Study) -> Path:
        """Make the folder of a new run: the plan and who may take part.

        Raises:
            CoordinatorError: A run of this name exists, or no site is enrolled.
        """
        sites = self.sites()
        if not sites:
            raise CoordinatorError("no site is enrolled", str(self.path), "Enrol sites first")
        folder = self.run_folder(run)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise CoordinatorError("a run of this name exists", str(folder)) from None
        _write(folder / "study.json", study.canonical())
        _write(folder / "sites.json", json.dumps({str(s.node): s.name for s in sites}))
        return folder


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
