"""The statement says what the ledger says, and shows any change of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from client.privacy.account import Limits
from client.spending import spending_report
from client.statement import Statement, make_statement, sign_statement, verify_statement
from shared.errors import SiteError
from shared.pki import create_node_key

Ward = Any  # the class in conftest.py


@pytest.fixture
def statement(ward: Ward) -> Statement:
    study = ward.study()
    ward.approve(study)
    assert ward.ask(study, 1).outcome == "update"
    create_node_key(ward.home)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-1"))
        report = spending_report(ledger, Limits(10.0, 1e-5))
    names = {study.digest: "tiny <study> </script>"}
    return make_statement(ward.hospital().site, report, names, ward.time)


def test_a_signed_page_verifies_and_says_what_was_spent(ward: Ward, statement: Statement) -> None:
    page = sign_statement(statement, ward.home / "node.key")
    assert verify_statement(page, (ward.home / "node.pub").read_bytes()) == statement
    spending = statement.spending
    assert (spending.patients, spending.opted_out) == (18, 1)
    for account in spending.accounts:
        assert f"<td>{account.epsilon:.2f}</td>" in page
        assert f"<td>{account.used:.0%}</td>" in page
        if account.study:
            assert f"<td>{account.replacement:.2f}</td>" in page
    assert "1 have opted out" in page


def test_the_page_is_self_contained_and_escapes_names(ward: Ward, statement: Statement) -> None:
    page = sign_statement(statement, ward.home / "node.key")
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert page.count("</script>") == 1
    # It fits a phone, and the night.
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('<div class="wide"><table>') == page.count("<table>")
    assert "tiny &lt;study&gt;" in page
    assert ward.pseudonym("train-1") not in page


@pytest.mark.parametrize(
    ("find", "change"),
    [
        (r"18 patients", "17 patients"),  # what a person reads
        (r'"patients":18', '"patients":17'),  # what was signed
        (r'id="signature">.', 'id="signature">x'),
        (r"</body>", "<p>All is well</p></body>"),
    ],
)
def test_any_change_of_the_page_is_noticed(
    ward: Ward, statement: Statement, find: str, change: str
) -> None:
    page = sign_statement(statement, ward.home / "node.key")
    changed = re.sub(find, change, page, count=1)
    assert changed != page
    with pytest.raises(SiteError, match="not a statement"):
        verify_statement(changed, (ward.home / "node.pub").read_bytes())


def test_another_nodes_signature_does_not_hold(ward: Ward, statement: Statement) -> None:
    page = sign_statement(statement, ward.home / "node.key")
    other = ward.home / "other"
    other.mkdir()
    create_node_key(other)
    with pytest.raises(SiteError):
        verify_statement(page, (other / "node.pub").read_bytes())
    with pytest.raises(SiteError):
        verify_statement("<html></html>", (ward.home / "node.pub").read_bytes())


def test_what_was_shared_without_noise_is_never_given_a_number(ward: Ward) -> None:
    ward.policy |= {"evaluation": "exact"}
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    create_node_key(ward.home)
    with ward.hospital().ledger() as ledger:
        report = spending_report(ledger, Limits(10.0, 1e-5))
    bare = [account for account in report.accounts if account.unprotected]
    assert [account.unprotected for account in bare] == [("exact-evaluation",)] * 2
    page = sign_statement(
        make_statement(ward.hospital().site, report, {}, ward.time), ward.home / "node.key"
    )
    assert page.count("no guarantee (exact-evaluation)") == 2
    assert json.loads(report.model_dump_json())["accounts"]


@pytest.mark.parametrize("setting", ["refuse", "image-is-patient"])
def test_where_images_count_as_patients_the_page_says_so_and_signs_it(
    ward: Ward, setting: str
) -> None:
    ward.data["without_patient_id"] = setting
    create_node_key(ward.home)
    with ward.hospital().ledger() as ledger:
        report = spending_report(ledger, Limits(10.0, 1e-5))
    stated = make_statement(ward.hospital().site, report, {}, ward.time)
    page = sign_statement(stated, ward.home / "node.key")
    assert ("two images of one person count as two patients" in page) == (
        setting == "image-is-patient"
    )
    key = (ward.home / "node.pub").read_bytes()
    assert verify_statement(page, key).without_patient_id == setting
    changed = page.replace("two images of one person count as two", "images of one person are one")
    if setting == "image-is-patient":
        with pytest.raises(SiteError, match="not a statement"):
            verify_statement(changed, key)
