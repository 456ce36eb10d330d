"""Which studies a person at the site has approved, and which were offered and wait."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.outdated import Outdated, read_outdated
from client.site import Site
from client.vault import sync_folder, write_atomic
from shared.errors import PolicyRefusal, SiteError, StudyError
from shared.study import Study, study_from_json

MAX_OFFERS = 50
"""Offered studies kept: a server must not be able to fill the site's disk."""


class Approval(BaseModel):
    """One approved study: the plan itself, who approved it, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: Study
    by: str
    time: str

    @property
    def digest(self) -> str:
        """Digest of the study."""
        return self.study.digest


class Approvals:
    """The studies of a site, in `studies/offered`, `studies/approved` and `studies/revoked`.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._offered = site.studies / "offered"
        self._approved = site.studies / "approved"
        self._revoked = site.studies / "revoked"
        self._last_day = site.config.policy.approvals_expire

    def require(self, digest: str, today: date) -> Study:
        """Return the approved study of a digest: the site's own copy, not the one on the wire.

        Raises:
            PolicyRefusal: `study-not-approved`: nobody approved it, or approvals have expired.
            SiteError: The approval's file was damaged.
            StudyError: The study is of an earlier format.
        """
        self.refuse_outdated(digest)
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
        return self._read(self._approved / f"{digest}.json").study

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
        if path.exists() or len(list(self._offered.glob("*.json"))) >= MAX_OFFERS:
            return False
        write_atomic(path, study.canonical().encode())
        return True

    def approve(self, digest: str, by: str, now: datetime | None = None) -> Study:
        """Approve an offered study.

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
        self.approve_study(study, by, now)
        return study

    def approve_study(self, study: Study, by: str, now: datetime | None = None) -> None:
        """Approve a study the site has in hand, offered or not."""
        time = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        approval = Approval(study=study, by=by, time=time)
        path = self._approved / f"{study.digest}.json"
        write_atomic(path, approval.model_dump_json().encode())
        self.discard(study.digest)
        (self._revoked / path.name).unlink(missing_ok=True)

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

    def discard(self, digest: str) -> None:
        """Drop an offered study."""
        (self._offered / f"{digest}.json").unlink(missing_ok=True)

    def offered(self) -> list[Study]:
        """Return the studies that wait for a decision, by name."""
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
        decided = [approval.study for approval in (*self.approved(), *self.revoked())]
        return {study.digest: study for study in (*self.offered(), *decided)}

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
