"""Studies that wait for a person at the site: one code for all that patients may be the cause of.

What a site refuses before it opens its cohort is refused whoever the patients are. From there on
an error may depend on one patient, and so would its code, or whether the next round has it too.
So every such error is the same code, and stays until a person at the site has looked.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.privacy.ledger_store import Clock
from client.vault import Vault, sync_folder
from shared.errors import ConsiliumError, PolicyRefusal, SiteError
from shared.protocol import MAX_TOLD

log = logging.getLogger(__name__)

CUT_SHORT = "an error of which nothing could be kept here; the node's own log may have it"
DAMAGED = "the note of it was damaged"


class Attention(BaseModel):
    """A study that waits.

    Attributes:
        study: Digest.
        time: Of the error, UTC, ISO 8601.
        reason: What happened. It may name files or patients, and stays at the site.
        told: What a person has decided to tell the coordinator of it; empty: nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    time: str = ""
    reason: str
    told: str = Field(default="", max_length=MAX_TOLD)


class AttentionBook:
    """The studies of a site that wait, one encrypted file each.

    Args:
        folder: Where they are.
        vault: Encrypts them.
        now: The clock.
    """

    def __init__(self, folder: Path, vault: Vault, now: Clock) -> None:
        self._folder, self._vault, self._now = folder, vault, now

    def check(self, study: str) -> None:
        """Refuse a study that waits.

        Raises:
            PolicyRefusal: `site-attention`.
        """
        if self._waiting(study).exists():
            raise self._refusal(study)

    @contextlib.contextmanager
    def watch(self, study: str) -> Iterator[None]:
        """Make one code of whatever goes wrong inside, and let the study wait from then on.

        Raises:
            PolicyRefusal: `site-attention`, whatever it was.
        """
        ready = self._folder / f"{study}.ready"
        self._write(ready, Attention(study=study, time=self._time(), reason=CUT_SHORT))
        try:
            yield
        except Exception as error:  # noqa: BLE001
            # Should the disk be full, the file that is there already takes the place.
            ready.replace(self._waiting(study))
            sync_folder(self._folder)
            traceback.print_exc()
            with contextlib.suppress(SiteError):
                self.keep(Attention(study=study, time=self._time(), reason=_reason(error)))
            raise self._refusal(study) from None
        ready.unlink()

    def waiting(self) -> list[Attention]:
        """Return what waits, oldest first."""
        found = [self._read(path.stem) for path in self._folder.glob("*.sealed")]
        return sorted(found, key=lambda each: (each.time, each.study))

    def keep(self, attention: Attention) -> None:
        """Keep what waits, in place of what was kept of the study.

        Raises:
            SiteError: It cannot be written.
        """
        self._write(self._waiting(attention.study), attention)

    def clear(self, study: str) -> None:
        """Let a study go on: a person has looked."""
        self._waiting(study).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _waiting(self, study: str) -> Path:
        return self._folder / f"{study}.sealed"

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _write(self, path: Path, attention: Attention) -> None:
        text = attention.model_dump_json().encode()
        self._vault.write(path, text, f"attention/{attention.study}")

    def _read(self, study: str) -> Attention:
        try:
            plain = self._vault.read(self._waiting(study), f"attention/{study}")
            return Attention.model_validate_json(plain)
        except (SiteError, ValidationError):
            return Attention(study=study, reason=DAMAGED)

    def _refusal(self, study: str) -> PolicyRefusal:
        return PolicyRefusal(
            "site-attention",
            "something went wrong that a person at the site must look at",
            f"study {study[:12]}",
            "`consilium site attention list` says what; then clear it, and the study goes on",
            told=self._read(study).told,
        )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ConsiliumError) else f"{type(error).__name__}: {error}"
