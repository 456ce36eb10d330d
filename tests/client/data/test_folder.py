"""What a name in the labels table may reach, and what it may not."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.folder import (
    Folder,
    ImageFile,
    content_digest,
    list_folder,
    looks_like_dicom,
    open_regular,
)
from client.data.reasons import Reason
from shared.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Folder:
    inside = tmp_path / "images"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.dcm").write_bytes(b"a")
    (inside / "deep" / "b.dcm").write_bytes(b"bb")
    (tmp_path / "secret.dcm").write_bytes(b"s")
    (tmp_path / "images-too").mkdir()
    (tmp_path / "images-too" / "c.dcm").write_bytes(b"c")
    (inside / "inner.dcm").symlink_to(inside / "a.dcm")
    (inside / "outer.dcm").symlink_to(tmp_path / "secret.dcm")
    (inside / "elsewhere").symlink_to(tmp_path)
    (inside / "loop.dcm").symlink_to(inside / "loop.dcm")
    os.mkfifo(inside / "pipe.dcm")
    return list_folder(inside)


def test_regular_files_are_listed_and_links_are_not_followed(folder):
    names = {folder.relative(path): file.size for path, file in folder.files.items()}
    assert names == {"a.dcm": 1, "deep/b.dcm": 2}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.dcm", "a.dcm"),
        ("./deep/../a.dcm", "a.dcm"),
        ("deep\\b.dcm", "deep/b.dcm"),
        ("inner.dcm", "a.dcm"),
    ],
)
def test_names_inside_are_found(folder, name, found):
    file = folder.locate(name)
    assert isinstance(file, ImageFile)
    assert folder.relative(file.path) == found
    assert folder.locate(file.path) == file


@pytest.mark.parametrize(
    "name",
    [
        "../secret.dcm",
        "deep/../../secret.dcm",
        "..\\secret.dcm",
        "/etc/passwd",
        "../images-too/c.dcm",
        "outer.dcm",
        "elsewhere/secret.dcm",
        "..",
        ".",
    ],
)
def test_names_that_lead_out_are_refused(folder, name):
    assert folder.locate(name) == Reason.OUTSIDE_FOLDER


@pytest.mark.parametrize("name", ["no.dcm", "deep", "loop.dcm", "pipe.dcm", "a\0b", "x" * 5000])
def test_names_of_no_regular_file_are_missing(folder, name):
    assert folder.locate(name) == Reason.MISSING_FILE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.lists(st.sampled_from(["..", "/", "\\", "a.dcm", "deep", "~"])).map("".join))
def test_no_name_ever_reaches_outside(folder, name):
    found = folder.locate(name)
    if isinstance(found, ImageFile):
        assert os.path.realpath(found.path).startswith(folder.root + os.sep)


def test_a_folder_that_is_not_there_or_not_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, said in (("no", "No such file"), ("file", "Not a directory")):
        with pytest.raises(DataError) as error:
            list_folder(tmp_path / name)
        assert str(error.value).startswith(f"cannot read the images folder: {said}")
        assert "data.images" in str(error.value)


def test_only_regular_files_are_opened(folder):
    for name in ("pipe.dcm", "inner.dcm", "deep"):
        with pytest.raises(OSError, match=r".+"):
            open_regular(os.path.join(folder.root, name))
    os.close(open_regular(os.path.join(folder.root, "a.dcm")))


def test_dicom_files_are_told_by_their_preamble(tmp_path, dicom, ramp):
    (tmp_path / "x").write_bytes(dicom(ramp))
    (tmp_path / "DICOMDIR").write_bytes(dicom(ramp))
    (tmp_path / "notes.txt").write_text("DICM")
    assert looks_like_dicom(str(tmp_path / "x"))
    assert not looks_like_dicom(str(tmp_path / "DICOMDIR"))
    assert not looks_like_dicom(str(tmp_path / "notes.txt"))
    assert not looks_like_dicom(str(tmp_path / "absent"))


def test_content_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    expected = hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert content_digest(str(tmp_path / "x")) == expected


def named(tmp_path, *names: str) -> Folder:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return list_folder(tmp_path)


DECOMPOSED = "M\u0075\u0308ller.dcm"


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        (DECOMPOSED, "M\u00fcller.dcm"),
        ("M\u00fcller.dcm", DECOMPOSED),
        ("deep/img01.dcm", "DEEP\\IMG01.DCM"),
        ("Stra\u00dfe.dcm", "STRASSE.DCM"),
        ("a\u200bb.dcm", "ab.dcm"),
    ],
)
def test_a_name_in_other_capitals_or_another_unicode_form_is_found(tmp_path, on_disk, in_table):
    found = named(tmp_path, on_disk, "other.dcm").locate(in_table)
    assert isinstance(found, ImageFile)
    assert found.path == str(tmp_path / on_disk)


def test_a_name_that_several_files_may_have_is_said_to_be_so(tmp_path):
    folder = named(tmp_path, "a.dcm", "A.dcm")
    assert folder.locate("A.DCM") == Reason.AMBIGUOUS_NAME
    assert folder.locate("A.dcm").path == str(tmp_path / "A.dcm")
    assert folder.locate("b.dcm") == Reason.MISSING_FILE


def test_old_files_without_preamble_look_like_dicom_and_others_do_not(tmp_path):
    for name, content, found in (
        ("group 2", b"\x02\0\0\0UL\x04\0", True),
        ("implicit", b"\x08\0\x05\0\x0a\0\0\0", True),
        ("big-endian", b"\0\x08\0\x05CS\0\x0a", True),
        ("text", b"file,patient,label\n", False),
        ("zeros", bytes(200), False),
        ("short", b"\x08\0", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert looks_like_dicom(str(tmp_path / name)) is found, name
