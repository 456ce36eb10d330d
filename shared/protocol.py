"""Every field that crosses the wire, once: versioned, and validated on both ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shared.errors import ProtocolError

PROTOCOL_VERSION = 2

CONTROL = "control/"
"""Before a parameter's name: the server's control variate for it, as it travels."""

MAX_TOLD = 500
"""Longest text that a person at a site may send beside a refusal, in characters."""

RefusalCode = Literal[
    "study-not-approved",  # no human at the site has approved this digest (or it expired)
    "study-declined",  # a human at the site has said no to it
    "study-invalid",  # the plan that came along is not valid or not the one of the digest
    "policy-epsilon",  # the study's epsilon exceeds what the policy grants
    "policy-delta",
    "policy-rounds",  # more rounds a day than allowed, personal ones included
    "policy-device",  # memory, device or hours
    "policy-evaluation",
    "budget-exhausted",  # the plan has no round (or no spare one) left, or the study was closed
    "ledger-rollback",  # the ledger is older than the one the server countersigned
    "ledger-invalid",
    "bundle-refused",
    "message-invalid",
    "out-of-order",  # past the study's end, or before the counts the loss needs were released
    "site-unready",  # the site's own disk, files or keys must be looked after
    "site-attention",  # a person at the site must look: all that may depend on a patient
    "internal-error",  # in the program, before it has looked at any patient
]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class Wire(BaseModel):
    """Base of every message: frozen, unknown fields refused, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(Wire):
    """Base of what messages are made of, and both sides keep in files.

    A file lasts longer than a version of the protocol, so that parts have none. That of the first
    release, which gave them one, is left out.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_version(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("version") == 1:
            return {key: value for key, value in values.items() if key != "version"}
        return values


class LedgerHead(Part):
    """Head of a site's ledger chain: number and hash of the last entry that is not private."""

    entries: int = Field(ge=0)
    hash: Digest


class Statistics(Part):
    """Noised counts of training patients: never exact ones, unless the study has no privacy.

    A patient adds one to one cell of `classes` per target (one target, or one per finding) and
    to one cell of every column. Gaussian noise of standard deviation `noise` was added to every
    count, so counts may be negative.

    Attributes:
        classes: Patients of each class; of findings: for each finding, without and with it.
        columns: Of a table: for each column, patients by equal bins of its range, or by
            category, and last those without a value.
        noise: 0 in studies without privacy.
    """

    classes: tuple[float, ...] = Field(max_length=40)
    columns: tuple[Annotated[tuple[float, ...], Field(max_length=257)], ...] = Field(
        default=(), max_length=256
    )
    noise: float = Field(ge=0)


class Request(Wire):
    """What the server asks of a site in one message; the global weights travel beside it.

    In studies with control variates (SCAFFOLD) the server's travels with each round of training
    too, as arrays named `CONTROL` and the parameter's name.
    """

    version: Literal[2] = 2
    task: Literal["describe", "train", "evaluate"]
    run: RunName = Field(description="id of the server's run")
    study_digest: Digest
    study: str = Field(max_length=65_536, description="canonical JSON of the plan, for approval")
    round: int = Field(
        ge=0,
        description="0: describe; 1: first round of training; rounds + 1: closing evaluation",
    )
    statistics: Statistics | None = Field(
        default=None, description="all sites' together, in studies that fill in missing values"
    )
    attempt: int = Field(default=0, ge=0, description="counts repeats of the same round")
    counted: int = Field(
        default=0,
        ge=0,
        description="newest round of the run in which the site's own update became part of the "
        "model: an answer that came too late never did",
    )
    known_head: LedgerHead | None = Field(
        default=None, description="the site's ledger head as the server last saw it"
    )
    known_studies: tuple[Digest, ...] = Field(
        default=(),
        max_length=1000,
        description="studies the server has had answers of this site in, of all runs, sorted",
    )
    countersignature: str = Field(
        default="",
        max_length=256,
        description="the server's signature of known_head and known_studies, base64",
    )

    @model_validator(mode="after")
    def _described_first(self) -> Request:
        if (self.task == "describe") != (self.round == 0):
            raise ValueError("round 0 is for describing, and only it")
        return self


class Question(BaseModel):
    """Which question a message asks, whatever else is in it: all it takes to refuse it.

    A request of another release may have fields, or a version, that `Request` refuses.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    study_digest: Digest
    run: RunName
    round: int = Field(ge=0, le=1_000_000)
    version: Any = PROTOCOL_VERSION


class ScoreHistogram(Part):
    """Noised counts of held-out patients' scores, never the scores.

    `counts` has shape [targets, 2, bins]: for each target class (binary tasks have one, the
    positive class), the patients that do not have it and those that do, by predicted
    probability in equal bins over [0, 1]. Gaussian noise of standard deviation `noise` was
    added to every count (0 when the policy shares exact counts), so counts may be negative.
    """

    targets: int = Field(ge=1, le=20)
    bins: int = Field(ge=4, le=256)
    noise: float = Field(ge=0)
    counts: tuple[float, ...]

    @model_validator(mode="after")
    def _shape(self) -> ScoreHistogram:
        if len(self.counts) != self.targets * 2 * self.bins:
            raise ValueError("counts must hold targets x 2 x bins numbers")
        return self


class Spending(Part):
    """Privacy that the uses a study made of its plan cost, whoever took part in them."""

    epsilon: float = Field(ge=0, description="of the uses made so far, reservations included")
    budget: float = Field(ge=0)
    delta: float = Field(ge=0, lt=1)
    noise_multiplier: float = Field(ge=0, description="sigma of training; 0: no privacy")
    sampling_rate: float = Field(ge=0, le=1)
    steps: int = Field(ge=0, description="training steps reserved so far")


class Refusal(Part):
    """Why a site did not do what was asked.

    Attributes:
        code: Decided before a patient is looked at, or `site-attention`.
        text: What a person at the site has decided to tell; only with `site-attention`.
    """

    code: RefusalCode
    text: str = Field(default="", max_length=MAX_TOLD)

    @model_validator(mode="after")
    def _only_people_write(self) -> Refusal:
        if self.text and self.code != "site-attention":
            raise ValueError("a text belongs to site-attention")
        return self

    @model_serializer(mode="wrap")
    def _as_the_first_release_reads_it(
        self, write: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if name != "text" or value}


class Reply(Wire):
    """A site's answer; the update (new minus global weights) travels beside it.

    A refusal may be of version 1: so a node answers a server of the first release, which reads no
    other, and so a node of that release answers.
    """

    version: Literal[1, 2] = 2
    study_digest: Digest
    run: RunName
    round: int = Field(ge=0)
    outcome: Literal["described", "update", "evaluated", "refused"]
    refusal: Refusal | None = None
    patients: int = Field(default=0, ge=0, description="training patients N (public)")
    spending: Spending | None = None
    evaluation: ScoreHistogram | None = None
    personal: ScoreHistogram | None = Field(
        default=None, description="closing evaluation of the model fine-tuned at the site"
    )
    subgroups: dict[Annotated[str, Field(max_length=32)], ScoreHistogram] = Field(
        default_factory=dict,
        max_length=32,
        description="closing evaluation of the cells of shared.subgroups, all of them or none",
    )
    statistics: Statistics | None = None
    head: LedgerHead | None = None
    resent: bool = Field(default=False, description="computed earlier, sent again after a crash")

    @model_validator(mode="after")
    def _consistent(self) -> Reply:
        if self.version != PROTOCOL_VERSION and self.outcome != "refused":
            raise ValueError(f"an answer must be of version {PROTOCOL_VERSION}")
        if (self.outcome == "refused") != (self.refusal is not None):
            raise ValueError("exactly the refused replies carry a refusal")
        if self.outcome == "update" and self.patients < 1:
            raise ValueError("an update must come from at least one patient")
        if (self.outcome == "described") != (self.statistics is not None):
            raise ValueError("exactly the answers to describe carry statistics")
        if self.outcome != "refused" and (self.outcome == "described") != (self.round == 0):
            raise ValueError("round 0 is for describing, and only it")
        if self.outcome != "evaluated" and (self.personal or self.subgroups):
            raise ValueError("personal models and subgroups belong to the closing evaluation")
        return self


T = TypeVar("T", bound=Wire)


def parse(kind: type[T], text: str, where: str) -> T:
    """Validate one record received as JSON.

    Raises:
        ProtocolError: Naming the fields that are wrong, never their values.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fields = sorted({".".join(map(str, e["loc"])) or "message" for e in error.errors()})
        raise ProtocolError(
            f"a {kind.__name__.lower()} has wrong fields: {', '.join(fields)}",
            where,
            f"Both ends must run releases with protocol version {PROTOCOL_VERSION}",
        ) from None
