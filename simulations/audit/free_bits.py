"""Whether anything beside the noise differs between data sets that differ by one patient."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from client.hospital import Hospital, open_hospital
from client.rounds import handle
from client.vault import write_atomic
from shared.models import initial_weights
from shared.protocol import Reply, Request
from shared.study import Study, parse_study
from shared.transport import Weights

PATIENTS, ROUNDS = 40, 2
BUDGET_OF_ONE = 1.5  # of two studies that cost 1 each
NOISED = ("counts", "classes", "columns")  # keys of a reply whose numbers are noised
SITE = """
name = "audited"
server.address = "localhost:1"
data.table = "patients.csv"
[policy]
max_epsilon_per_study = 100
max_epsilon_per_patient = {budget}
min_patients = {least}
"""

Rows = dict[str, str]
"""A table: each patient's row without the id, by id."""


@dataclass(frozen=True)
class Case:
    """A pair of data sets that differ by one patient, and what happens at both.

    Attributes:
        name: What is special about the patient.
        patient: The id.
        rows: The table with the patient.
        budget: Epsilon a patient may spend in life.
        least: The policy's fewest patients.
        earlier: Patients of an earlier study, whom it charges, in both data sets.
        opts_out: Before which round the patient opts out; 0: never.
        stays: Whether the other data set has the patient too, who does not opt out there; else
            the patient has no row there, and opts out all the same.
        joins: Before which round the patient's row appears; 0: it is there from the start.
    """

    name: str
    patient: str
    rows: Rows
    budget: float = 100.0
    least: int = 1
    earlier: tuple[str, ...] = ()
    opts_out: int = 0
    stays: bool = False
    joins: int = 0


@dataclass(frozen=True)
class FreeBits:
    """What told two data sets apart without looking at a noised number.

    Attributes:
        pairs: Names of the pairs that were tried.
        told_apart: The first difference of each pair that shows one, by name of the pair.
    """

    pairs: tuple[str, ...]
    told_apart: dict[str, str]


def free_bits() -> FreeBits:
    """Run a whole study at hospitals that differ by one patient, and compare all they send.

    Every message is compared as text in which the noised numbers are replaced by how many there
    are, and what is keyed by the site by a word. Nothing random is left, so sound code is never
    accused.
    """
    differences = {case.name: difference(case) for case in cases()}
    told_apart = {name: said for name, said in differences.items() if said}
    return FreeBits(tuple(differences), told_apart)


def cases() -> Iterator[Case]:
    """Yield every way in which one patient could matter that is known to us."""
    rows = {f"p{n:03d}": _row(n) for n in range(PATIENTS)}
    with _home(Case("", "", rows)) as hospital:
        hospital.approvals.open_split_key()
        cohort = hospital.load_cohort(hospital.site, _study())
        train, held_out = (
            [cohort.names[patient] for patient in side.patients]
            for side in (cohort.train, cohort.held_out)
        )
    one, other = train[0], held_out[0]

    def only(*patients: str) -> Rows:
        return {patient: rows[patient] for patient in patients}

    yield Case("one of many to train on", one, rows)
    yield Case("one of many held out", other, rows)
    yield Case("the only one to train on", one, only(one, *held_out))
    yield Case("the only one held out", other, only(other, *train))
    ill = {patient: row.replace("healthy", "ill") for patient, row in rows.items()}
    yield Case("the only one of a class", one, ill | {one: "healthy,0.5,left"})
    yield Case("one as the policy's fewest", one, rows, least=len(train))
    yield Case("one whose class nobody knows", one, rows | {one: "unheard,0.5,left"})
    yield Case("one whose value nobody understands", one, rows | {one: "ill,much,left"})
    yield Case("one whose category nobody listed", one, rows | {one: "ill,0.5,middle"})
    yield Case("one without budget left", one, rows, budget=BUDGET_OF_ONE, earlier=(one, other))
    yield Case(
        "one held out without budget left", other, rows, budget=BUDGET_OF_ONE, earlier=(one, other)
    )
    for number in (1, 2, ROUNDS + 1):
        yield Case(f"one who opts out before round {number}", one, rows, opts_out=number)
        for name, patient in (("one", one), ("one held out", other)):
            stays = Case(f"{name} who opts out before round {number} or stays", patient, rows)
            yield replace(stays, opts_out=number, stays=True)
    yield Case("one who comes before round 2", one, rows, joins=2)
    yield Case("one who comes before the closing round", other, rows, joins=ROUNDS + 1)


def _row(number: int) -> str:
    cells = (
        ("healthy", "ill")[number % 2],
        f"{number / PATIENTS:.3f}",
        ("left", "right")[number % 3 % 2],
    )
    return ",".join(cells)


def _study(name: str = "free-bits") -> Study:
    """Return a study that asks for everything a site may send of a table."""
    return parse_study(
        {
            "name": name,
            "task": {"classes": ["healthy", "ill"]},
            "table": {
                "columns": [
                    {"name": "x", "low": 0, "high": 1},
                    {"name": "y", "categories": ["left", "right"]},
                ],
                "missing": "mean",
            },
            "model": {"name": "table", "layers": []},
            "training": {
                "local_steps": 2,
                "sampling_rate": 0.5,
                "loss": {"name": "class-balanced"},
            },
            "privacy": {"epsilon": 1.0, "delta": 1e-5, "spare_rounds": 1},
            "federation": {"rounds": ROUNDS},
        },
        "the study of the audit",
    )


def difference(case: Case) -> str:
    """Return the first difference between what two hospitals of a case send; empty: none."""
    rest = {patient: row for patient, row in case.rows.items() if patient != case.patient}
    other = replace(case, opts_out=0) if case.stays else replace(case, rows=rest)
    pairs = zip(_messages(case), _messages(other), strict=True)
    for number, (one, two) in enumerate(pairs):
        keys = [key for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
        if keys:
            return f"message {number}: {keys[0]} is {one.get(keys[0])} or {two.get(keys[0])}"
    return ""


def _messages(case: Case) -> list[dict[str, str]]:
    """Return what the hospital of one data set sends in a whole study, without what is noised."""
    with _home(case) as hospital:
        if case.earlier:
            rows = {patient: case.rows.get(patient, _row(0)) for patient in case.earlier}
            _write_table(hospital, rows)
            _converse(hospital, _study("earlier"), replace(case, rows=rows, opts_out=0, joins=0))
        return _converse(hospital, _study(), case)


def _converse(hospital: Hospital, study: Study, case: Case) -> list[dict[str, str]]:
    """Describe, train and evaluate; each question twice, so that repeats are compared as well."""
    hospital.approvals.approve_study(study, "the audit", PATIENTS)
    sent, statistics = [], None
    for number in range(ROUNDS + 2):
        absent = {case.patient} if number < case.joins else set()
        _write_table(hospital, {p: row for p, row in case.rows.items() if p not in absent})
        if case.opts_out and number == case.opts_out:
            with hospital.ledger() as ledger, ledger.locked():
                ledger.opt_out(hospital.vault.pseudonym(case.patient))
        for attempt in range(2):
            task = ("describe", *["train"] * ROUNDS, "evaluate")[number]
            asked = Request.model_validate(
                {
                    "task": task,
                    "run": "audit",
                    "study_digest": study.digest,
                    "study": study.canonical(),
                    "round": number,
                    "attempt": attempt,
                    "statistics": statistics,
                }
            )
            reply, update = handle(hospital, asked, initial_weights(study))
            statistics = statistics or reply.statistics
            sent.append(_outside_the_noise(reply, update))
    return sent


def _outside_the_noise(reply: Reply, update: Weights) -> dict[str, str]:
    """Return a message's parts as text: numbers that are noised by how many, hashes by a word."""

    def masked(key: str, value: Any) -> Any:
        if key in NOISED and not isinstance(value, dict):
            return _shape(value)
        if isinstance(value, dict):
            return {inner: masked(inner, part) for inner, part in value.items()}
        return "keyed" if key == "hash" else value

    told = masked("", json.loads(reply.model_dump_json()))
    arrays = {name: f"{array.dtype} {array.shape}" for name, array in sorted(update.items())}
    return {key: json.dumps(value) for key, value in (told | {"update": arrays}).items()}


def _shape(numbers: Any) -> Any:
    return [_shape(n) for n in numbers] if isinstance(numbers, list) else "a number"


@contextmanager
def _home(case: Case) -> Iterator[Hospital]:
    """Found a hospital; its keys are the same each time, so that both data sets are split alike."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "site.toml").write_text(SITE.format(budget=case.budget, least=case.least))
        for name in ("vault.key", "split.key"):
            write_atomic(home / name, bytes(range(32)))
        hospital = open_hospital(home)
        _write_table(hospital, case.rows)
        yield hospital


def _write_table(hospital: Hospital, rows: Rows) -> None:
    lines = ["patient,label,x,y", *(f"{patient},{row}" for patient, row in rows.items())]
    (hospital.site.home / "patients.csv").write_text("\n".join(lines) + "\n")
