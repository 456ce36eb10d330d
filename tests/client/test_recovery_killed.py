"""Recovery while a round runs, and killed at every step."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import pytest
from recovery_kit import charged, spoil

from client.recovery import Told, recover
from shared.errors import LedgerError

Ward = Any  # the class in conftest.py


def test_recovery_waits_for_a_round_to_end(ward: Ward) -> None:
    with (
        ward.hospital().ledger() as ledger,
        ledger.locked(),
        pytest.raises(LedgerError, match="another process"),
    ):
        recover(ward.hospital(), Told("IT", (), exact=False))


@pytest.mark.parametrize("how", ["anchor", "update entry set steps = 0 where kind = 'reserve'"])
def test_a_recovery_killed_at_any_step_refuses_training_until_it_is_done(
    ward: Ward, how: str
) -> None:
    study = ward.study()
    ward.approve(study)
    ward.ask(study, 1)
    spoil(ward, how)
    for step in range(1, 20):
        copy = ward.copy(f"killed-{step}")
        if ended_by_itself(copy, step):
            break
        if (copy.home / "ledger.sqlite").exists() or (copy.home / "ledger.anchor").exists():
            assert copy.ask(study, 2).refusal.code in ("ledger-invalid", "budget-exhausted")
        else:
            pytest.fail(f"killed at rename {step}: the next start would begin with nothing spent")
        recover(copy.hospital(), Told("IT", (), exact=False))
        assert charged(copy, study) == (4, 5)
    assert step > 4


def ended_by_itself(ward: Ward, step: int) -> bool:
    """Recover in a forked process that dies when it is about to rename a file for that time."""
    child = os.fork()
    if child == 0:
        renames = itertools.count(1)

        def die(event: str, _: tuple[object, ...]) -> None:
            if event == "os.rename" and next(renames) == step:
                os._exit(9)

        sys.addaudithook(die)
        try:
            recover(ward.hospital(), Told("IT", (), exact=False))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
