"""A small sealed file beside the ledger that remembers which ledger it must be."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.vault import Vault
from shared.errors import LedgerError, SiteError
from shared.protocol import LedgerHead

_CONTEXT = "ledger anchor"


class Anchor(BaseModel):
    """What is known of a ledger from outside of it.

    Attributes:
        instance: The random id in the ledger's first entry.
        confirmed: The newest head that came back from the server and is in the ledger.
        claimed: A head the server knows and the ledger does not: entries were lost. Training
            stops until they are charged for.
        studies: Digests of the studies the server has had answers in, sorted, kept while it
            knows more than the ledger.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance: str
    confirmed: LedgerHead | None = None
    claimed: LedgerHead | None = None
    studies: tuple[str, ...] = ()


def anchor_path(ledger: Path) -> Path:
    """Return where a ledger's anchor is."""
    return ledger.with_suffix(".anchor")


def read_anchor(ledger: Path, vault: Vault) -> Anchor | None:
    """Return a ledger's anchor; None if there is none.

    Raises:
        LedgerError: The anchor cannot be read, was changed, or belongs to another vault key.
    """
    path = anchor_path(ledger)
    if not path.exists():
        return None
    try:
        return Anchor.model_validate_json(vault.read(path, _CONTEXT))
    except (SiteError, ValidationError):
        raise LedgerError(
            "the ledger's anchor cannot be read, was changed, or has another vault key",
            str(path),
            "Restore ledger, anchor and vault key together from backup, then run "
            "`consilium site ledger recover`",
        ) from None


def write_anchor(ledger: Path, vault: Vault, anchor: Anchor) -> None:
    """Store a ledger's anchor durably.

    Raises:
        LedgerError: It cannot be written.
    """
    try:
        vault.write(anchor_path(ledger), anchor.model_dump_json().encode(), _CONTEXT)
    except SiteError as error:
        raise LedgerError(error.what, error.where, error.todo) from None
