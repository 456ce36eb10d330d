"""The released model: its weights and the card that says where they come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save

from server.files import write_atomically
from shared.errors import CoordinatorError
from shared.protocol import Statistics
from shared.study import Study, check_format
from shared.transport import Weights


class Record(BaseModel):
    """Base of what is kept on disk: frozen, unknown fields refused, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SiteRecord(Record):
    """What one site has contributed and spent, as its own replies said."""

    rounds: int = Field(default=0, ge=0, description="rounds its update is part of")
    last_round: int = Field(default=0, ge=0, description="the newest of them")
    patients: int = Field(default=0, ge=0, description="training patients N, as declared")
    epsilon: float = Field(default=0, ge=0, description="spent in this study")
    budget: float = Field(default=0, ge=0)
    delta: float = Field(default=0, ge=0, lt=1)
    noise_multiplier: float = Field(default=0, ge=0, description="0: no differential privacy")
    sampling_rate: float = Field(default=0, ge=0, le=1)


class ModelCard(Record):
    """Everything a reader needs to judge a model, beside `model.safetensors`."""

    format: Literal[1] = 1
    run: str
    created: str = Field(description="ISO 8601, UTC")
    code_version: str
    study_digest: str
    study: Study
    weights: Literal["last", "average"] = Field(description="of the rounds' global models")
    weights_sha256: str
    rounds: int
    sites: dict[str, SiteRecord]
    closing: dict[str, float | int | None] = Field(
        description="metrics of the closing evaluation; personal_*: of the models fine-tuned at "
        "the sites, which stay there"
    )
    subgroups: dict[str, dict[str, float | int | None]] = Field(
        default_factory=dict, description="the same metrics by group of patients"
    )
    statistics: Statistics | None = Field(
        default=None, description="all sites' noised counts, from which missing values are filled"
    )
    test_auc: float | None = Field(default=None, description="on data no site has seen")
    test_metrics: dict[str, float | int | None] = Field(default_factory=dict)


def weights_file(weights: Weights, study: Study) -> bytes:
    """Return weights as safetensors bytes stamped with the study's digest.

    The same weights give the same bytes; a second stamp would not, as their order varies.
    """
    return save(weights, metadata={"study_digest": study.digest})


def sha256(content: bytes) -> str:
    """Return the SHA-256 as hex."""
    return hashlib.sha256(content).hexdigest()


def write_release(folder: Path, weights: bytes, card: ModelCard) -> None:
    """Write `model.safetensors`, then `model-card.json`: a card means the release is whole."""
    write_atomically(folder / "model.safetensors", weights)
    write_card(folder, card)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write or replace `model-card.json`."""
    write_atomically(folder / "model-card.json", card.model_dump_json(indent=1).encode())


def read_card(folder: Path) -> ModelCard:
    """Read the card of a release.

    Raises:
        CoordinatorError: There is none, or it is not a card.
        StudyError: Its study is of another format.
    """
    path = folder / "model-card.json"
    try:
        values = json.loads(path.read_bytes())
        check_format(values["study"], str(path))
        return ModelCard.model_validate(values)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise CoordinatorError(
            "there is no readable model card", str(path), "Let the run finish first"
        ) from None
