"""What a hospital refuses, over real TLS, and how both sides learn of it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from system_kit import Federation, small_study

from client.approvals import Approvals
from client.node import free_port
from client.site import Site
from server.home import ServerHome
from server.link import control, start_link
from shared import pki
from shared.errors import CoordinatorError
from shared.flower.bundle import bundle
from simulations.processes import Processes

pytestmark = pytest.mark.system

CONSILIUM = str(Path(sys.executable).with_name("consilium"))


def foreign_bundle() -> bytes:
    """Return a bundle like this release's but with a line of its own."""
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        return packed(archive.read("pyproject.toml") + b'\n[tool.other]\nx = "y"\n')


def bundle_of_release(release: str) -> bytes:
    """Return the bundle of another release: the same text but for the version."""
    version = b'version = "%s"' % release.encode()
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        project = re.sub(rb'version = "[^"]*"', version, archive.read("pyproject.toml"), count=1)
    return packed(project)


def packed(project: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pyproject.toml", project)
        digest = hashlib.sha256(project).hexdigest()
        archive.writestr(".info/CONTENT", f"pyproject.toml,{digest},{len(project) * 8}")
    return buffer.getvalue()


def audit(home: Path) -> list[dict[str, object]]:
    path = home / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_in_vain(site: Site) -> subprocess.CompletedProcess[str]:
    """Start a node that is to end by itself."""
    return subprocess.run(
        [CONSILIUM, "site", "start", "--home", str(site.home)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_foreign_bundle_is_refused_and_the_node_lives_on(federation: Federation) -> None:
    site = federation.add_site()
    study = small_study(federation={"start_deadline": 20})
    federation.approve(study)
    bundles = {"foreign": foreign_bundle(), "newer": bundle_of_release("9.9.9")}
    for number, (name, content) in enumerate(bundles.items(), start=1):
        federation.home.create_run(name, study)
        control(federation.home).start_run(name, content)
        event = federation.wait_for_event(name, "site-failed")
        assert event["site"] == site.config.name
        assert "the site runs another release" in event["error"]
        refused = [e for e in audit(site.home) if e.get("code") == "bundle-refused"]
        assert len(refused) == number
    assert not list((site.home / "flower").rglob("pyproject.toml")), "it was unpacked"

    federation.home.create_run("own", study)
    control(federation.home).start_run("own")
    federation.wait_for_event("own", "run-finished")
    assert not federation.processes.dead()


def test_unapproved_study_is_offered_refused_and_taken_up_once_approved(
    federation: Federation,
) -> None:
    site = federation.add_site()
    study = small_study()
    federation.home.create_run("r", study)
    control(federation.home).start_run("r")
    refused = federation.wait_for_event("r", "site-refused")
    assert refused["code"] == "study-not-approved"
    assert [s.digest for s in Approvals(site).offered()] == [study.digest]
    assert not (site.home / "outbox").exists() or not list((site.home / "outbox").iterdir())

    command = [CONSILIUM, "site", "approve", "--home", str(site.home), study.digest[:10]]
    subprocess.run(
        [*command, "--by", "Dr. Grey", "--patients", "70"], check=True, stdout=subprocess.DEVNULL
    )
    federation.wait_for_event("r", "run-finished")
    assert [e for e in audit(site.home) if e["event"] == "study-approved"]


def test_unknown_key_is_told_so(federation: Federation) -> None:
    site = federation.add_site(enrol=False, start=False)
    result = start_in_vain(site)
    assert result.returncode != 0
    assert "does not know this node's key" in result.stderr
    assert "Traceback" not in result.stderr


def test_server_of_another_authority_is_refused(federation: Federation, tmp_path: Path) -> None:
    site = federation.add_site(start=False)
    other = tmp_path / "other"
    other.mkdir()
    pki.create_authority(other)
    (site.home / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    result = start_in_vain(site)
    assert result.returncode == 1
    assert "certificate is refused" in result.stderr


def test_revoked_site_cannot_come_back(federation: Federation) -> None:
    site = federation.add_site(start=False)
    command = [CONSILIUM, "server", "revoke", "--home", str(federation.home.path)]
    subprocess.run([*command, site.config.name], check=True, stdout=subprocess.DEVNULL)
    assert federation.home.sites() == ()
    result = start_in_vain(site)
    assert result.returncode != 0
    assert "does not know this node's key" in result.stderr


@pytest.mark.parametrize("which", ["fleet", "control"])
def test_port_in_use_is_named_at_once(tmp_path: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Processes() as processes:
        port = taken.getsockname()[1]
        home = ServerHome.create(
            tmp_path,
            f"127.0.0.1:{port if which == 'fleet' else free_port()}",
            port if which == "control" else free_port(),
            ["localhost"],
        )
        with pytest.raises(CoordinatorError, match=f"Address already in use .127.0.0.1:{port}"):
            start_link(home, processes.start)


def test_superlink_that_dies_at_start_is_reported(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path, f"127.0.0.1:{free_port()}", free_port(), ["localhost"])
    (tmp_path / "server.key").write_text("not a key")
    with Processes() as processes, pytest.raises(CoordinatorError, match="ended at start"):
        start_link(home, processes.start)
    assert not processes.dead()
