"""A cohort from a table, and one of findings: who is used, on which side, and what is told."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from split_kit import KEY, fix_split

from client.data.cohort import load_cohort
from client.data.patients import Cohort
from client.data.reasons import Reason
from client.data.report import describe_report
from client.data.split import is_held_out
from client.judge import check_size, doubts
from client.site import DataSource, Policy, Server, Site, SiteConfig
from client.vault import Vault
from shared.errors import DataError
from shared.study import Study

MakeSite = Callable[..., Site]
COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "sex", "categories": ["f", "m"]},
]


def study(missing: str = "indicator", **changes: Any) -> Study:
    values = {
        "name": "t",
        "task": {"classes": ["healthy", "ill"]},
        "table": {"columns": COLUMNS, "missing": missing},
        "model": {"name": "table"},
        "data": {"held_out": 0.3},
    }
    return Study.model_validate(values | changes)


ROWS = [
    (f"P{n}", "ill" if n % 3 else "healthy", "" if n % 5 == 0 else str(n % 100), "fm"[n % 2])
    for n in range(40)
]


def text(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(["patient,label,age,sex", *map(",".join, rows)]) + "\n"


@pytest.fixture
def site_with(tmp_path: Path) -> MakeSite:
    """Return a builder of a site that has a table and no images."""

    def build(table: str, **settings: Any) -> Site:
        (tmp_path / "patients.csv").write_text(table)
        policy = settings.pop(
            "policy", Policy(min_patients=1, min_patients_per_class=0, max_set_aside=1)
        )
        config = SiteConfig(
            name="A",
            server=Server(address="localhost:1"),
            data=DataSource.model_validate({"table": tmp_path / "patients.csv", **settings}),
            policy=policy,
        )
        return Site(fix_split(tmp_path / "home"), config)

    return build


def by_patient(cohort: Cohort) -> dict[str, tuple[str, int, list[float]]]:
    """Each pseudonym's side, label and values, a missing one as 9."""
    found = {}
    for side in ("train", "held_out"):
        patients = getattr(cohort, side)
        assert patients.images.dtype == torch.float32
        assert torch.equal(patients.image_patient, torch.arange(len(patients)))
        assert list(patients.patients) == sorted(patients.patients)
        for name, label, row in zip(
            patients.patients, patients.labels, patients.images, strict=True
        ):
            found[name] = side, int(label), row.nan_to_num(9).tolist()
    return found


def test_every_patient_is_on_the_side_of_the_id_with_label_and_values(site_with: MakeSite) -> None:
    site = site_with(text(ROWS))
    found = by_patient(load_cohort(site, study()))
    vault = Vault.open(site.vault_key)
    assert len(found) == 40
    for n, (patient, _, age, _) in enumerate(ROWS):
        side, label, values = found[vault.pseudonym(patient)]
        assert side == ("held_out" if is_held_out(KEY, patient, 0.3) else "train")
        assert label == (n % 3 > 0)
        assert values == pytest.approx([int(age) / 50 - 1 if age else 9, n % 2])
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert by_patient(load_cohort(site_with(text(shuffled)), study())) == found


def test_dropping_leaves_incomplete_patients_out_of_training_only(site_with: MakeSite) -> None:
    site = site_with(text(ROWS))
    cohort = load_cohort(site, study("drop"))
    whole = by_patient(load_cohort(site, study()))
    expected = {
        name: facts for name, facts in whole.items() if facts[0] == "held_out" or 9 not in facts[2]
    }
    assert by_patient(cohort) == expected
    assert any(9 in facts[2] for facts in expected.values())
    report = cohort.report
    assert report.left_out == 40 - len(expected) > 0
    assert (report.train_patients, report.held_out_patients) == (
        len(cohort.train),
        len(cohort.held_out),
    )
    assert sum(report.train.values()) == report.train_patients
    assert (report.labelled, report.lost) == (40, 0)
    lines = describe_report(report)
    assert f"  {report.left_out} patients with missing values are left out" in "\n".join(lines)


def test_the_report_counts_by_reason_and_column_and_names_lines_not_patients(
    site_with: MakeSite,
) -> None:
    more = [
        ("P1", "healthy", "1", "m"),
        ("Q1", "", "1", "m"),
        ("Q2", "ill", "200", "x"),
        ("Q2", "ill", "200", "x"),
    ]
    site = site_with(text(ROWS + more))
    report = load_cohort(site, study()).report
    assert report.counts == {
        Reason.CONTRADICTORY_LABELS: 2,
        Reason.INCOMPLETE_ROW: 1,
        Reason.DUPLICATE_ROW: 1,
    }
    age, sex = report.columns
    assert (age.missing, age.unclear, age.outside) == (8, 0, 2)
    assert (sex.missing, sex.unclear, sex.outside) == (2, 2, 0)
    written = "\n".join(describe_report(report))
    assert "40 rows of 40 patients can be used; 3 of 43 labelled rows are set aside" in written
    assert "line 3, line 42" in written
    assert "column sex: missing in 2 of 44 rows, 2 of them not understood (such as 'x')" in written
    assert "Q2" not in written + report.model_dump_json()
    paths = sorted(site.reports.iterdir())
    assert json.loads(paths[0].read_text())["columns"][0]["name"] == "age"


def said(site: Site, plan: Study) -> dict[str, str]:
    """What speaks against approving the study here, by condition."""
    found = doubts(load_cohort(site, plan), plan, site.config.policy)
    return {doubt.condition: doubt.what for doubt in found}


def test_too_few_or_none_are_told_as_for_images(site_with: MakeSite) -> None:
    nobody = load_cohort(site_with(text([("P", "martian", "1", "m")] * 3)), study())
    why = r"no row can be used; most often: class-not-in-study, .* found: 'martian' \(3 x\); the "
    with pytest.raises(DataError, match=f"{why}study has 'healthy', 'ill'"):
        check_size(study(), 20, nobody)
    policy = Policy(min_patients=40, min_patients_per_class=15)
    few = said(site_with(text(ROWS), policy=policy), study())
    assert re.fullmatch(r"\d+ patients to train on; .* is 40", few["min-patients"])
    assert "patients of class 'healthy' to train on" in few["min-patients-per-class"]
    lost = [(f"Q{n}", "martian", "1", "m") for n in range(40)]
    policy = Policy(min_patients=1, min_patients_per_class=0, max_set_aside=0.4)
    aside = said(site_with(text(ROWS + lost), policy=policy), study())
    assert aside == {
        "set-aside": "40 of 80 labelled rows are set aside; policy.max_set_aside is 40%"
    }


def test_a_column_in_another_unit_or_spelling_is_told(site_with: MakeSite) -> None:
    strange = [(patient, label, "1900", sex) for patient, label, _, sex in ROWS]
    policy = Policy(min_patients=1, min_patients_per_class=0)
    told = said(site_with(text(strange), policy=policy), study())
    assert told.keys() == {"values"}
    assert "40 of 40 rows of column age are not understood or outside" in told["values"]


def test_a_site_without_the_studys_kind_of_data_says_so(
    site_with: MakeSite, make_site: MakeSite
) -> None:
    of_images = Study.model_validate({"name": "i", "task": {"classes": ["a", "b"]}})
    with pytest.raises(DataError, match=r"of images, and this site names none \(data.images"):
        load_cohort(site_with(text(ROWS)), of_images)
    with pytest.raises(DataError, match=r"of a table, and this site names none \(data.table"):
        load_cohort(make_site({}, "file,label\n"), study())
    for wrong in ({}, {"images": "i"}, {"labels": "l"}, {"table": "t", "labels": "l"}):
        with pytest.raises(ValidationError, match="images and labels"):
            DataSource.model_validate(wrong)


FINDINGS = {
    "name": "f",
    "task": {"classes": ["fluid", "air"], "findings": True},
    "data": {"held_out": 0.3},
}


def test_findings_of_a_patients_rows_are_put_together(
    make_site: MakeSite, dicom: Callable[..., bytes], ramp: Any
) -> None:
    plan = Study.model_validate(FINDINGS | {"input": {"size": 28, "window": "full"}})
    rows = [
        ("a.dcm", "A", "1", ""),
        ("b.dcm", "A", "", "0"),  # what one row leaves open, another says
        ("c.dcm", "B", "1", "1"),
        ("d.dcm", "B", "0", "1"),  # contradicts the row before
        ("e.dcm", "C", "", "unsure"),
        ("f.dcm", "D", "0", "?"),
        ("g.dcm", "", "0", "1"),  # the patient is in the image
        ("h.dcm", "E", "", ""),
        ("i.dcm", "E", "", "1"),
    ]
    table = "\n".join(["file,patient,Erguss,air", *map(",".join, rows)])
    files = {row[0]: dicom(ramp, PatientID="G") for row in rows}
    site = make_site(files, table, columns={"findings": {"fluid": "Erguss"}})
    cohort = load_cohort(site, plan)
    vault = Vault.open(site.vault_key)
    found = {}
    for side in (cohort.train, cohort.held_out):
        assert side.labels.shape == (len(side), 2)
        found |= dict(zip(side.patients, map(tuple, side.labels.tolist()), strict=True))
    expected = {"A": (1, 0), "D": (0, -1), "G": (0, 1), "E": (-1, 1)}
    assert found == {vault.pseudonym(name): labels for name, labels in expected.items()}
    assert cohort.report.counts == {Reason.CONTRADICTORY_LABELS: 2, Reason.NO_KNOWN_FINDING: 1}
    told = cohort.report
    both = {name: told.train[name] + told.held_out[name] for name in told.train}
    assert both == {"fluid": 1, "no fluid": 2, "air": 2, "no air": 1}
    assert told.train_patients + told.held_out_patients == 4


def test_a_finding_nobody_is_known_for_is_no_reason_to_refuse_but_a_rare_one_is(
    site_with: MakeSite,
) -> None:
    plan = Study.model_validate(
        FINDINGS | {"table": {"columns": COLUMNS}, "model": {"name": "table"}}
    )
    rows = [f"P{n},{n % 2},,50,m" for n in range(40)]
    policy = Policy(min_patients=1, min_patients_per_class=5)
    header = "patient,fluid,air,age,sex\n"
    cohort = load_cohort(site_with(header + "\n".join(rows), policy=policy), plan)
    assert set(cohort.train.labels[:, 1].tolist()) == {-1}
    trained = next(f"P{n}," for n in range(40) if not is_held_out(KEY, f"P{n}", 0.3))
    rare = [row.replace(",,", ",1,") if row.startswith(trained) else row for row in rows]
    told = said(site_with(header + "\n".join(rare), policy=policy), plan)
    assert "1 patients of class 'air' to train on" in told["min-patients-per-class"]
