"""A hospital as a round sees it: its site and everything the round may use, passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.approvals import Approvals
from client.attention import AttentionBook
from client.audit import AuditLog, Event
from client.data.cohort import Cohort, load_cohort
from client.local_state import LocalStates
from client.outbox import Outbox
from client.privacy.ledger import Ledger
from client.privacy.ledger_schema import is_outdated
from client.privacy.ledger_store import Clock
from client.privacy.stream import OsStream, RandomStream
from client.site import Site, load_site
from client.vault import Vault
from shared.protocol import LedgerHead, Request
from shared.study import Study


def utc_now() -> datetime:
    """Return the time now."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Hospital:
    """A site with its vault, and where its data, randomness and time come from.

    Attributes:
        site: Settings, policy and folders.
        vault: The site's keys.
        load_cohort: Reads the patients of a study.
        make_stream: Makes the source of noise and lots for one request; only a simulated
            hospital has another than the operating system's.
        now: The clock.
    """

    site: Site
    vault: Vault
    load_cohort: Callable[[Site, Study], Cohort] = load_cohort
    make_stream: Callable[[Request], RandomStream] = lambda _: OsStream()
    now: Clock = utc_now

    @property
    def approvals(self) -> Approvals:
        """The studies offered to and approved by the site."""
        return Approvals(self.site)

    @property
    def attention(self) -> AttentionBook:
        """The studies that wait for a person."""
        return AttentionBook(self.site.attention, self.vault, self.now)

    @property
    def outbox(self) -> Outbox:
        """Answers the server may not have yet."""
        return Outbox(self.site.outbox, self.vault)

    @property
    def local_states(self) -> LocalStates:
        """What runs keep at the site between their rounds."""
        return LocalStates(self.site.local, self.vault)

    def ledger(self) -> Ledger:
        """Open the privacy ledger; use it in a `with` statement.

        One that an earlier release wrote is taken over, which the audit log notes first.

        Raises:
            LedgerError: It cannot be used; see `Ledger`.
            SiteError: The log cannot be written.
        """
        if is_outdated(self.site.ledger):
            self.log(Event(event="ledger-upgraded"))
        return Ledger(self.site.ledger, self.vault, self.now)

    def drop_answers(self) -> None:
        """Drop kept answers that can no longer be sent; what they cost stays charged.

        They are damaged, or of a release that spoke another protocol.

        Raises:
            SiteError: The log cannot be written; what it does not note is not dropped.
        """
        for path in self.outbox.unsendable():
            self.log(Event(event="answer-dropped"))
            path.unlink(missing_ok=True)

    def newest_sent(self) -> LedgerHead | None:
        """Return the newest ledger head that left with a reply, as the audit log says.

        Raises:
            SiteError: The log cannot be read, or the lines in question were edited.
        """
        return AuditLog(self.site.audit_log, self.vault).newest_head()

    def log(self, event: Event) -> None:
        """Append an event to the audit log, durably.

        Raises:
            SiteError: The log cannot be written.
        """
        AuditLog(self.site.audit_log, self.vault).write(event, self.now())


def open_hospital(home: Path) -> Hospital:
    """Open the hospital of a home folder.

    Raises:
        SiteError: The settings or the vault key cannot be used.
    """
    site = load_site(home)
    return Hospital(site, Vault.open(site.vault_key))
