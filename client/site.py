"""A hospital's site: its home folder, its `site.toml`, and the policy that has the last word."""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shared.errors import SiteError
from shared.names import SiteName
from shared.study import explain_validation


class Section(BaseModel):
    """Base of every section of `site.toml`: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Server(Section):
    """Where the coordinator's server is; the site only ever connects outward."""

    address: str = Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$", description="host:port")
    ca: Path = Field(default=Path("ca.pem"), description="the coordinator's certificate authority")
    signing_key: Path = Field(
        default=Path("server.pub"), description="public key the server countersigns heads with"
    )


class Columns(Section):
    """Names of the columns in the hospital's labels table, or in its table of patients."""

    file: str = "file"
    patient: str = "patient"
    label: str = "label"
    findings: dict[str, str] = Field(
        default_factory=dict, description="the study's finding -> the table's column"
    )


class Feature(Section):
    """How one column of a study is found in the hospital's table of patients."""

    column: str = Field(default="", description="the table's column; empty: named as in the study")
    scale: float = Field(default=1.0, description="the study's unit = the table's times this")
    values: dict[str, str] = Field(
        default_factory=dict, description="the table's value -> the study's category"
    )
    missing: tuple[str, ...] = Field(
        default=(), description="values that mean that it is not known, beside an empty cell"
    )

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("must not be 0")
        return scale


class DataSource(Section):
    """Where the images and labels are, or the table of patients, in the hospital's own names."""

    images: Path | None = None
    labels: Path | None = None
    table: Path | None = None
    columns: Columns = Columns()
    values: dict[str, str] = Field(
        default_factory=dict, description="the table's label value -> the study's class"
    )
    features: dict[str, Feature] = Field(
        default_factory=dict, description="the study's column -> where and how it is in the table"
    )
    patients: int | None = Field(
        default=None, ge=1, description="size of the cohort to declare where `approve` names none"
    )
    decimal: Literal[".", ","] = Field(default=".", description="decimal point of the table")
    encoding: Literal["utf-8", "cp1252"] = Field(
        default="utf-8", description="encoding of both tables"
    )
    without_patient_id: Literal["refuse", "image-is-patient"] = Field(
        default="refuse", description="images whose patient is unknown"
    )

    @model_validator(mode="after")
    def _some_data(self) -> DataSource:
        if (self.images is None) != (self.labels is None):
            raise ValueError("images and labels belong together")
        if self.images is None and self.table is None:
            raise ValueError("either images and labels, or a table, must be given")
        return self


class Policy(Section):
    """The hospital's limits; no server setting outranks them."""

    max_epsilon_per_study: float = Field(default=8.0, ge=0)
    max_epsilon_per_patient: float = Field(default=10.0, ge=0, description="over all studies")
    max_delta: float = Field(default=1e-5, gt=0, lt=1)
    allow_without_privacy: bool = Field(
        default=False, description="whether studies without differential privacy may train"
    )
    min_patients: int = Field(default=20, ge=1)
    min_patients_per_class: int = Field(default=5, ge=0)
    max_set_aside: float = Field(
        default=0.5, ge=0, le=1, description="largest part of the files that may be set aside"
    )
    evaluation: Literal["none", "noised", "exact"] = "noised"
    max_rounds_per_day: int = Field(default=1000, ge=0)
    approvals_expire: date | None = Field(default=None, description="last day approvals hold")


class Compute(Section):
    """What of this machine training may use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    physical_batch: int = Field(default=64, ge=1, le=65_536, description="most images at once")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: all")
    decode_seconds: float = Field(default=20.0, gt=0, description="time limit for one file")
    decode_memory_mb: int = Field(default=1024, ge=128, description="memory limit of the decoder")


class SiteConfig(Section):
    """All of `site.toml`."""

    name: SiteName
    server: Server
    data: DataSource
    policy: Policy = Policy()
    compute: Compute = Compute()


class Site:
    """A configured site: the validated settings and the places its files live.

    Args:
        home: The node's own folder (mode 0700), with `site.toml` in it.
        config: The validated settings.
    """

    def __init__(self, home: Path, config: SiteConfig) -> None:
        self.home, self.config = home, config

    @property
    def node_key(self) -> Path:
        """Private key the node authenticates with (OpenSSH EC P-384, mode 0600)."""
        return self.home / "node.key"

    @property
    def vault_key(self) -> Path:
        """Key of everything encrypted at rest here (32 bytes, mode 0600)."""
        return self.home / "vault.key"

    @property
    def split_key(self) -> Path:
        """Key that decides who is held out (32 bytes, mode 0600)."""
        return self.home / "split.key"

    @property
    def ledger(self) -> Path:
        """The privacy ledger (SQLite)."""
        return self.home / "ledger.sqlite"

    @property
    def audit_log(self) -> Path:
        """The append-only audit log (one JSON object a line)."""
        return self.home / "audit.jsonl"

    @property
    def studies(self) -> Path:
        """Folder of offered, approved and revoked studies."""
        return self.home / "studies"

    @property
    def cache(self) -> Path:
        """Folder of encrypted tensors."""
        return self.home / "cache"

    @property
    def outbox(self) -> Path:
        """Folder of encrypted updates not yet confirmed by the server."""
        return self.home / "outbox"

    @property
    def attention(self) -> Path:
        """Folder of encrypted notes on studies that wait for a person."""
        return self.home / "attention"

    @property
    def local(self) -> Path:
        """Folder of what a study keeps here, encrypted: own layers, control variates, models."""
        return self.home / "local"

    @property
    def reports(self) -> Path:
        """Folder of local data reports; they never leave."""
        return self.home / "reports"

    def resolve(self, path: Path) -> Path:
        """Return a path of `site.toml`, relative ones being relative to the home."""
        return path if path.is_absolute() else self.home / path


def load_site(home: Path) -> Site:
    """Read and validate `site.toml` in a site's home.

    Raises:
        SiteError: The file is missing, unreadable, not TOML, or a key is wrong.
    """
    path = home / "site.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SiteError(
            f"cannot read the site's settings: {error.strerror}",
            str(path),
            "Run `consilium site init` or give the right --home",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteError(f"site.toml is not valid TOML: {error}", str(path)) from None
    try:
        return Site(home, SiteConfig.model_validate(values))
    except ValidationError as error:
        raise SiteError(
            f"site.toml is not valid: {explain_validation(error)}", str(path), "Correct these keys"
        ) from None
