"""Terms that pull a site's steps towards the federation; each corrects a gradient already noised.

A term sees the noised, normalised gradient of a step, the weights it led to, and what the server
sent: everything in it follows from quantities that were noised and accounted for, so it costs no
privacy (differential privacy is closed under post-processing; Dwork and Roth 2014, prop. 2.1).
A term that looked at a patient's own gradient would have to act before clipping; there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from client.local_state import LocalState, own_names
from shared.study import Study
from shared.transport import Weights


class Term(Protocol):
    """A correction of every step's gradient."""

    def correct(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]
    ) -> None:
        """Correct the gradients, in place.

        Args:
            parameters: Of the model, as they are before the step.
            gradients: The noised sum over the expected lot and the clipping norm, one for each
                parameter, of its shape.
        """


@dataclass(frozen=True)
class Proximal:
    """FedProx (Li et al. 2020): mu (w - w_start) pulls the weights back to the round's start.

    That is the gradient of mu / 2 |w - w_start|^2. The start is the global model, with the
    site's own normalisation layers where it has them. Gradients being in units of the clipping
    norm, so is mu.

    Attributes:
        strength: mu.
        start: The weights the round began with, in the order of the parameters.
    """

    strength: float
    start: tuple[torch.Tensor, ...]

    @classmethod
    def around(cls, model: nn.Module, strength: float) -> Proximal:
        """Return the pull towards the model's weights as they are now."""
        return cls(strength, tuple(p.detach().clone() for p in model.parameters()))

    def correct(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]
    ) -> None:
        """Add mu (w - w_start)."""
        for gradient, w, start in zip(gradients, parameters, self.start, strict=True):
            gradient.add_(w.detach() - start.to(w), alpha=self.strength)


@dataclass(frozen=True)
class ControlVariate:
    """SCAFFOLD (Karimireddy et al. 2020): c - c_i turns the steps towards the sites' mean.

    Attributes:
        drift: c - c_i, in the order of the parameters; None where there is no control.
    """

    drift: tuple[torch.Tensor | None, ...]

    def correct(
        self, parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]
    ) -> None:
        """Add c - c_i."""
        for gradient, drift in zip(gradients, self.drift, strict=True):
            if drift is not None:
                gradient.add_(drift.to(gradient))


def make_terms(study: Study, model: nn.Module, control: Weights, state: LocalState) -> list[Term]:
    """Return the terms a study's plan asks for in a round.

    Args:
        study: The plan.
        model: With the weights the round begins with.
        control: The server's control variate c, by parameter; empty in studies without.
        state: What the site goes on with, its own c_i among it.
    """
    terms: list[Term] = []
    if study.training.proximal:
        terms.append(Proximal.around(model, study.training.proximal))
    if control:
        own, zero = own_names(study), np.float32(0)
        drift = (
            None if name in own else torch.from_numpy(control[name] - state.control.get(name, zero))
            for name, _ in model.named_parameters()
        )
        terms.append(ControlVariate(tuple(drift)))
    return terms
