"""The labels table: what hospitals export, and anything else."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.csv_file import LARGEST_TABLE
from client.data.labels import Row, parse_labels, read_labels
from client.site import Columns, DataSource
from shared.errors import DataError

DATA = DataSource(images="images", labels="t.csv")


def parsed(text: str | bytes) -> tuple[Row, ...]:
    return parse_labels(text.encode() if isinstance(text, str) else text, DATA, "t.csv").rows


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
    data = DATA.model_copy(update={"columns": columns})
    text = "Datei;Fall;Befund;label\na.dcm;7;krank;x\n"
    assert parse_labels(text.encode(), data, "t").rows == (Row(2, "a.dcm", "7", "krank"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no columns 'file' and 'label'"),
        (b"a.dcm,Meier,1\n", "no columns 'file' and 'label'"),
        (b"file,patient\na.dcm,1\n", "no columns 'label'"),
        (b"file,label,label\na.dcm,1,2\n", "two columns 'label'"),
        ("file,label\na,1\nMüller,1".encode("latin-1"), "not UTF-8 text (t.csv, line 3)"),
        ("file,label\nMeier,1".encode("utf-16"), "is UTF-16"),
        (b'file,label\na.dcm,0\n"Meier,1\nb.dcm,1\n', "quotation mark in line 3"),
        (b'file,label\n"Meier"x,1\n', "quotation mark in line 2"),
        (b"file,label\n" + b"x" * 200_000, "line 2 of the labels table is not valid CSV"),
        (b"file,label\na.dcm,1\nMeier,1,5\n", "line 3 of the labels table has more cells"),
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
        read_labels(tmp_path / "no.csv", DATA)
    assert "cannot read the labels table: No such file" in str(error.value)
    assert "data.labels" in str(error.value)
    with pytest.raises(DataError, match="Is a directory"):
        read_labels(tmp_path, DATA)


cells = st.text(
    st.characters(exclude_categories=["Cs", "Cf"], exclude_characters="\0\r\n="), max_size=20
)


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


ROWS = [f"a{n:02d}.dcm,{4700 + n},{'ill' if n % 2 else 'healthy'},," for n in range(24)]


def table(changes: dict[int, str]) -> str:
    """Return a table of 24 rows and two columns of comments, with other ends of some rows."""
    rows = [row[:-1] + changes[n] if n in changes else row for n, row in enumerate(ROWS)]
    return "\n".join(["file,patient,label,comment,more", *rows]) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {10: 'x,"unclear'},
        {10: 'x,"unclear', 18: 'x,says no"'},
        {10: 'x,"unclear', 11: 'x,says no"'},
        {10: '"unclear, says', 18: 'no"'},
        {23: 'x,"unclear'},
    ],
)
def test_a_stray_quotation_mark_swallows_no_row_and_its_line_is_named(changes):
    with pytest.raises(DataError, match=f"line {min(changes) + 2} of the labels table"):
        parsed(table(changes))


def test_a_comment_over_several_lines_is_one_cell():
    rows = parsed(table({10: '"fever\n\ncough, pain"'}))
    assert [row.file for row in rows] == [f"a{n:02d}.dcm" for n in range(24)]
    assert rows[11].line == 15


def test_quotation_marks_around_names_tell_no_other_separator():
    assert parsed('"file";"label"\n"a,b.dcm";"1"\n') == (Row(2, "a,b.dcm", "", "1"),)


@pytest.mark.parametrize(
    "said", ['"=""4711"""', "4711\u200b", "\ufeff4711", "4711\u00a0", "47\u00ad11"]
)
def test_what_the_eye_does_not_see_is_no_part_of_a_cell(said):
    assert parsed(f"file,patient,label\na.dcm,{said},1\n")[0].patient == "4711"


def test_a_table_of_excel_on_windows_is_read_if_the_site_says_so():
    data = DATA.model_copy(update={"encoding": "cp1252"})
    for encoding in ("cp1252", "utf-8-sig"):
        content = "file,label\nMüller–1.dcm,1".encode(encoding)
        assert parse_labels(content, data, "t").rows == (Row(2, "Müller–1.dcm", "", "1"),)
    with pytest.raises(DataError, match=r"data\.encoding = 'cp1252'"):
        parsed("file,label\nMüller,1".encode("cp1252"))


def test_what_is_said_of_findings_and_not_understood_is_counted_and_shown():
    cells = ["1", "0", "", "?", "True", "yes", "ja", "ja", "1,0", "1.0"]
    text = "file;patient;edema;mass\n" + "".join(
        f"{n}.dcm;{n};{cell};\n" for n, cell in enumerate(cells)
    )
    found = parse_labels(text.encode(), DATA, "t", ("edema", "mass", "nodule"))
    edema, mass, nodule = found.findings
    assert (edema.rows, edema.missing, edema.unclear) == (10, 7, 5)
    assert edema.examples == ("ja", "True", "yes")
    assert (mass.column, mass.missing, mass.unclear) == ("mass", 10, 0)
    assert (nodule.column, nodule.missing) == ("", 10)
    mapped = DATA.model_copy(update={"values": {"ja": "1", "yes": "1", "True": "1", "1,0": "1"}})
    edema = parse_labels(text.encode(), mapped, "t", ("edema", "mass")).findings[0]
    assert (edema.missing, edema.unclear) == (2, 0)


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
