"""The doctor finds each thing that would stop a round, and says what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from client import doctor_machine
from client.approvals import Approvals
from client.audit import AuditLog, Event
from client.cli import app
from client.doctor import examine
from client.doctor_server import _certificate
from client.finding import Finding
from client.hospital import utc_now
from client.setup import create_site
from client.site import Site, load_site
from client.vault import Vault
from shared import pki
from shared.invitation import Invitation
from shared.study import parse_study

LETTER = Invitation(server="127.0.0.1:1", ca="CA", signing_key="KEY")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site whose server nobody is; all else is well."""
    labels = tmp_path / "labels.csv"
    labels.write_text("file,patient,label\n")
    (tmp_path / "images").mkdir()
    made = create_site(tmp_path / "h", "North", LETTER, tmp_path / "images", labels)
    with pytest.MonkeyPatch.context() as quiet:
        quiet.setattr(doctor_machine, "memory_available", lambda: 2**40)
        quiet.setattr(doctor_machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
        quiet.setattr(doctor_machine, "_owners", lambda: iter([0, os.getuid()]))
        yield made


def found(site: Site, check: str, level: str = "problem") -> Finding:
    """The one finding of a check; it comes with a remedy."""
    all_of_it = examine(site).findings
    (it,) = [it for it in all_of_it if (it.check, it.level) == (check, level)]
    assert it.remedy
    return it


def test_what_is_well_is_said_and_only_the_server_is_missing(site: Site) -> None:
    verdict = examine(site)
    assert [it.check for it in verdict.findings if it.level == "problem"] == ["server"]
    assert {it.check for it in verdict.findings if it.level == "good"} >= {
        *("home", "keys", "disk", "memory", "processes", "device", "ledger", "audit log"),
    }
    assert not verdict.ready


def rename(site: Site) -> None:
    path = site.home / "site.toml"
    path.write_text(path.read_text().replace('"North"', '"South"'))


def edit_audit(site: Site) -> None:
    AuditLog(site.audit_log, Vault.open(site.vault_key)).write(
        Event(event="clock-accepted", by="A"), utc_now()
    )
    site.audit_log.write_text(site.audit_log.read_text().replace('"A"', '"B"'))


def refuse_bundle(site: Site) -> None:
    log = AuditLog(site.audit_log, Vault.open(site.vault_key))
    log.write(Event(event="round-refused", code="bundle-refused"), utc_now())


def ask_for_a_gpu(site: Site) -> None:
    path = site.home / "site.toml"
    path.write_text(path.read_text().replace('# device = "auto"', 'device = "cuda"'))


@pytest.mark.parametrize(
    ("check", "accident", "said"),
    [
        ("home", lambda site: site.home.chmod(0o755), "others may look into"),
        ("home", lambda site: os.chown(site.home / "node.pub", 12345, 0), "another user"),
        ("keys", lambda site: site.vault_key.chmod(0o644), "others than its owner"),
        ("keys", lambda site: site.vault_key.unlink(), "there is no"),
        ("keys", lambda site: site.node_key.chmod(0o640), "others than its owner"),
        ("keys", lambda site: site.node_key.write_text("junk"), "not an OpenSSH private key"),
        ("name", rename, "site.toml says 'South', node.pub 'North'"),
        ("ledger", lambda site: site.ledger.write_text("junk" * 9), "ledger"),
        ("audit log", edit_audit, "edited"),
        ("release", refuse_bundle, "another release"),
        ("device", ask_for_a_gpu, "GPU cannot be used"),
    ],
)
def test_each_accident_is_found(
    site: Site, check: str, accident: Callable[[Site], object], said: str
) -> None:
    if check == "home" and os.getuid():
        pytest.skip("only root can give a file away")
    accident(site)
    assert said in found(load_site(site.home), check).found


def test_what_gets_scarce_is_a_warning_and_then_a_problem(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gib, level in ((0.5, "problem"), (2, "warning")):
        free = int(gib * 2**30)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(doctor_machine, "memory_available", lambda free=free: free)
        assert f"{gib:.1f} GiB free" in found(site, "disk", level).found
        assert f"{gib:.1f} GiB free" in found(site, "memory", level).found


def test_neighbours_proxies_and_missing_shared_memory_are_warned_of(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_machine, "_owners", lambda: iter([0, os.getuid(), 1717, 65534]))
    monkeypatch.setattr(doctor_machine, "PROXIES", ("https_proxy",))
    monkeypatch.setattr(doctor_machine, "SHARED_MEMORY", tmp_path / "none")
    assert "other users work on this machine (1)" in found(site, "processes", "warning").found
    assert "https_proxy" in found(site, "proxy", "warning").found
    assert "cannot be written" in found(site, "shared memory", "warning").found


def test_data_of_an_approved_study_is_read_as_a_round_would(site: Site) -> None:
    assert "no study is approved" in found(site, "studies", "warning").found
    study = parse_study({"format": 2, "name": "lungs", "task": {"classes": ["a", "b"]}}, "t")
    approvals = Approvals(site)
    approvals.offer(study.digest, study.canonical())
    said = [it.found for it in examine(site).findings if it.check == "studies"]
    assert any("waits for a decision" in each for each in said)
    approvals.approve_study(study, "A", 40)
    assert "no patient to train on" in found(site, "data of lungs").found
    quick = CliRunner().invoke(app, ["doctor", "--home", str(site.home), "--no-data", "--json"])
    record = json.loads(quick.output)
    assert quick.exit_code == 1
    assert not [it for it in record["findings"] if it["check"].startswith("data")]
    assert {"check", "level", "found", "remedy"} == record["findings"][0].keys()


def test_a_certificate_that_ends_soon_is_warned_of(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "SERVER_DAYS", 12)
    pki.create_authority(tmp_path)
    pki.issue_server_certificate(tmp_path, ["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        (site.home / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
        path = site.home / "site.toml"
        port = listener.getsockname()[1]
        path.write_text(path.read_text().replace("127.0.0.1:1", f"127.0.0.1:{port}"))
        it = _certificate(load_site(site.home))
    assert (it.level, it.found) == ("warning", "the server's ends in 11 days")
