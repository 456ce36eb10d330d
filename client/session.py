"""A request being carried out: what is decided before any patient, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from client.evaluation import Evaluation, evaluate
from client.hospital import Hospital
from client.local_state import LocalState
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.privacy.stream import RandomStream
from client.terms import Term
from client.training import rows_at_once, train_round
from client.work import Plans, Work
from shared.losses import Criterion
from shared.protocol import Request
from shared.study import Study
from shared.transport import Weights


@dataclass(frozen=True)
class Job:
    """A request that will be carried out. Whoever the patients are, it is the same.

    Attributes:
        hospital: The site and what it may use.
        ledger: Open and locked.
        study: As a person approved it.
        request: As validated from the wire.
        weights: The global model's, as received.
        control: The server's control variate, by parameter; empty in studies without.
        incoming: Digest of all arrays that were received.
        model: With the global weights; None: there is nothing to compute with it.
        state: What the site keeps of the run.
        loss: What training minimises; None: nothing is trained.
        plans: What the patients are charged by.
        device: Where to compute.
        stream: Source of lots, views and noise.
    """

    hospital: Hospital
    ledger: Ledger
    study: Study
    request: Request
    weights: Weights
    control: Weights
    incoming: str
    model: nn.Module | None
    state: LocalState
    loss: Criterion | None
    plans: Plans
    device: torch.device
    stream: RandomStream

    @property
    def rows(self) -> tuple[int, int]:
        """Rows that are computed at once in training and in scoring."""
        most = self.hospital.site.config.compute.physical_batch
        return rows_at_once(self.study, self.plans.size, most)


@dataclass(frozen=True)
class Session(Job):
    """A job with the patients it concerns.

    Attributes:
        work: Who they are.
    """

    work: Work

    def reserve(
        self, wanted: Sequence[tuple[Plan, int]], *, round_number: int | None = None
    ) -> tuple[int, ...]:
        """Use up uses of the study's plans, durably; only then may anything be computed.

        Args:
            wanted: Plans and how often each is to be used; that there is room was seen before.
            round_number: Under which they are reserved; None: the request's.

        Returns:
            The ledger entries that say so, for `Ledger.commit`.

        Raises:
            LedgerError: Nothing could be written, and nothing was used.
        """
        return self.ledger.reserve(
            wanted,
            run=self.request.run,
            round_number=self.request.round if round_number is None else round_number,
            attempt=self.request.attempt,
        )

    def train(self, model: nn.Module, round_number: int, terms: Sequence[Term] = ()) -> None:
        """Train a model in place for one round that was paid."""
        train_round(
            model,
            self.work.train,
            self.study,
            size=self.plans.size,
            noise_multiplier=self.plans.training.noise_multiplier,
            round_number=round_number,
            stream=self.stream,
            device=self.device,
            physical_batch=self.rows[0],
            loss=self.loss,
            terms=terms,
        )

    def evaluate(self, model: nn.Module, *, subgroups: bool = False) -> Evaluation | None:
        """Evaluate a model once, as was paid; None where the policy shares no scores."""
        if self.plans.evaluation is None:
            return None
        return evaluate(
            model,
            self.work.held_out,
            self.study,
            noise_multiplier=self.plans.evaluation.noise_multiplier,
            stream=self.stream,
            device=self.device,
            physical_batch=self.rows[1],
            subgroups=subgroups and self.plans.subgroups,
        )
