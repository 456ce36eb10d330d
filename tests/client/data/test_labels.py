"""The labels table: what hospitals export, and anything else."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.csv_file import LARGEST_TABLE
from client.data.labels import Row, parse_labels, read_labels
from client.site import Columns
from shared.errors import DataError

COLUMNS = Columns()


def parsed(text: str | bytes) -> tuple[Row, ...]:
    return parse_labels(text.encode() if isinstance(text, str) else text, COLUMNS, "t.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(delimiter, mark, end):
    lines = ["label,age, file ,patient", "1,61,a.dcm,P1", "", '0 , 7 ,"b c.dcm",', ",x"]
    text = mark + end.join(line.replace(",", delimiter) for line in lines)
    assert parsed(text) == (
        Row(2, "a.dcm", "P1", "1"),
        Row(4, "b c.dcm", "", "0"),
        Row(5, "", "", ""),
    )


def test_a_table_without_patients_is_read():
    assert parsed("file,label\na.dcm,1\n") == (Row(2, "a.dcm", "", "1"),)


def test_columns_have_the_sites_names():
    columns = Columns(file="Datei", patient="Fall", label="Befund")
    text = "Datei;Fall;Befund;label\na.dcm;7;krank;x\n"
    assert parse_labels(text.encode(), columns, "t") == (Row(2, "a.dcm", "7", "krank"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no columns 'file' and 'label'"),
        (b"a.dcm,Meier,1\n", "no columns 'file' and 'label'"),
        (b"file,patient\na.dcm,1\n", "no columns 'file' and 'label'"),
        (b"file,label,label\na.dcm,1,2\n", "two columns 'label'"),
        ("file,label\nMüller,1".encode("latin-1"), "not UTF-8"),
        (b'file,label\n"Meier,1\n', "not a valid CSV file"),
        (b"file,label\n" + b"x" * 200_000, "not a valid CSV file"),
        (b"x" * (LARGEST_TABLE + 1), "larger than 64 MiB"),
    ],
)
def test_what_is_not_a_labels_table_is_refused_without_quoting_it(content, said):
    with pytest.raises(DataError) as error:
        parsed(content)
    assert said in str(error.value)
    assert "t.csv" in str(error.value)
    assert "Meier" not in str(error.value)


def test_a_missing_table_is_one_clear_line(tmp_path):
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / "no.csv", COLUMNS)
    assert "cannot read the labels table: No such file" in str(error.value)
    assert "data.labels" in str(error.value)
    with pytest.raises(DataError, match="Is a directory"):
        read_labels(tmp_path, COLUMNS)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)


@given(st.lists(st.tuples(cells, cells, cells), max_size=10))
def test_what_csv_writes_comes_back(rows):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerow(["file", "patient", "label"])
    writer.writerows(rows)
    expected = [
        tuple(cell.strip() for cell in row) for row in rows if any(cell.strip() for cell in row)
    ]
    found = [(row.file, row.patient, row.label) for row in parsed(stream.getvalue())]
    assert found == expected


fragments = st.sampled_from(
    [b"file", b"label", b"patient", b",", b";", b'"', b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf"]
)


@given(st.binary(max_size=200) | st.lists(fragments, max_size=30).map(b"".join))
def test_any_bytes_are_rows_or_one_data_error(content):
    for prefix in (b"", b"file,patient,label\n"):
        try:
            rows = parsed(prefix + content)
        except DataError:
            continue
        assert all(isinstance(row, Row) for row in rows)
