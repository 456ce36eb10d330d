"""A site that was set up can be read back, shows every setting, and keeps its keys private."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.setup import create_site
from client.site import Compute, Policy, Site, load_site
from shared.errors import SiteError
from shared.invitation import Invitation, load_invitation

LETTER = Invitation(server="fed.example.org:9092", ca="CA", signing_key="KEY")


def make(home: Path, **options: object) -> Site:
    return create_site(home, "North", LETTER, home / "images", home / "labels.csv", **options)  # type: ignore[arg-type]


def test_what_is_given_is_read_back(tmp_path: Path) -> None:
    site = make(
        tmp_path / "h",
        columns={"patient": "Patient ID"},
        values={"1": "opacity", 'a "quoted" one': "normal"},
        policy={"max_epsilon_per_study": 3.0, "evaluation": "none"},
        compute={"device": "cpu"},
    )
    again = load_site(site.home).config
    assert again == site.config
    assert again.data.columns.patient == "Patient ID"
    assert again.data.values == {"1": "opacity", 'a "quoted" one': "normal"}
    assert again.policy.max_epsilon_per_study == 3.0
    assert again.policy.evaluation == "none"
    assert (again.compute.device, again.server.address) == ("cpu", LETTER.server)


def test_the_file_shows_every_default_and_each_line_is_valid(tmp_path: Path) -> None:
    site = make(tmp_path / "h")
    lines = (site.home / "site.toml").read_text().splitlines()
    settings = lines[lines.index(next(line for line in lines if line.startswith("[policy]"))) :]
    shown = "\n".join(line.removeprefix("# ") for line in settings)
    values = tomllib.loads(shown)
    assert set(values["policy"]) == set(Policy.model_fields)
    assert set(values["compute"]) == set(Compute.model_fields)
    defaults = Policy().model_dump(exclude={"approvals_expire"})
    assert {k: v for k, v in values["policy"].items() if k in defaults} == defaults


def test_a_hospital_may_have_a_table_instead_of_images_or_both(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    alone = create_site(tmp_path / "a", "North", LETTER, table=table).config.data
    assert (alone.table, alone.images, alone.labels) == (table, None, None)
    both = make(tmp_path / "b", table=table).config.data
    assert both.table == table
    assert both.images == tmp_path / "b" / "images"
    for given in ({}, {"images": table}, {"labels": table, "table": table}):
        with pytest.raises(SiteError, match="--images and --labels, or --table"):
            create_site(tmp_path / "c", "North", LETTER, **given)
    assert not (tmp_path / "c").exists()


def test_home_and_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    site = make(tmp_path / "h")
    assert stat.S_IMODE(site.home.stat().st_mode) == 0o700
    for name in ("node.key", "vault.key"):
        assert stat.S_IMODE((site.home / name).stat().st_mode) == 0o600


def test_a_site_is_not_overwritten(tmp_path: Path) -> None:
    site = make(tmp_path / "h")
    key = site.node_key.read_bytes()
    with pytest.raises(SiteError, match="a site in this folder already"):
        make(tmp_path / "h")
    assert site.node_key.read_bytes() == key


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    site = make(tmp_path / "h")
    path = site.home / "site.toml"
    path.write_text(path.read_text().replace("[compute]", "max_epsilon = 3\n\n[compute]"))
    with pytest.raises(SiteError, match=r"policy\.max_epsilon: unknown key"):
        load_site(site.home)


@pytest.mark.parametrize("content", ["", "{}", '{"server": "x"}', "\udcff"])
def test_what_is_no_invitation_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "invitation.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SiteError, match="not an invitation"):
        load_invitation(path)


def test_invitation_round_trips_with_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "invitation.json"
    path.write_text(LETTER.model_dump_json())
    assert load_invitation(path).fingerprint == LETTER.fingerprint
    assert len(LETTER.fingerprint.replace(" ", "")) == 32


def test_an_error_leaves_no_half_made_home(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="name: must not have control characters"):
        create_site(tmp_path / "new", "a\u202eb", LETTER, table=tmp_path)
    assert not (tmp_path / "new").exists()
    given = tmp_path / "given"
    given.mkdir()
    (given / "mine.txt").write_text("keep")
    with pytest.raises(SiteError):
        make(given, policy={"max_epsilon_per_study": -1})
    assert [path.name for path in given.iterdir()] == ["mine.txt"]
    assert create_site(given, "Zu\u0308rich", LETTER, table=tmp_path).config.name == "Zürich"


def test_init_takes_no_folder_or_file_that_is_not_there(tmp_path: Path) -> None:
    letter = tmp_path / "invitation.json"
    letter.write_text(LETTER.model_dump_json())
    words = ["init", "--home", str(tmp_path / "h"), "--name", "N", "--invitation", str(letter)]
    for more in (["--images", str(tmp_path / "no"), "--labels", str(letter)],
                 ["--images", str(tmp_path), "--labels", str(tmp_path)],
                 ["--table", str(tmp_path / "no.csv")]):  # fmt: skip
        result = CliRunner().invoke(app, [*words, *more])
        assert isinstance(result.exception, SiteError), result.output
        assert "cannot be seen by this user" in str(result.exception)
    assert not (tmp_path / "h").exists()


def test_the_home_may_stand_before_the_ledgers_command_too(tmp_path: Path) -> None:
    site = make(tmp_path / "h")
    before = CliRunner().invoke(app, ["ledger", "--home", str(site.home), "verify"])
    after = CliRunner().invoke(app, ["ledger", "verify", "--home", str(site.home)])
    assert before.exit_code == after.exit_code == 0
    assert before.output == after.output
    assert CliRunner().invoke(app, ["ledger", "verify"]).exit_code == 2
