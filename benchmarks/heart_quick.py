"""Many small federations trained at once: the product's steps in one batch, to choose settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from heart_data import Split
from torch import nn
from torch.nn import functional

from client.data.patients import PatientSet, trainable
from client.describe import describe
from client.privacy.plans import training_plan
from shared.models import build_model, initial_weights, set_weights
from shared.models.table import TableNet
from shared.protocol import Statistics
from shared.schedule import learning_rates
from shared.statistics import merge_statistics
from shared.study import Study
from shared.transport import Weights
from simulations.measure import as_patient_set
from simulations.seeded import SeededStream

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """What the first layer sees, [worlds, sites, most patients, ...].

    Attributes:
        features: Learned values for missing ones not yet added, flags included.
        missing: Whether each feature's value is missing, as 0 or 1; without flags.
        labels: Class indices, one-hot.
        there: Whether there is such a patient, as 0 or 1.
    """

    features: torch.Tensor
    missing: torch.Tensor
    labels: torch.Tensor
    there: torch.Tensor


def train_many(
    worlds: Sequence[Sequence[Split]], study: Study, seed: int, first: Weights | None = None
) -> list[nn.Module]:
    """Train one federation for each world and return their models.

    The steps are those of `client.training.train_round` on Poisson lots with clipping and, in
    private studies, noise; the sites' weights are averaged by their patients, as the server
    does. Random numbers are torch's, so the draws are not the product's, but their laws are;
    without anything random (`sampling_rate` 1, no noise) the result is the same.

    Args:
        worlds: The same number of sites each.
        study: Of sgd without momentum, the plain loss, and the plain average.
        seed: Of everything random.
        first: Weights to start from; None: the study's own.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = [[trainable(as_patient_set(part.train), study) for part in w] for w in worlds]
    models = [build_model(study, _statistics(w, study, seed, i)) for i, w in enumerate(sites)]
    inputs = _inputs(sites, models)
    patients = inputs.there.sum(-1)
    weights = {
        name: torch.from_numpy(array)[None].repeat(len(worlds), *[1] * array.ndim)
        for name, array in (first or initial_weights(study)).items()
    }
    plan, clip = study.training, study.privacy.clip
    noise = _noise(sites, study) * clip
    expected = plan.sampling_rate * patients.clamp(min=1) * clip
    for number in range(1, study.federation.rounds + 1):
        local = {
            n: w[:, None].repeat(1, patients.shape[1], *[1] * (w.dim() - 1))
            for n, w in weights.items()
        }
        for rate in learning_rates(study, number):
            drawn = torch.rand(inputs.there.shape, generator=generator) < plan.sampling_rate
            for name, total in clipped_sum(local, inputs, drawn * inputs.there, clip).items():
                total += _like(noise, total) * torch.randn(total.shape, generator=generator)
                step = total / _like(expected, total) + plan.weight_decay * local[name]
                local[name] = local[name] - rate * step
        part = patients / patients.sum(-1, keepdim=True)
        weights = {n: torch.einsum("ts,ts...->t...", part, w) for n, w in local.items()}
    for index, model in enumerate(models):
        set_weights(model, {n: w[index].numpy() for n, w in weights.items()})
    return models


def clipped_sum(weights: Parameters, inputs: Inputs, lot: torch.Tensor, clip: float) -> Parameters:
    """Return the sum of the lot's clipped gradients of cross entropy, for each site by itself.

    Back-propagation by hand: a patient's gradient of a layer is the outer product of what the
    layer sees and what comes back to it, so its norm needs no gradient to be written down
    (Goodfellow 2015).
    """
    layers = sorted({name.rsplit(".", 1)[0] for name in weights if name.startswith("hidden")})
    seen = [inputs.features]
    if "unknown.weight" in weights:
        seen[0] = seen[0] + inputs.missing * weights["unknown.weight"][:, :, 0, None]
    for layer in layers:
        seen.append(functional.relu(_through(weights, layer, seen[-1])))
    back = _through(weights, "head", seen[-1]).softmax(-1) - inputs.labels
    terms, squares = {}, torch.zeros_like(lot)
    for layer, x in zip([*layers, "head"][::-1], seen[::-1], strict=True):
        squares += back.square().sum(-1) * (x.square().sum(-1) + 1)
        terms[layer] = back, x
        back = back @ weights[f"{layer}.weight"]
        back = back * (x > 0) if layer != [*layers, "head"][0] else back
    learned = back[..., : inputs.missing.shape[-1]] * inputs.missing
    if "unknown.weight" in weights:
        squares += learned.square().sum(-1)
    share = (lot * (clip * (1 - 1e-6) / squares.sqrt()).clamp(max=1))[..., None]
    total: Parameters = {}
    for layer, (back, x) in terms.items():
        total[f"{layer}.weight"] = (share * back).transpose(-1, -2) @ x
        total[f"{layer}.bias"] = (share * back).sum(2)
    if "unknown.weight" in weights:
        total["unknown.weight"] = (share * learned).sum(2, keepdim=True)
    return total


def _through(weights: Parameters, layer: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{layer}.weight"].transpose(-1, -2) + weights[f"{layer}.bias"][:, :, None]


def _like(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Give values [worlds, sites] as many dimensions as another tensor has."""
    return values.view(*values.shape, *[1] * (other.dim() - 2))


def _inputs(sites: Sequence[Sequence[PatientSet]], models: Sequence[nn.Module]) -> Inputs:
    most = max(len(site) for world in sites for site in world)
    shape = len(sites), len(sites[0]), most
    rows = torch.zeros(*shape, sites[0][0].images.shape[1])
    labels, there = torch.zeros(*shape, 2), torch.zeros(shape)
    features = []
    for w, world in enumerate(sites):
        for s, site in enumerate(world):
            rows[w, s, : len(site)] = site.images
            labels[w, s, : len(site)] = functional.one_hot(site.labels, 2).float()
            there[w, s, : len(site)] = 1
        features.append(_features(models[w], rows[w]))
    column = cast(TableNet, models[0]).column
    return Inputs(torch.stack(features), rows.isnan().float()[..., column], labels, there)


def _features(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return what the model's first layer sees; 0 where it learns what to put."""
    heard: list[torch.Tensor] = []
    net = cast(TableNet, model)
    if net.unknown is not None:
        nn.init.zeros_(net.unknown.weight)
    first = net.hidden[0] if len(net.hidden) else net.head
    handle = first.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    with torch.no_grad():
        net(rows.flatten(0, 1))
    handle.remove()
    return heard[0].view(*rows.shape[:2], -1)


def _statistics(
    sites: Sequence[PatientSet], study: Study, seed: int, world: int
) -> Statistics | None:
    if not study.needs_statistics:
        return None
    noise = study.privacy.statistics_noise if study.privacy.enabled else 0.0
    streams = [SeededStream(seed, "describe", world, number) for number in range(len(sites))]
    return merge_statistics(
        [
            describe(site, study, noise_multiplier=noise, stream=stream)
            for site, stream in zip(sites, streams, strict=True)
        ]
    )


def _noise(sites: Sequence[Sequence[PatientSet]], study: Study) -> torch.Tensor:
    """Return each site's noise multiplier, [worlds, sites]."""
    if not study.privacy.enabled:
        return torch.zeros(len(sites), len(sites[0]))
    return torch.tensor(
        [[training_plan(study, len(site)).noise_multiplier for site in w] for w in sites]
    )


def probabilities(model: nn.Module, rows: np.ndarray) -> np.ndarray:
    """Return the probability of disease of each row."""
    with torch.no_grad():
        return model(torch.from_numpy(rows)).softmax(dim=1)[:, 1].numpy()
