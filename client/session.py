"""A request being carried out: who takes part and who pays, and what is computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from client.evaluation import Evaluation, evaluate
from client.hospital import Hospital
from client.policy import shares_subgroups
from client.privacy.ledger import Ledger
from client.privacy.plans import Plan
from client.privacy.stream import RandomStream
from client.terms import Term
from client.training import train_round
from client.work import Work
from shared.losses import Criterion
from shared.protocol import Request
from shared.study import Study
from shared.transport import Weights


@dataclass(frozen=True)
class Session:
    """What the parts of one request have in common.

    Attributes:
        hospital: The site and what it may use.
        ledger: Open and locked.
        study: As a person approved it.
        request: As validated from the wire.
        weights: The global model's, as received.
        control: The server's control variate, by parameter; empty in studies without.
        incoming: Digest of all arrays that were received.
        work: The patients and the plans they are charged by.
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
    work: Work
    device: torch.device
    stream: RandomStream

    def reserve(
        self, wanted: Sequence[tuple[Plan, int]], *, round_number: int | None = None
    ) -> tuple[int, ...]:
        """Use up uses of the study's plans, durably; only then may anything be computed.

        Args:
            wanted: Plans and how often each is to be used.
            round_number: Under which they are reserved; None: the request's.

        Returns:
            The ledger entries that say so, for `Ledger.commit`.

        Raises:
            PolicyRefusal: `budget-exhausted`; nothing was used.
            LedgerError: Nothing could be written, and nothing was used.
        """
        return self.ledger.reserve(
            wanted,
            run=self.request.run,
            round_number=self.request.round if round_number is None else round_number,
            attempt=self.request.attempt,
        )

    def train(
        self, model: nn.Module, round_number: int, loss: Criterion, terms: Sequence[Term] = ()
    ) -> None:
        """Train a model in place for one round that was paid."""
        if self.work.training is None:
            raise ValueError("nobody is to be trained on")
        train_round(
            model,
            self.work.train,
            self.study,
            noise_multiplier=self.work.training.noise_multiplier,
            round_number=round_number,
            stream=self.stream,
            device=self.device,
            physical_batch=self.hospital.site.config.compute.physical_batch,
            loss=loss,
            terms=terms,
        )

    def evaluate(self, model: nn.Module, *, subgroups: bool = False) -> Evaluation | None:
        """Evaluate a model once, as was paid; None where the policy or the data rule it out."""
        if self.work.evaluation is None:
            return None
        policy, held_out = self.hospital.site.config.policy, self.work.held_out
        return evaluate(
            model,
            held_out,
            self.study,
            noise_multiplier=self.work.evaluation.noise_multiplier,
            stream=self.stream,
            device=self.device,
            physical_batch=self.hospital.site.config.compute.physical_batch,
            subgroups=subgroups and shares_subgroups(policy, self.study, held_out),
        )
