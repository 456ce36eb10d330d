"""What a curious server sees of a patient in one update, with and without privacy.

    python benchmarks/gradient_inversion.py --images 4

The worst case for the patient: alone in the lot, one image, one step, and a server that sends
weights of its own choice, knows the label and inverts the update by gradient matching (cosine
distance and total variation; Geiping et al. 2020). The update comes from the hospitals' own
training code; with privacy its noise is calibrated for epsilon 8 over 100 steps at sampling
rate 0.1. The server cannot know exposure and contrast, so both are fitted to the original.
Images: PneumoniaMNIST (Kermany et al. 2018, Yang et al. 2023, CC BY 4.0).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from common import RESULTS, data_folder, write_results
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.data.cohort import PatientSet
from client.training import train_round
from shared.accounting import calibrate
from shared.models import build_model
from shared.study import Study
from simulations.seeded import SeededStream

mpl.use("agg")
EPSILON, DELTA, RATE, STEPS = 8.0, 1e-5, 0.1, 100
# The attacker tries each smoothing from several starts, until the gradients match. If none
# does, the image most like the original counts, which the attacker could not even choose.
SMOOTHING, STARTS, MATCHED = (1e-3, 1e-2), 3, 0.01
LEARNING_RATE = 1.0


@dataclass(frozen=True)
class Victim:
    """One patient with one image, [1, 1, size, size], and the label."""

    image: torch.Tensor
    label: torch.Tensor

    def cohort(self) -> PatientSet:
        """Return the cohort of this patient alone."""
        return PatientSet(self.image, torch.zeros(1, dtype=torch.int64), self.label, ("victim",))


def study(model: str, private: bool) -> Study:
    """Return a study of one step on every patient."""
    values: dict[str, Any] = {
        "name": "inversion",
        "task": {"classes": ["normal", "pneumonia"]},
        "input": {"size": 28},
        "model": {"name": model},
        "training": {"learning_rate": LEARNING_RATE, "local_steps": 1, "sampling_rate": 1.0},
        "privacy": {"enabled": private},
    }
    return Study.model_validate(values)


def attacked_model(plan: Study) -> nn.Module:
    """Build the model with a last layer that lets gradients through, as a server may send it."""
    model = build_model(plan)
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(model.get_parameter("head.weight"), std=0.5, generator=generator)
    return model


def update_of(victim: Victim, plan: Study, noise: float, seed: int) -> list[torch.Tensor]:
    """Train one step on the victim and return the gradient that the weights betray."""
    model = attacked_model(plan)
    before = [p.detach().clone() for p in model.parameters()]
    train_round(
        model,
        victim.cohort(),
        plan,
        size=1,
        noise_multiplier=noise,
        round_number=1,
        stream=SeededStream(seed, "inversion"),
        device=torch.device("cpu"),
        physical_batch=1,
    )
    after = [p.detach() for p in model.parameters()]
    return [(b - a) / LEARNING_RATE for b, a in zip(before, after, strict=True)]


def invert(
    model: nn.Module,
    seen: list[torch.Tensor],
    label: torch.Tensor,
    smooth: float,
    start: int,
    iterations: int,
) -> tuple[float, torch.Tensor]:
    """Find an image whose gradient points where the update does.

    Returns:
        How far the gradients are apart in the end, 0 to 2, and the image, [1, 1, size, size].
    """
    generator = torch.Generator().manual_seed(start)
    guess = 0.1 * torch.randn((1, 1, 28, 28), generator=generator)
    guess.requires_grad_()
    optimiser = torch.optim.Adam([guess], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=1e-3)
    parameters = list(model.parameters())
    apart = 2.0
    for _ in range(iterations):
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
            loss = functional.cross_entropy(model(guess), label)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        distance = 1 - cosine(gradients, seen)
        apart = float(distance.detach())
        guess.grad = torch.autograd.grad(distance + smooth * total_variation(guess), guess)[0]
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(-1, 1)
    return apart, guess.detach()


def cosine(one: tuple[torch.Tensor, ...], other: list[torch.Tensor]) -> torch.Tensor:
    """Return the cosine between two gradients of the whole model."""
    a = torch.cat([g.flatten() for g in one])
    b = torch.cat([g.flatten() for g in other])
    return functional.cosine_similarity(a, b, dim=0)


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute step between neighbouring pixels."""
    return image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()


def fitted(guess: torch.Tensor, original: torch.Tensor) -> np.ndarray:
    """Fit gain and offset of a reconstruction to the original, both in [0, 1] then."""
    x, y = guess.numpy()[0, 0], original.numpy()[0, 0] / 2 + 0.5
    gain, offset = np.polyfit(x.ravel(), y.ravel(), 1)
    return np.clip(gain * x + offset, 0, 1)


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Return the structural similarity of two images in [0, 1] (Wang et al. 2004)."""

    def mean(z: np.ndarray) -> np.ndarray:
        return gaussian_filter(z, 1.5, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(score[5:-5, 5:-5].mean())


def attack(victim: Victim, model: str, private: bool, iterations: int) -> np.ndarray:
    """Return the reconstruction that matched, or the one most like the original, in [0, 1]."""
    plan = study(model, private)
    noise = calibrate(EPSILON, DELTA, RATE, STEPS) if private else 0.0
    seen = update_of(victim, plan, noise, seed=0)
    found = []
    for start, smooth in product(range(STARTS), SMOOTHING):
        apart, guess = invert(attacked_model(plan), seen, victim.label, smooth, start, iterations)
        found.append(fitted(guess, victim.image))
        if apart < MATCHED:
            return found[-1]
    original = victim.image.numpy()[0, 0] / 2 + 0.5
    return max(found, key=lambda image: ssim(image, original))


def load_victims(count: int) -> list[Victim]:
    """Take every 50th test image."""
    data = np.load(data_folder() / "pneumoniamnist.npz")
    chosen = slice(0, 50 * count, 50)
    images = torch.from_numpy(data["test_images"][chosen]).float() / 127.5 - 1
    labels = torch.from_numpy(data["test_labels"][chosen].astype(np.int64)).flatten()
    return [Victim(i[None, None], label[None]) for i, label in zip(images, labels, strict=True)]


def draw(pictures: list[list[np.ndarray]], titles: list[str]) -> None:
    """Draw originals and reconstructions, a column per kind."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(pictures),
        len(titles),
        figsize=(2 * len(titles), 2.05 * len(pictures)),
        layout="constrained",
        squeeze=False,
    )
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            axes[y, x].imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[y, x].set_axis_off()
            if x:
                axes[y, x].set_title(f"SSIM {ssim(picture, row[0]):.2f}", fontsize=9, y=-0.13)
    for x, title in enumerate(titles):
        axes[0, x].text(0.5, 1.05, title, transform=axes[0, x].transAxes, ha="center", fontsize=10)
    figure.savefig(RESULTS / "gradient_inversion.png", dpi=110)


def main() -> None:
    """Attack every victim in every setting; write the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--models", nargs="+", default=["cnn", "attention"])
    options = parser.parse_args()
    settings = [(model, private) for model in options.models for private in (False, True)]
    scores: dict[tuple[str, bool], list[float]] = {setting: [] for setting in settings}
    pictures, grey = [], []
    for victim in load_victims(options.images):
        row = [victim.image.numpy()[0, 0] / 2 + 0.5]
        grey.append(round(ssim(np.full_like(row[0], row[0].mean()), row[0]), 4))
        for setting in settings:
            row.append(attack(victim, *setting, options.iterations))
            scores[setting].append(round(ssim(row[-1], row[0]), 4))
            print(*setting, scores[setting][-1], flush=True)
        pictures.append(row)
    rows = [
        {
            "model": model,
            "epsilon": EPSILON if private else None,
            "ssim": values,
            "ssim_mean": round(float(np.mean(values)), 4),
        }
        for (model, private), values in scores.items()
    ]
    noise = calibrate(EPSILON, DELTA, RATE, STEPS)
    command = (
        f"python benchmarks/gradient_inversion.py --images {options.images} --iterations "
        f"{options.iterations} --models {' '.join(options.models)}"
    )
    results = {"noise_multiplier": noise, "ssim_of_an_even_grey": grey, "rows": rows}
    write_results("gradient_inversion", command, results)
    named = [f"{m}, epsilon {EPSILON:g}" if p else f"{m}, no privacy" for m, p in settings]
    draw(pictures, ["original", *named])


if __name__ == "__main__":
    main()
