"""Every reason is explained once, with a remedy, and the hospital's guide says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.reasons import EXPLANATIONS, PASSING, Reason

GUIDE = Path(__file__).parents[3] / "docs" / "hospital.md"


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_explained_with_what_to_do_and_so_is_it_in_the_guide(reason: Reason) -> None:
    meaning, _, remedy = EXPLANATIONS[reason].partition("; ")
    assert meaning
    assert remedy
    assert f"| `{reason.value}` | {EXPLANATIONS[reason]} |" in GUIDE.read_text()


def test_reasons_that_pass_say_that_they_are_tried_again() -> None:
    assert {reason for reason in Reason if "tried again" in EXPLANATIONS[reason]} == PASSING


def test_no_remedy_names_a_package_under_another_licence_than_a_permissive_one() -> None:
    assert not any("libjpeg" in text.replace("pylibjpeg", "") for text in EXPLANATIONS.values())
    assert "pylibjpeg-libjpeg" not in " ".join(EXPLANATIONS.values())
