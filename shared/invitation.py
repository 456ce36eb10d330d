"""What a coordinator hands a hospital to join: public facts only, no keys made for the hospital."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import SiteError


class Invitation(BaseModel):
    """An invitation file (`invitation.json`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: str = Field(
        pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$", description="host:port to connect to"
    )
    ca: str = Field(max_length=20_000, description="the coordinator's certificate authority, PEM")
    signing_key: str = Field(max_length=5_000, description="key ledger heads are signed with, PEM")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority and the signing key, in groups, to compare by telephone."""
        digest = hashlib.sha256((self.ca + self.signing_key).encode()).hexdigest()[:32]
        return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def load_invitation(path: Path) -> Invitation:
    """Read an invitation.

    Raises:
        SiteError: The file cannot be read or is not an invitation.
    """
    try:
        return Invitation.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SiteError(f"cannot read the invitation: {error.strerror}", str(path)) from None
    except (ValidationError, UnicodeDecodeError):
        raise SiteError(
            "this is not an invitation", str(path), "Ask the coordinator for invitation.json"
        ) from None
