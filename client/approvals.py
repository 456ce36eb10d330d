"""Which studies a person at the site has approved, and which were offered and wait."""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.outdated import Outdated, read_outdated
from client.site import Site
from client.split_key import fingerprint, open_split_key
from client.vault import sync_folder, write_atomic
from shared.errors import PolicyRefusal, SiteError, StudyError
from shared.study import Study, study_from_json

log = logging.getLogger(__name__)

MAX_OFFERS = 50
"""Offered studies kept: a server must not be able to fill the site's disk."""


Exact = Literal["none", "all", "subgroups"]


class Approval(BaseModel):
    """One approved study.

    Attributes:
        study: The plan itself.
        patients: The size of the site's cohort as a person declared it, training and held-out
            patients together. It is public and stays for the whole study, however many patients
            there are: a number that followed the data would tell who is in them.
        by: Who approved it.
        time: When, UTC, ISO 8601.
        split_key: Fingerprint of the key that parted the site's patients then, and still must.
        exact: What exact counts of scores may leave where the policy shares such, by how many
            held-out patients there were then: "none", those of all, or those of subgroups too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: Study
    patients: int = Field(ge=1)
    by: str
    time: str
    split_key: str = Field(pattern=r"^[0-9a-f]{16}$")
    exact: Exact = "none"

    @property
    def digest(self) -> str:
        """Digest of the study."""
        return self.study.digest

    @property
    def training_size(self) -> int:
        """Training patients N, from the declared size."""
        return self.study.training_size(self.patients)


def declared_size(patients: int) -> int:
    """Round a number of patients to the two digits a site declares, so that one hides in it.

    Args:
        patients: At least 1.
    """
    unit = 10 ** max(0, len(str(patients)) - 2)
    return int((patients + unit // 2) // unit * unit)


class Approvals:
    """The studies of a site, in `studies/offered`, `studies/approved` and `studies/revoked`.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._offered = site.studies / "offered"
        self._approved = site.studies / "approved"
        self._revoked = site.studies / "revoked"
        self._site = site
        self._declined = site.studies / "declined"
        self._last_day = site.config.policy.approvals_expire

    def require(self, digest: str, today: date) -> Approval:
        """Return the approval of a digest, with the site's own copy of the study.

        Raises:
            PolicyRefusal: `study-not-approved`: nobody approved it, or approvals have expired;
                `study-declined`: a person said no.
            SiteError: The approval's file was damaged.
            StudyError: The study is of an earlier format.
        """
        self.refuse_outdated(digest)
        if not self.is_approved(digest) and (self._declined / digest).exists():
            raise PolicyRefusal(
                "study-declined",
                "a person at the site has declined this study",
                f"study {digest[:12]}",
                "Nothing is to be done; approving it takes that back",
            )
        if not self.is_approved(digest):
            raise PolicyRefusal(
                "study-not-approved",
                "nobody at the site has approved this study",
                f"study {digest[:12]}",
                "Read it with `consilium site studies`, then approve it or leave it",
            )
        if self._last_day and today > self._last_day:
            raise PolicyRefusal(
                "study-not-approved",
                f"approvals held until {self._last_day}",
                "policy.approvals_expire",
                "Set a later day in site.toml if the study may go on",
            )
        return self._read(self._approved / f"{digest}.json")

    def is_approved(self, digest: str) -> bool:
        """Tell whether a person approved the study, be it expired by now."""
        return (self._approved / f"{digest}.json").exists()

    def offer(self, digest: str, text: str) -> bool:
        """Keep an offered study for a person to read.

        Args:
            digest: What the server calls it.
            text: Canonical JSON of the plan.

        Returns:
            Whether it is kept now and was not before; it is not if too many wait already.

        Raises:
            StudyError: The text is not a valid study, or not the one of the digest.
        """
        study = study_from_json(text)
        if study.digest != digest:
            raise StudyError("the study is not the one of the digest", f"study {digest[:12]}")
        path = self._offered / f"{digest}.json"
        if path.exists() or len(self.offered()) >= MAX_OFFERS:
            return False
        write_atomic(path, study.canonical().encode())
        return True

    def approve(self, digest: str, by: str, patients: int, now: datetime | None = None) -> Approval:
        """Approve an offered study; see `approve_study`.

        Raises:
            SiteError: No such study was offered.
        """
        return self.approve_study(self.find_offer(digest), by, patients, now)

    def find_offer(self, digest: str) -> Study:
        """Return an offered study.

        Raises:
            SiteError: No such study was offered.
        """
        path = self._offered / f"{digest}.json"
        try:
            study = study_from_json(path.read_text(encoding="utf-8"), str(path))
        except OSError:
            raise SiteError(
                "no such study was offered",
                f"study {digest[:12]}",
                "`consilium site studies` lists those that were",
            ) from None
        if study.digest != digest:
            raise SiteError("the offered study was edited", str(path), "Delete the file")
        return study

    def approve_study(
        self,
        study: Study,
        by: str,
        patients: int,
        now: datetime | None = None,
        *,
        exact: Exact = "none",
    ) -> Approval:
        """Approve a study the site has in hand, offered or not.

        Args:
            study: The plan.
            by: Who approves it.
            patients: The size of the cohort that the site declares, at least 1; rounded to two
                digits.
            now: With its time zone; None: the time now.
            exact: See `Approval`.

        Raises:
            SiteError: See `check`.
        """
        self.check(study, patients)
        time = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        approval = Approval(
            study=study,
            patients=declared_size(patients),
            by=by,
            time=time,
            split_key=fingerprint(self.open_split_key()),
            exact=exact,
        )
        path = self._approved / f"{study.digest}.json"
        write_atomic(path, approval.model_dump_json().encode())
        self.discard(study.digest)
        (self._revoked / path.name).unlink(missing_ok=True)
        return approval

    def check(self, study: Study, patients: int) -> None:
        """Refuse to approve what could not hold.

        Args:
            study: The plan.
            patients: The size that is to be declared.

        Raises:
            SiteError: The site's split key cannot be used, or is not the one the study names; or
                the study was approved before, with another size.
        """
        own, size = fingerprint(self.open_split_key()), declared_size(patients)
        if study.data.split_key not in ("", own):
            raise SiteError(
                f"the study is for sites with the split key {study.data.split_key}, and this "
                f"site's is {own}",
                str(self._site.split_key),
                "Take that key by hand with `consilium site split-key import`, or leave the study",
            )
        former = [each for each in self._decided() if each.digest == study.digest]
        if former and former[0].patients != size:
            raise SiteError(
                f"the study was approved with {former[0].patients} patients, which stays as it is",
                f"study {study.digest[:12]}",
                f"Approve it with --patients {former[0].patients}, or leave it",
            )

    def revoke(self, digest: str) -> None:
        """Take an approval back: from the next message on the study is refused.

        The plan is kept: if the ledger is lost, what it may have spent must be charged.

        Raises:
            SiteError: The study was not approved.
        """
        path = self._approved / f"{digest}.json"
        try:
            self._revoked.mkdir(mode=0o700, exist_ok=True)
            path.rename(self._revoked / path.name)
        except FileNotFoundError:
            raise SiteError("this study is not approved", f"study {digest[:12]}") from None
        sync_folder(self._revoked)
        sync_folder(self._approved)

    def decline(self, digest: str) -> None:
        """Say no to an offered study: it no longer waits, and the server is told.

        Raises:
            SiteError: No such study was offered.
        """
        self.find_offer(digest)
        write_atomic(self._declined / digest, b"")

    def discard(self, digest: str) -> None:
        """Drop an offered study, declined or not."""
        (self._offered / f"{digest}.json").unlink(missing_ok=True)
        (self._declined / digest).unlink(missing_ok=True)

    def offered(self) -> list[Study]:
        """Return the studies that wait for a decision, by name."""
        return [study for study in self._offers() if not (self._declined / study.digest).exists()]

    def declined(self) -> list[Study]:
        """Return the offered studies that a person has declined, by name."""
        return [study for study in self._offers() if (self._declined / study.digest).exists()]

    def _offers(self) -> list[Study]:
        files = [path for path in self._offered.glob("*.json") if not read_outdated(path)]
        studies = [study_from_json(p.read_text(encoding="utf-8"), str(p)) for p in files]
        return sorted(studies, key=lambda study: (study.name, study.digest))

    def approved(self) -> list[Approval]:
        """Return the approved studies of this format, oldest approval first."""
        return self._all(self._approved)

    def revoked(self) -> list[Approval]:
        """Return the approvals of this format that were taken back, oldest approval first."""
        return self._all(self._revoked)

    def plans(self) -> dict[str, Study]:
        """Return every study of this format whose plan the site holds, by digest."""
        decided = [approval.study for approval in self._decided()]
        return {study.digest: study for study in (*self._offers(), *decided)}

    def outdated(self) -> list[Outdated]:
        """Return the studies of an earlier format, whatever was decided on them, by name."""
        folders = (self._offered, self._approved, self._revoked)
        files = [path for folder in folders for path in folder.glob("*.json")]
        found = [study for study in map(read_outdated, files) if study]
        return sorted(found, key=lambda study: (study.name, study.digest))

    def refuse_outdated(self, digest: str) -> None:
        """Refuse to go on with a study of an earlier format.

        Raises:
            StudyError: It is one; says how to go on.
        """
        for folder in (self._offered, self._approved, self._revoked):
            if study := read_outdated(folder / f"{digest}.json"):
                study.refuse()

    def open_split_key(self) -> bytes:
        """Return the key that parts the site's patients, made if there never was one.

        Raises:
            SiteError: It is gone, is not the one that studies were approved under, or cannot be
                used.
        """
        known = self._split_key()
        if not known and not self._site.split_key.exists() and self._site.ledger.exists():
            log.warning("this home has no split key yet and gets one: add split.key to its backup")
        return open_split_key(self._site.split_key, known)

    def propose_size(self, found: int) -> int:
        """Return the size to propose to a person: the one declared last, or about what was found.

        Whom a study counts is its author's choice. Numbers that followed each study's count would
        tell of one patient by their differences.

        Args:
            found: Patients that a study finds, at least 1.

        Returns:
            The size declared last, unless it is more than twice off; else one digit of the number.
        """
        before = sorted(self._decided(), key=lambda approval: approval.time)
        near = [a.patients for a in before if found <= 2 * a.patients and a.patients <= 2 * found]
        unit = 10 ** (len(str(found)) - 1)
        return near[-1] if near else (found + unit // 2) // unit * unit

    def check_import(self, key: bytes) -> None:
        """Refuse to replace the split key of a site that has approved a study.

        Raises:
            SiteError: A study was approved under the one that is here.
        """
        if self._split_key() not in ("", fingerprint(key)):
            raise SiteError(
                "a study was approved under the split key that is here, so it stays",
                str(self._site.split_key),
                "Only a site that has approved no study yet can take another's key",
            )

    def import_split_key(self, key: bytes) -> None:
        """Take another site's split key, so that patients of both are on the same side at both.

        Raises:
            SiteError: See `check_import`; or it cannot be written.
        """
        self.check_import(key)
        write_atomic(self._site.split_key, key)

    def _split_key(self) -> str:
        """Return the fingerprint of the key that studies were approved under; empty: none was."""
        decided = self._decided()
        return decided[0].split_key if decided else ""

    def _decided(self) -> list[Approval]:
        return [*self.approved(), *self.revoked()]

    def _all(self, folder: Path) -> list[Approval]:
        files = [path for path in folder.glob("*.json") if not read_outdated(path)]
        found = [self._read(path) for path in files]
        return sorted(found, key=lambda approval: (approval.time, approval.digest))

    def _read(self, path: Path) -> Approval:
        try:
            approval = Approval.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            approval = None
        if approval is None or approval.digest != path.stem:
            raise SiteError(
                "an approval's file is damaged or was edited", str(path), "Delete it, approve anew"
            )
        return approval
