"""After its ledger was lost in any way, a site refuses, and recovers by charging everything."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from recovery_kit import charged, spoil
from typer.testing import CliRunner

from client.cli import app
from client.privacy.account import Limits, allowance, best_order
from client.privacy.budget import Wanted
from client.privacy.groups import EVERYONE, joined
from client.privacy.plans import training_plan
from client.recovery import Told, recover
from client.spending import spending_report
from server.countersign import fork_head
from shared.accounting import Mechanism, calibrate, renyi
from shared.errors import LedgerError

Ward = Any  # the class in conftest.py


def test_a_sound_ledger_is_left_alone(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    before = ward.kinds()
    assert recover(ward.hospital(), Told("IT", (), False)).outcome == "nothing-lost"
    assert ward.kinds() == before


def test_a_restored_home_goes_on_with_everything_charged(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    first = ward.ask(study, 1)
    old = ward.copy("backup")
    known = server.seen(ward.ask(study, 2, **server.seen(first.head)).head)
    old.ask(study, 3, **known)
    assert recover(old.hospital(), Told("IT", (), False)).outcome == "adopted"
    assert charged(old, study) == (4, 5)
    # The study is used up; another one with budget left goes on, and the server is content.
    reply = old.ask(study, 3, **known)
    assert reply.refusal.code == "budget-exhausted"
    old.policy["max_epsilon_per_patient"] = 50
    other = ward.study(privacy={"epsilon": 2.0})
    old.approve(other)
    reply = old.ask(other, 1, **known)
    assert reply.outcome == "update"
    assert reply.head.entries > known["known_head"].entries
    assert old.ask(other, 2, **server.seen(reply.head)).outcome == "update"
    assert [line.event for line in old.audit()].count("ledger-adopted") == 1


@pytest.mark.parametrize(
    "how",
    [
        "deleted",
        "overwritten",
        "anchor",
        "update entry set steps = 0 where kind = 'reserve'",
        # Any patient but the one who opted out, whose wish would be lost with the row.
        "delete from cohort_member where patient = (select max(patient) from cohort_member where "
        "patient not in (select patient from entry join cohort_member using (cohort) "
        "where kind = 'opt-out'))",
    ],
)
def test_a_ledger_that_cannot_vouch_is_set_aside_and_everything_charged(
    ward: Ward, how: str
) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    assert ward.ask(study, 2, **server.seen(head)).outcome == "update"
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-1"))
    spoil(ward, how)
    known = server.seen(head)
    assert ward.ask(study, 3, **known).refusal.code == "ledger-invalid"
    assert recover(ward.hospital(), Told("IT", (), False)).outcome == "replaced"
    assert charged(ward, study) == (4, 5)
    with ward.hospital().ledger() as ledger:
        ledger.check_head(None)
        assert bool(ledger.opted_out()) == (how not in ("deleted", "overwritten"))
        assert ledger.lost_heads() == ()
    assert ward.ask(study, 3).refusal.code == "budget-exhausted"
    kept = [path.name for path in ward.home.glob("ledger.sqlite.set-aside*")]
    assert bool(kept) == (how != "deleted")
    assert not list(ward.home.glob("recovered*"))


def lose_the_key(ward: Ward) -> None:
    (ward.home / "vault.key").unlink()
    (ward.home / "audit.jsonl").rename(ward.home / "audit.old.jsonl")


def test_after_a_lost_vault_key_every_patient_has_paid_for_everything(ward: Ward) -> None:
    study, later = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(study)
    ward.ask(study, 1)
    lose_the_key(ward)
    assert ward.ask(study, 2).refusal.code == "ledger-invalid"
    assert recover(ward.hospital(), Told("IT", (), False)).outcome == "replaced"
    assert charged(ward, study) == (4, 5)
    # By hand, from the study: four rounds of two steps and five evaluations, for everyone.
    training = Mechanism(calibrate(8.0, 1e-5, 0.5, 8), 0.5, 8)
    scores = Mechanism(calibrate(8.0, 1e-5, 1.0, 5), 1.0, 5)
    with ward.hospital().ledger() as ledger:
        report = spending_report(ledger, Limits(100.0, 1e-5))
    (account,) = [account for account in report.accounts if not account.study]
    assert (account.who, account.others, report.patients) == ("all others", True, 0)
    order = best_order(Limits(100.0, 1e-5))
    both = sum(m.steps * renyi(replace(m, steps=1), (order,))[0] for m in (training, scores))
    assert account.used == pytest.approx(both / allowance(Limits(100.0, 1e-5), order))
    # Patients have new pseudonyms, and one has come who never took part: all of them have paid.
    both_sides = [ward.pseudonym(name) for name in ("train-0", "train-12", "held-out-0")]
    assert welcome(ward, later, both_sides, Limits(10.0, 1e-5)) == frozenset()
    assert welcome(ward, ward.study(privacy={"epsilon": 1.0}), both_sides, Limits(30.0, 1e-5))


def welcome(ward: Ward, study: Any, patients: list[str], limits: Limits) -> frozenset[str]:
    """Who of these patients could take part in a study's training."""
    wanted = Wanted(training_plan(study, 12), frozenset(patients))
    with ward.hospital().ledger() as ledger:
        return ledger.join([wanted], limits)["train"]


def test_a_study_closed_and_no_longer_approved_is_charged_when_the_key_is_lost(ward: Ward) -> None:
    study, later = ward.study(), ward.study(privacy={"epsilon": 7.0})
    ward.approve(study)
    ward.ask(study, 1)
    with ward.hospital().ledger() as ledger:
        ledger.close_study(study.digest)
    ward.hospital().approvals.revoke(study.digest)
    lose_the_key(ward)
    recover(ward.hospital(), Told("IT", (), False))
    assert charged(ward, study) == (4, 5)
    assert not welcome(ward, later, [ward.pseudonym("train-0")], Limits(10.0, 1e-5))


@pytest.mark.parametrize(
    "how", ["update entry set steps = 0 where kind = 'reserve'", "delete from cohort_member"]
)
def test_patients_a_spoilt_ledger_does_not_vouch_for_are_everyone(ward: Ward, how: str) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    ward.train -= 1  # who has left the data since has paid as well
    spoil(ward, how)
    recover(ward.hospital(), Told("IT", (), False))
    with ward.hospital().ledger() as ledger:
        assert all(EVERYONE in patients for patients in ledger.members().values())


def test_opt_outs_of_a_lost_key_must_be_named_again_before_anything_goes_on(ward: Ward) -> None:
    ward.policy["max_epsilon_per_patient"] = 50
    study, later = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(study)
    ward.approve(later)
    ward.ask(study, 1)
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-1"))
    lose_the_key(ward)
    for too_few in (None, ()):
        with pytest.raises(LedgerError, match="1 patients had opted out, 0 of them are known"):
            recover(ward.hospital(), Told("IT", too_few, False))
        assert ward.ask(later, 1).refusal.code == "ledger-invalid"
    assert recover(ward.hospital(), Told("IT", ["train-1"], False)).opted_out == 1
    ward.approve(other := ward.study(privacy={"epsilon": 1.0}))
    reply = ward.ask(other, 1)
    assert (reply.outcome, reply.patients) == ("update", 12)


def test_opt_outs_made_after_a_backup_must_be_named_again(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    old = ward.copy("backup")
    with ward.hospital().ledger() as ledger:
        ledger.opt_out(ward.pseudonym("train-1"))
    known = server.seen(ward.ask(study, 1).head)
    assert old.ask(study, 1, **known).refusal.code == "ledger-rollback"
    with pytest.raises(LedgerError, match="opt-outs"):
        recover(old.hospital(), Told("IT", exact=False))
    assert old.ask(study, 1, **known).refusal.code == "ledger-rollback"
    assert recover(old.hospital(), Told("IT", ["train-1"], False)).opted_out == 1
    with old.hospital().ledger() as ledger:
        assert ledger.opted_out() == {ward.pseudonym("train-1")}


def test_the_command_asks_for_opt_outs_and_plans_and_says_what_it_did(ward: Ward) -> None:
    (ward.home / "site.toml").write_text(
        'name = "ward"\n[server]\naddress = "localhost:1"\n[data]\nimages = "images"\n'
        'labels = "labels.csv"\n'
    )
    (ward.home / "labels.csv").write_text("file,patient,label\na.dcm,4711,ill\n")
    study = ward.study()
    with ward.hospital().ledger() as ledger:
        ledger.claim(None, [study.digest])
    spoil(ward, "overwritten")
    plan = ward.home / "study.json"
    plan.write_text(study.canonical())
    command = ["ledger", "recover", "--home", str(ward.home), "--by", "IT"]
    listed = ward.home / "objections.txt"
    listed.write_text("4711\n\n 0815 \n")
    answers = {"--opt-outs": [str(listed)], "--no-exact": [], "--plan": [str(plan)]}
    for option, answer in answers.items():  # each is asked for in turn
        refused = CliRunner().invoke(app, command)
        assert isinstance(refused.exception, LedgerError)
        assert option in str(refused.exception)
        command += [option, *answer]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "2 patients are opted out" in done.output
    assert "no table here has 1 of those listed" in done.output
    assert charged(ward, study) == (4, 5)
    with ward.hospital().ledger() as ledger:
        assert ledger.opted_out() == {ward.pseudonym("4711"), ward.pseudonym("0815")}


def trained_after_the_backup(ward: Ward) -> tuple[Ward, Any, dict[str, Any]]:
    """A home restored from before a study was approved, that study, and what the server knows."""
    ward.policy["max_epsilon_per_patient"] = 50
    first, lost = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(first)
    server = ward.server()
    head = ward.ask(first, 1).head
    old = ward.copy("backup")
    ward.approve(lost)
    head = ward.ask(lost, 1, **server.seen(head, first)).head
    return old, lost, server.seen(head, first, lost)


def test_two_copies_of_a_node_both_stop_and_the_one_that_is_kept_recovers(ward: Ward) -> None:
    ward.policy["max_epsilon_per_patient"] = 50
    study, other = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(study)
    ward.approve(other)
    server = ward.server()
    ward.ask(study, 1)
    twin = ward.copy("twin")
    head, forked = ward.ask(study, 2).head, twin.ask(study, 2).head
    assert head.entries == forked.entries
    told = server.seen(fork_head(head, forked.hash), study)
    assert ward.ask(study, 3, **told).refusal.code == "ledger-rollback"
    assert twin.ask(study, 3, **told).refusal.code == "ledger-rollback"
    recover(ward.hospital(), Told("IT", (), False))
    assert charged(ward, study) == charged(ward, other) == (4, 5)
    ward.approve(third := ward.study(privacy={"epsilon": 1.0}))
    reply = ward.ask(third, 1, **told)
    assert reply.outcome == "update"
    assert reply.head.entries > told["known_head"].entries
    assert twin.ask(study, 3, **told).refusal.code == "ledger-rollback"


def test_a_study_the_restored_home_never_heard_of_is_charged_to_everyone(ward: Ward) -> None:
    old, lost, known = trained_after_the_backup(ward)
    first = ward.study()
    assert old.ask(first, 2, **known).refusal.code == "ledger-rollback"
    with pytest.raises(LedgerError, match=r"study\.json") as refusal:
        recover(old.hospital(), Told("IT", (), False))
    assert lost.digest in str(refusal.value)
    assert old.ask(first, 2).refusal.code == "ledger-rollback"  # nothing was recovered
    assert recover(old.hospital(), Told("IT", (), False, [first, lost])).outcome == "adopted"
    assert charged(old, first) == charged(old, lost) == (4, 5)
    with old.hospital().ledger() as ledger:
        taken = joined(ledger.entries(), ledger.members())
    assert taken[lost.digest, "train"] == taken[lost.digest, "evaluate"] == {EVERYONE}
    assert EVERYONE in taken[first.digest, "train"]
    old.approve(lost)
    for study in (first, lost):
        assert old.ask(study, 2, **known).refusal.code == "budget-exhausted"


def test_the_plan_may_be_among_those_offered(ward: Ward) -> None:
    old, lost, known = trained_after_the_backup(ward)
    assert old.ask(lost, 2, **known).refusal.code == "study-not-approved"  # and it is offered
    assert old.ask(ward.study(), 2, **known).refusal.code == "ledger-rollback"
    recover(old.hospital(), Told("IT", (), False))
    assert charged(old, lost) == (4, 5)


def test_a_study_the_server_knows_and_the_ledger_does_not_is_noticed_under_any_head(
    ward: Ward,
) -> None:
    study, unknown = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    reply = ward.ask(study, 2, **server.seen(head, study))
    assert reply.outcome == "update"  # a study the ledger knows needs nothing
    known = server.seen(reply.head, study, unknown)
    assert ward.ask(study, 3, **known).refusal.code == "ledger-rollback"
    assert ward.ask(study, 3).refusal.code == "ledger-rollback"  # remembered
    recover(ward.hospital(), Told("IT", (), False, [unknown]))
    with ward.hospital().ledger() as ledger:
        ledger.check_head(known["known_head"], known["known_studies"])


def test_the_studies_the_server_knows_must_be_signed(ward: Ward) -> None:
    study = ward.study()
    ward.approve(study)
    server = ward.server()
    known = server.seen(ward.ask(study, 1).head, study)
    assert ward.code(ward.ask(study, 2, **known | {"known_studies": ()})) == "message-invalid"


def test_a_study_whose_approval_was_taken_back_is_charged(ward: Ward) -> None:
    study, gone = ward.study(), ward.study(privacy={"epsilon": 2.0})
    ward.approve(study)
    server = ward.server()
    head = ward.ask(study, 1).head
    for name in ("ledger.sqlite", "ledger.anchor"):
        shutil.copy(ward.home / name, ward.home / f"{name}.backup")
    ward.approve(gone)
    ward.policy["max_epsilon_per_patient"] = 50
    head = ward.ask(gone, 1, **server.seen(head)).head
    ward.hospital().approvals.revoke(gone.digest)
    for name in ("ledger.sqlite", "ledger.anchor"):
        shutil.copy(ward.home / f"{name}.backup", ward.home / name)
    # A coordinator that lists no study: the site knows by itself.
    assert ward.ask(study, 2, **server.seen(head)).refusal.code == "ledger-rollback"
    recover(ward.hospital(), Told("IT", (), False))
    assert charged(ward, gone) == (4, 5)


def test_a_lost_ledger_is_replaced_only_with_the_plans_the_server_named(ward: Ward) -> None:
    old, lost, known = trained_after_the_backup(ward)
    assert old.ask(ward.study(), 2, **known).refusal.code == "ledger-rollback"
    spoil(old, "overwritten")
    with pytest.raises(LedgerError, match=r"study\.json"):
        recover(old.hospital(), Told("IT", (), False))
    assert recover(old.hospital(), Told("IT", (), False, [lost])).outcome == "replaced"
    assert charged(old, lost) == (4, 5)
    with old.hospital().ledger() as ledger:
        ledger.check_head(known["known_head"], known["known_studies"])


def test_a_study_no_noise_can_keep_does_not_stop_recovery(ward: Ward) -> None:
    impossible = ward.study(
        privacy={"epsilon": 0.1, "statistics_noise": 1.0},
        training={"loss": {"name": "class-balanced"}},
    )
    ward.approve(impossible)
    ward.approve(study := ward.study())
    ward.ask(study, 1)
    spoil(ward, "anchor")
    assert recover(ward.hospital(), Told("IT", (), False)).outcome == "replaced"
    assert charged(ward, impossible) == (0, 0)
