"""A hospital's name may be in any script, and has one form."""

from __future__ import annotations

import unicodedata

import pytest

from shared.names import same_name, valid_name


@pytest.mark.parametrize(
    "name",
    [
        "Hospital 1",
        "Universitätsspital Zürich",
        "東京大学病院",
        "Α΄ Κλινική",
        "مستشفى",
        "St. Mary's (A&E)",
    ],
)
def test_names_of_any_script_are_taken(name: str) -> None:
    assert valid_name(name) == unicodedata.normalize("NFC", name)


def test_a_name_has_one_form() -> None:
    assert valid_name("Zu\u0308rich") == "Zürich"
    assert same_name("ZÜRICH", "zu\u0308rich")
    assert same_name("Ward\uff11", "ward1")
    assert not same_name("Zurich", "Zürich")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " North",
        "North ",
        "a\nb",
        "a\x1b[31mb",
        "a\u202eb",
        "a\u200bb",
        "a\u00a0b",
        "-n",
        "x" * 65,
    ],
)
def test_what_nobody_sees_or_everybody_misreads_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        valid_name(name)
