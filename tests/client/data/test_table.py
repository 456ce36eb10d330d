"""The table of patients: what hospitals export, in their words and units, and anything else."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client.data.csv_file import LARGEST_TABLE
from client.data.reasons import Reason
from client.data.table import Patients, parse_table
from client.site import DataSource
from shared.errors import DataError
from shared.study import Study

COLUMNS = [
    {"name": "age", "low": 0, "high": 100},
    {"name": "sex", "categories": ["female", "male"]},
]
HEADER = "patient,label,age,sex\n"


def study(columns: list[dict[str, Any]] = COLUMNS, **task: Any) -> Study:
    values = {
        "name": "t",
        "task": {"classes": ["healthy", "ill"]} | task,
        "table": {"columns": columns},
        "model": {"name": "table"},
    }
    return Study.model_validate(values)


def parsed(text: str | bytes, plan: Study | None = None, **source: Any) -> Patients:
    content = text.encode() if isinstance(text, str) else text
    settings = DataSource.model_validate({"table": "t.csv"} | source)
    return parse_table(content, settings, plan or study(), "t.csv")


def reasons(patients: Patients) -> list[Reason | None]:
    return [row.reason for row in patients.rows]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(delimiter: str, mark: str, end: str) -> None:
    lines = [
        "sex,age, patient ,note,label",
        'female,25,P1,"x, y",ill',
        "",
        " male , 75 ,P2,,healthy",
    ]
    text = mark + end.join(line.replace(",", delimiter) for line in lines)
    first, second = parsed(text).rows
    assert (first.line, first.patient, first.target, first.values) == (2, "P1", (1,), (-0.5, 0.0))
    assert (second.line, second.patient, second.target, second.values) == (
        4,
        "P2",
        (0,),
        (0.5, 1.0),
    )
    assert first.reason is second.reason is None


@pytest.mark.parametrize(
    ("cell", "value", "unclear", "outside"),
    [
        ("50", 0.0, 0, 0),
        ("+2.5e1", -0.5, 0, 0),
        (".5", -0.99, 0, 0),
        ("100.", 1.0, 0, 0),
        ("-3", -1.0, 0, 1),
        ("1e300", 1.0, 0, 1),
        ("", 9, 0, 0),
        ("?", 9, 0, 0),
        ("NaN", 9, 0, 0),
        ("n/a", 9, 0, 0),
        ("fifty", 9, 1, 0),
        ("inf", 9, 1, 0),
        ("1e999", 9, 1, 0),
        ("1_0", 9, 1, 0),
        ("٥", 9, 1, 0),
        ("0x10", 9, 1, 0),
        ("1,5", 9, 1, 0),
        ("5 years", 9, 1, 0),
    ],
)
def test_a_number_is_scaled_clipped_or_missing_and_counted(
    cell: str, value: float, unclear: int, outside: int
) -> None:
    found = parsed(f'{HEADER}P,ill,"{cell}",male\n')
    assert np.nan_to_num(found.rows[0].values[0], nan=9.0) == pytest.approx(value)
    age = found.columns[0]
    assert (age.missing, age.unclear, age.outside) == (value == 9, unclear, outside)


def test_a_category_is_its_index_and_an_unknown_one_is_missing_and_counted() -> None:
    found = parsed(HEADER + "A,ill,1,male\nB,ill,1,female\nC,ill,1,robot\nD,ill,1,\nE,ill,1,?\n")
    assert [row.values[1] for row in found.rows[:2]] == [1.0, 0.0]
    assert all(math.isnan(row.values[1]) for row in found.rows[2:])
    assert (found.columns[1].missing, found.columns[1].unclear) == (3, 1)


def test_a_number_that_stands_for_a_category_or_for_nothing_is_known_by_its_value() -> None:
    columns = [COLUMNS[0], {"name": "sex", "categories": ["0", "1"]}]
    text = HEADER + "A,ill,0.0,1.0\nB,ill,0,0\nC,ill,50,1.5\n"
    found = parsed(text, study(columns), features={"age": {"missing": ["0"]}})
    ages, sexes = zip(*(row.values for row in found.rows), strict=True)
    assert [math.isnan(age) for age in ages] == [True, True, False]
    assert (sexes[:2], math.isnan(sexes[2])) == ((1.0, 0.0), True)
    assert found.columns[1].examples == ("1.5",)


def test_what_is_said_of_findings_and_not_understood_is_counted() -> None:
    plan = study(findings=True, classes=["edema", "mass"])
    found = parsed("patient,edema,mass,age\nA,1,ja,5\nB,0,True,5\nC,,ja,5\n", plan)
    edema, mass = found.findings
    assert (edema.missing, edema.unclear) == (1, 0)
    assert (mass.missing, mass.unclear, mass.examples) == (3, 3, ("ja", "True"))


def test_a_category_may_be_called_like_a_missing_value() -> None:
    columns = [COLUMNS[0], {"name": "sex", "categories": ["na", "male"]}]
    found = parsed(HEADER + "A,ill,1,na\n", study(columns))
    assert found.rows[0].values[1] == 0.0


def test_names_units_and_words_are_the_hospitals() -> None:
    text = "Fall;Befund;Alter;Geschlecht\n7;krank;2,5;w\n8;gesund;-1;m\n9;krank;1.5;d\n"
    found = parsed(
        text,
        columns={"patient": "Fall", "label": "Befund"},
        values={"krank": "ill", "gesund": "healthy"},
        decimal=",",
        features={
            "age": {"column": "Alter", "scale": 10, "missing": ["-1"]},
            "sex": {"column": "Geschlecht", "values": {"w": "female", "m": "male"}},
        },
    )
    assert [row.target for row in found.rows] == [(1,), (0,), (1,)]
    assert [row.values for row in found.rows[:1]] == [(-0.5, 0.0)]
    assert math.isnan(found.rows[1].values[0])
    assert found.rows[1].values[1] == 1.0
    assert (found.columns[0].missing, found.columns[0].unclear) == (2, 1)  # 1.5 is no number here
    assert found.columns[1].unclear == 1
    assert found.columns[0].column == "Alter"


def test_a_column_no_one_recorded_counts_as_missing_and_is_told() -> None:
    found = parsed("patient,label,age\nP,ill,50\nQ,healthy,60\n")
    assert all(math.isnan(row.values[1]) for row in found.rows)
    assert (found.columns[1].column, found.columns[1].missing) == ("", 2)
    assert found.columns[0].column == "age"


@pytest.mark.parametrize(
    ("text", "source", "said"),
    [
        ("", {}, "no columns 'patient' and 'label'"),
        ("patient,age\nMeier,50\n", {}, "no columns 'label'"),
        ("patient,label,height\nMeier,ill,50\n", {}, "none of the columns 'age', 'sex'"),
        ("patient,label,age,age\nMeier,ill,1,2\n", {}, "two columns 'age'"),
        (
            "patient,label,age\nMeier,ill,1\n",
            {"features": {"sex": {"column": "gender"}}},
            "no columns 'gender'",
        ),
        (b"patient,label,age\nM\xfcller,ill,1\n", {}, "not UTF-8"),
        ('patient,label,age\n"Meier,ill,1\n', {}, "quotation mark in line 2"),
        (
            "patient,label,age\n" + "x" * 200_000,
            {},
            "line 2 of the table of patients is not valid CSV",
        ),
        ("x" * (LARGEST_TABLE + 1), {}, "larger than 64 MiB"),
    ],
)
def test_what_is_not_a_table_of_patients_is_refused_without_quoting_it(
    text: str | bytes, source: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as error:
        parsed(text, **source)
    assert said in str(error.value)
    assert "Meier" not in str(error.value)


def test_rows_without_patient_or_label_are_set_aside() -> None:
    found = parsed(HEADER + ",ill,1,male\nP,,1,male\nQ,martian,1,male\nR,ill,1,male\n")
    assert reasons(found) == [
        Reason.NO_PATIENT_ID,
        Reason.INCOMPLETE_ROW,
        Reason.CLASS_NOT_IN_STUDY,
        None,
    ]


def test_a_patient_has_one_row_and_one_label() -> None:
    found = parsed(
        HEADER + "same,ill,50,male\nsame,ill,50.0,male\n"
        "half,ill,,male\nhalf,ill,?,male\n"
        "differs,ill,50,male\ndiffers,ill,51,male\n"
        "both,ill,50,male\nboth,healthy,50,male\n"
        "once,ill,50,male\nonce,,50,male\n"
        "alone,ill,50,male\n"
    )
    assert reasons(found) == [
        *(None, Reason.DUPLICATE_ROW),
        *(None, Reason.DUPLICATE_ROW),
        *[Reason.CONFLICTING_ROWS] * 2,
        *[Reason.CONTRADICTORY_LABELS] * 2,
        *(None, Reason.INCOMPLETE_ROW),
        None,
    ]


def test_findings_are_columns_in_which_anything_but_1_and_0_is_unknown() -> None:
    plan = study(classes=["fluid", "air", "stone"], findings=True)
    text = "patient,water,air,age\nP,yes,0,50\nQ,no,,50\nR,,-1.0,50\nS,,1.0,50\n"
    source = {"columns": {"findings": {"fluid": "water"}}, "values": {"yes": "1", "no": "0"}}
    found = parsed(text, plan, **source)
    assert [row.target for row in found.rows] == [
        (1, 0, -1),
        (0, -1, -1),
        (-1, -1, -1),
        (-1, 1, -1),
    ]
    assert reasons(found) == [None, None, Reason.NO_KNOWN_FINDING, None]
    with pytest.raises(DataError, match="no columns 'liquid'"):
        parsed(text, plan, columns={"findings": {"fluid": "liquid"}})
    with pytest.raises(DataError, match="none of the columns 'fluid', 'air', 'stone'"):
        parsed("patient,age\nP,50\n", plan)


cells = st.text(
    st.characters(exclude_categories=["Cs", "Cf"], exclude_characters="\0\r\n="), max_size=12
)
numbers = st.floats(0, 100).map(repr)


@given(st.lists(st.tuples(cells, numbers, st.sampled_from(["female", "male", ""])), max_size=8))
def test_what_csv_writes_comes_back(rows: list[tuple[str, str, str]]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerow(["patient", "label", "age", "sex"])
    writer.writerows([patient, "ill", age, sex] for patient, age, sex in rows)
    found = parsed(stream.getvalue()).rows
    assert [row.patient for row in found] == [patient.strip() for patient, _, _ in rows]
    for row, (_, age, sex) in zip(found, rows, strict=True):
        assert row.values[0] == pytest.approx(float(age) / 50 - 1, abs=1e-9)
        assert math.isnan(row.values[1]) == (sex == "")


fragments = st.sampled_from(
    [b"patient", b"label", b"age", b"ill", b"1e9", b",", b";", b'"', b"\n", b"\r", b"\0", b"\xff"]
)


@given(st.binary(max_size=200) | st.lists(fragments, max_size=40).map(b"".join))
@example(b"P,ill," + b"9" * 131_072 + b",male\n")
@example(b"P,ill," + b"9" * 100_000 + b",male\n")
@example(b"\0,ill,1,\0\n")
def test_any_bytes_are_rows_in_range_or_one_data_error(content: bytes) -> None:
    for prefix in (b"", HEADER.encode(), b"\xef\xbb\xbfpatient;label;age\n"):
        try:
            found = parsed(prefix + content)
        except DataError:
            continue
        usable = [row for row in found.rows if row.reason is None]
        assert len({row.patient for row in usable}) == len(usable)
        for row in found.rows:
            age, sex = row.values
            assert math.isnan(age) or -1 <= age <= 1
            assert math.isnan(sex) or sex in (0.0, 1.0)


def test_a_hundred_thousand_rows_are_read() -> None:
    body = "".join(f"P{i},{('ill', 'healthy')[i % 2]},{i % 101},male\n" for i in range(100_000))
    found = parsed(HEADER + body)
    assert len(found.rows) == 100_000
    assert all(row.reason is None for row in found.rows)
    assert [row.values[0] for row in found.rows[:3]] == pytest.approx([-1, -0.98, -0.96])
