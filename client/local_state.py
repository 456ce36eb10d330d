"""What a site keeps of a run between its rounds, encrypted, and what becomes of it in a round.

A node's memory does not survive a restart, so all of it is on disk. Each round leaves a file of
its own, made from the one before and from the update that was kept for the server. A round that
is computed again begins from the same file as at first, and one that is only sent again writes
the same file again: however often a round is interrupted, the state is that of the update that
left. The server says which round of the site was the last to count (`Request.counted`); one whose
update came too late leaves no trace, here as there, or the site's control variate and the server's
would no longer belong together.

All of it follows from noised updates, so keeping and using it costs no privacy.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from client.vault import Vault, sync_folder
from shared.errors import SiteError
from shared.models import build_model
from shared.protocol import Request
from shared.schedule import learning_rates
from shared.study import Study
from shared.transport import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalState:
    """What a site goes on with.

    Attributes:
        control: The site's control variate c_i by parameter; one that is absent is zero.
        norms: The site's own normalisation parameters; one that is absent is the global one.
    """

    control: Weights = field(default_factory=dict)
    norms: Weights = field(default_factory=dict)

    def after(
        self, study: Study, round_number: int, weights: Weights, control: Weights, update: Weights
    ) -> LocalState:
        """Return the state after a round.

        SCAFFOLD, option II (Karimireddy et al. 2020, algorithm 1): c_i - c + (x - y) / (K lr),
        with the sum of the steps' learning rates for K lr; the server concludes the same from the
        update. FedBN (Li et al. 2021): the site's own normalisation parameters go on from where
        training left them. They take no part in the control of drift, being meant to differ.

        Args:
            study: The plan.
            round_number: The round.
            weights: The global model x.
            control: The server's control variate c; empty in studies without.
            update: What is sent: new minus global weights, y - x.
        """
        own, taken = own_names(study), np.float32(sum(learning_rates(study, round_number)))
        return LocalState(
            control={
                name: self.control.get(name, np.float32(0)) - c - update[name] / taken
                for name, c in control.items()
                if name not in own
            },
            norms={name: weights[name] + update[name] for name in own},
        )


class LocalStates:
    """The states a site keeps, one file a round.

    Args:
        folder: Where they are.
        vault: Encrypts them.
    """

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder, self._vault = folder, vault

    def before(self, request: Request) -> LocalState:
        """Return the state a request's round begins with: after the last one that counted.

        A file that was damaged counts as lost.
        """
        last = min(request.counted, request.round - 1)
        for number, path in reversed(self._files(request)):
            if number <= last and (state := self._read(path)):
                return state
        return LocalState()

    def keep(self, request: Request, state: LocalState) -> None:
        """Keep the state after a request's round, durably, and forget those before what counted.

        Raises:
            SiteError: It cannot be written.
        """
        path = self._folder / f"{_stem(request)}-{request.round:05}.sealed"
        arrays = {f"control/{name}": array for name, array in state.control.items()}
        arrays |= {f"norm/{name}": array for name, array in state.norms.items()}
        self._vault.write(path, save(arrays), f"local/{path.name}")
        for number, old in self._files(request):
            if number < request.counted:
                old.unlink()
        sync_folder(self._folder)

    def _files(self, request: Request) -> list[tuple[int, Path]]:
        """Return the run's files with their rounds, oldest first."""
        found = self._folder.glob(f"{_stem(request)}-*.sealed")
        return sorted((int(path.stem.rsplit("-", 1)[1]), path) for path in found)

    def _read(self, path: Path) -> LocalState | None:
        try:
            arrays = load(self._vault.read(path, f"local/{path.name}"))
        except (SiteError, SafetensorError) as error:
            log.warning("what the site kept of its last round is lost: %s", error)
            return None
        parts: dict[str, Weights] = {"control": {}, "norm": {}}
        for name, array in arrays.items():
            part, _, parameter = name.partition("/")
            parts[part][parameter] = array
        return LocalState(control=parts["control"], norms=parts["norm"])


def own_names(study: Study) -> frozenset[str]:
    """Return the parameters each site keeps its own of: the affine ones of its norms, or none."""
    if not study.training.local_norms:
        return frozenset()
    norms = [
        (prefix, module)
        for prefix, module in build_model(study).named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm)
    ]
    return frozenset(f"{prefix}.{name}" for prefix, m in norms for name, _ in m.named_parameters())


@torch.no_grad()
def wear(model: nn.Module, norms: Weights) -> None:
    """Put the site's own normalisation parameters into a model that has the global weights."""
    for name, array in norms.items():
        model.get_parameter(name).copy_(torch.from_numpy(array))


def _stem(request: Request) -> str:
    """Return what a run's files begin with; hashed, since a run's name comes from the server."""
    return hashlib.sha256(f"{request.study_digest}/{request.run}".encode()).hexdigest()[:32]
