"""Whether a model betrays who it was trained on, with and without privacy.

    python benchmarks/membership_inference.py --models 16

The likelihood-ratio attack (LiRA; Carlini et al. 2022, online, one query) on a small CNN: many
models are trained on random halves of a pool of patients by the hospitals' own training code;
each in turn is the target, and the others tell how sure a model is of a patient it has and has
not seen. Without privacy the training is the same but for the noise. Images: BreastMNIST
(Al-Dhabyani et al. 2020, Yang et al. 2023, CC BY 4.0), small enough to be learnt by heart.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from common import RESULTS, data_folder, write_results
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from client.data.cohort import PatientSet
from client.training import predict, train_round
from shared.accounting import calibrate
from shared.models import build_model
from shared.study import Study
from simulations.seeded import SeededStream

mpl.use("svg")
CPU = torch.device("cpu")
POOL, ROUNDS, RATE, DELTA = 500, 40, 0.2, 1e-5
LEARNING_RATE = {None: 0.3, 8.0: 0.5}
ALLOWED = 0.01  # false positive rate


def study(epsilon: float | None) -> Study:
    """Return a study with a small CNN on 28 by 28 pixels."""
    return Study.model_validate(
        {
            "name": "membership",
            "task": {"classes": ["malignant", "benign"]},
            "input": {"size": 28},
            "model": {"name": "cnn", "widths": [8, 16], "hidden": 32},
            "training": {
                "learning_rate": LEARNING_RATE[epsilon],
                "momentum": 0.0 if epsilon else 0.9,
                "local_steps": 5,
                "sampling_rate": RATE,
            },
            "privacy": {"enabled": epsilon is not None, "epsilon": epsilon or 8.0, "delta": DELTA},
            "federation": {"rounds": ROUNDS},
        }
    )


def load_pool() -> tuple[PatientSet, PatientSet]:
    """Return the pool, one image a patient, and test patients."""
    data = np.load(data_folder() / "breastmnist.npz")
    images, labels = (
        np.concatenate([data[f"{part}_{what}"] for part in ("train", "val")])
        for what in ("images", "labels")
    )
    order = np.random.default_rng(0).permutation(len(images))[:POOL]
    return (
        _patients(images[order], labels[order]),
        _patients(data["test_images"], data["test_labels"]),
    )


def _patients(images: np.ndarray, labels: np.ndarray) -> PatientSet:
    return PatientSet(
        images=torch.from_numpy(images).float()[:, None] / 127.5 - 1,
        image_patient=torch.arange(len(images)),
        labels=torch.from_numpy(labels.astype(np.int64)).flatten(),
        patients=tuple(str(n) for n in range(len(images))),
    )


def subset(pool: PatientSet, members: np.ndarray) -> PatientSet:
    """Return the patients that are members, bool [patients]."""
    index = torch.from_numpy(np.flatnonzero(members))
    names = tuple(pool.patients[i] for i in index.tolist())
    return PatientSet(pool.images[index], torch.arange(len(index)), pool.labels[index], names)


def confidences(
    epsilon: float | None, pool: PatientSet, test: PatientSet, members: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Train one model on the members.

    Returns:
        Logit of the probability of the true class, float64 [pool], and the test AUC.
    """
    plan = study(epsilon)
    noise = 0.0
    if epsilon is not None:
        noise = calibrate(epsilon, DELTA, RATE, plan.training.local_steps * ROUNDS)
    model, stream, mine = build_model(plan), SeededStream(seed, "shadow"), subset(pool, members)
    for number in range(1, ROUNDS + 1):
        train_round(
            model,
            mine,
            plan,
            size=len(mine),
            noise_multiplier=noise,
            round_number=number,
            stream=stream,
            device=CPU,
            physical_batch=128,
        )
    auc = roc_auc_score(test.labels, predict(model, test.images, CPU, 256)[:, 1])
    with torch.no_grad():
        logits = model(pool.images).double()
    true = logits[torch.arange(len(logits)), pool.labels]
    other = logits[torch.arange(len(logits)), 1 - pool.labels]
    return (true - other).numpy(), float(auc)


def lira(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attack each model with the help of all others.

    Args:
        scores: Logits of every model on every patient, [models, patients].
        members: Who was trained on, bool of the same shape.

    Returns:
        Log likelihood ratios and the truth, both [models * patients].
    """
    found = []
    for target in range(len(scores)):
        rest = np.arange(len(scores)) != target
        inside = np.where(members[rest], scores[rest], np.nan)
        outside = np.where(members[rest], np.nan, scores[rest])
        # One spread for all patients: few models would not tell one for each (section VI-C).
        mean_in, mean_out = np.nanmean(inside, axis=0), np.nanmean(outside, axis=0)
        std_in = np.nanmean((inside - mean_in) ** 2) ** 0.5
        std_out = np.nanmean((outside - mean_out) ** 2) ** 0.5
        seen = scores[target]
        found.append(norm.logpdf(seen, mean_in, std_in) - norm.logpdf(seen, mean_out, std_out))
    return np.concatenate(found), members.ravel()


def balanced_members(models: int) -> np.ndarray:
    """Let each patient be in a random half of the models, bool [models, POOL]."""
    rng = np.random.default_rng(1)
    half = np.arange(models) < models // 2
    return np.stack([rng.permutation(half) for _ in range(POOL)], axis=1)


def run_setting(epsilon: float | None, models: int) -> tuple[dict[str, Any], np.ndarray]:
    """Train all models of a setting, attack them, and return numbers and the ROC curve."""
    pool, test = load_pool()
    members = balanced_members(models)
    trained = []
    for seed in range(models):
        trained.append(confidences(epsilon, pool, test, members[seed], seed))
        print(epsilon, seed, f"test AUC {trained[-1][1]:.3f}", flush=True)
    scores = np.stack([s for s, _ in trained])
    ratios, truth = lira(scores, members)
    wrong, right, _ = roc_curve(truth, ratios)
    row = {
        "epsilon": epsilon,
        "delta": None if epsilon is None else DELTA,
        "models": models,
        "test_auc_mean": round(float(np.mean([auc for _, auc in trained])), 4),
        "accuracy_members": round(float((scores[members] > 0).mean()), 4),
        "accuracy_others": round(float((scores[~members] > 0).mean()), 4),
        "tpr_at_1_percent_fpr": round(float(np.interp(ALLOWED, wrong, right)), 4),
        "attack_auc": round(float(roc_auc_score(truth, ratios)), 4),
    }
    print(row, flush=True)
    return row, np.stack([wrong, right])


def draw(rows: list[dict[str, Any]], curves: list[np.ndarray]) -> None:
    """Draw the attacks' ROC curves, both axes logarithmic."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    for row, (wrong, right) in zip(rows, curves, strict=True):
        name = "no privacy" if row["epsilon"] is None else f"epsilon {row['epsilon']:g}"
        label = f"{name}: {100 * row['tpr_at_1_percent_fpr']:.1f} % at 1 %"
        axes.plot(wrong, right, label=label)
    axes.plot([1e-4, 1], [1e-4, 1], color="grey", ls=":", label="guessing")
    axes.axvline(ALLOWED, color="grey", lw=0.6)
    axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(RESULTS / "membership_inference.svg")


def main() -> None:
    """Attack both settings; write the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=16)
    models = parser.parse_args().models
    rows, curves = zip(*(run_setting(e, models) for e in LEARNING_RATE), strict=True)
    command = f"python benchmarks/membership_inference.py --models {models}"
    write_results("membership_inference", command, list(rows))
    draw(list(rows), list(curves))


if __name__ == "__main__":
    main()
