"""The split key: made once, missed when it is gone, and taken from another site only by hand."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.approvals import Approvals
from client.audit import AuditLog
from client.cli import app
from client.site import Site, load_site
from client.split_key import fingerprint
from client.vault import Vault
from shared.errors import SiteError
from shared.study import Study

Ward = Any  # the class in conftest.py


def make_site(home: Path) -> Site:
    home.mkdir()
    (home / "site.toml").write_text(
        'name = "ward"\n[server]\naddress = "localhost:1"\n[data]\ntable = "patients.csv"\n'
    )
    return load_site(home)


def study(**data: Any) -> Study:
    return Study.model_validate({"name": "s", "task": {"classes": ("a", "b")}, "data": data})


def key_command(site: Site, name: str, *words: str) -> Result:
    by = [] if name == "show" else ["--by", "Dr. A"]
    command = ["split-key", name, "--home", str(site.home), *words, *by]
    return CliRunner().invoke(app, command)


def test_a_home_of_an_earlier_release_gets_a_key_of_its_own_once_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = make_site(tmp_path / "one"), make_site(tmp_path / "other")
    one.ledger.touch()
    keys = [Approvals(site).open_split_key() for site in (one, other, one)]
    assert len([line for line in caplog.messages if "add split.key to its backup" in line]) == 1
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]
    assert stat.S_IMODE(one.split_key.stat().st_mode) == 0o600


@pytest.mark.parametrize("fault", ["gone", "replaced"])
def test_a_site_goes_on_with_the_key_it_approved_a_study_under_or_not_at_all(
    ward: Ward, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = ward.study()
    ward.approve(plan)
    assert ward.ask(plan, 1).outcome == "update"
    path = ward.hospital().site.split_key
    whole, loads = path.read_bytes(), ward.loads
    path.unlink()
    if fault == "replaced":
        path.write_bytes(bytes(32))
        path.chmod(0o600)
    assert ward.code(ward.ask(plan, 2)) == "site-unready"
    assert ward.loads == loads, "the cohort was opened"
    assert "gets one" not in caplog.text
    with pytest.raises(SiteError, match=rf"Restore split.key, fingerprint {fingerprint(whole)}"):
        ward.hospital().approvals.open_split_key()
    assert path.exists() == (fault == "replaced"), "a new key was made in silence"
    path.write_bytes(whole)
    path.chmod(0o600)
    assert ward.ask(plan, 2).outcome == "update"


def test_hospitals_with_the_same_patients_may_share_a_key_by_hand(tmp_path: Path) -> None:
    one, other = make_site(tmp_path / "one"), make_site(tmp_path / "other")
    own = Approvals(one).open_split_key()
    plan = study(split_key=fingerprint(own))
    Approvals(one).approve_study(plan, "Dr. A", 60)
    with pytest.raises(SiteError, match="this site's is"):
        Approvals(other).approve_study(plan, "Dr. A", 60)
    file = tmp_path / "key"
    assert key_command(one, "export", str(file)).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    said = key_command(other, "import", str(file)).output
    assert fingerprint(own) in said
    assert own.hex() not in said
    assert key_command(other, "show").output.strip() == fingerprint(own)
    Approvals(other).approve_study(plan, "Dr. A", 60)
    events = [
        AuditLog(site.audit_log, Vault.open(site.vault_key)).lines()[-1].event
        for site in (one, other)
    ]
    assert events == ["split-key-exported", "split-key-imported"]


@pytest.mark.parametrize("text", ["", "key", "ab" * 31, "ab" * 33, "zz" * 32])
def test_what_is_no_key_is_not_taken(tmp_path: Path, text: str) -> None:
    site, file = make_site(tmp_path / "site"), tmp_path / "key"
    before = Approvals(site).open_split_key()
    file.write_text(text)
    error = key_command(site, "import", str(file)).exception
    assert isinstance(error, SiteError)
    assert "not a split key" in str(error)
    assert Approvals(site).open_split_key() == before


@pytest.mark.parametrize("revoked", [False, True])
def test_a_key_never_changes_once_a_study_was_approved(tmp_path: Path, revoked: bool) -> None:
    site, file = make_site(tmp_path / "site"), tmp_path / "key"
    approvals, plan = Approvals(site), study()
    approvals.approve_study(plan, "Dr. A", 60)
    if revoked:
        approvals.revoke(plan.digest)
    before = approvals.open_split_key()
    file.write_text("ab" * 32)
    error = key_command(site, "import", str(file)).exception
    assert isinstance(error, SiteError)
    assert "so it stays" in str(error)
    assert approvals.open_split_key() == before
    assert not site.audit_log.exists()


def test_an_export_replaces_no_file(tmp_path: Path) -> None:
    site = make_site(tmp_path / "one")
    own = Approvals(site).open_split_key()
    refused = key_command(site, "export", str(site.home / "split.key"))
    assert isinstance(refused.exception, SiteError)
    assert "there already" in str(refused.exception)
    assert Approvals(site).open_split_key() == own
