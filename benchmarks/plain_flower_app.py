"""The app the simulation engine is measured against: plain Flower and Opacus, as one writes it.

It follows Flower's quickstart for PyTorch and its Opacus example: a train and an evaluate phase,
the partition loaded from the file in each, a new model, data loader and privacy engine for each
message, and FedAvg. Model, steps, expected lot, clipping and noise are those of the study that
our engine runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from opacus import PrivacyEngine
from opacus.grad_sample import register_grad_sampler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client.privacy.dpsgd import standardised_conv_gradient
from shared.models import build_model
from shared.models.layers import StandardisedConv2d
from shared.study import Study

HELD_OUT = 0.15


def partition(npz: Path, number: int, sites: int) -> tuple[TensorDataset, TensorDataset]:
    """Load one site's patients from the file: those it trains on, and those it keeps."""
    with np.load(npz) as data:
        images = data["train_images"].astype(np.float32)[:, None] / 127.5 - 1
        labels = data["train_labels"].ravel().astype(np.int64)
    own = np.array_split(np.random.default_rng(0).permutation(len(labels)), sites)[number]
    kept = max(1, round(HELD_OUT * len(own)))
    sides = own[kept:], own[:kept]
    train, held_out = (
        TensorDataset(torch.from_numpy(images[side]), torch.from_numpy(labels[side]))
        for side in sides
    )
    return train, held_out


def make_client(npz: Path, study: Study, noise: float, sites: int, epsilon: bool) -> ClientApp:
    """Return the ClientApp.

    Args:
        npz: The images.
        study: Gives model, steps, rate and clipping.
        noise: Noise multiplier; 0 trains by plain SGD, without Opacus.
        sites: Number of partitions.
        epsilon: Whether each round ends with the privacy engine's epsilon, as in the example.
    """
    app = ClientApp()
    plan = study.training

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        own, _ = partition(npz, int(context.node_config["partition-id"]), sites)
        model = build_model(study)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        model.train()
        optimiser = torch.optim.SGD(model.parameters(), lr=plan.learning_rate)
        lot = max(1, round(plan.sampling_rate * len(own)))
        loader = DataLoader(own, batch_size=lot, shuffle=True)
        engine, watched = PrivacyEngine(), model
        if noise:
            register_grad_sampler(StandardisedConv2d)(standardised_conv_gradient)
            watched, optimiser, loader = engine.make_private(
                module=model,
                optimizer=optimiser,
                data_loader=loader,
                noise_multiplier=noise,
                max_grad_norm=study.privacy.clip,
            )
        criterion, steps = nn.CrossEntropyLoss(), 0
        while steps < plan.local_steps:
            for images, labels in loader:
                if steps == plan.local_steps:
                    break
                optimiser.zero_grad()
                criterion(watched(images), labels).backward()
                optimiser.step()
                steps += 1
        metrics = {"num-examples": len(own)}
        if noise and epsilon:
            metrics["epsilon"] = engine.get_epsilon(1e-5)
        arrays = ArrayRecord(getattr(watched, "_module", watched).state_dict())
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        _, kept = partition(npz, int(context.node_config["partition-id"]), sites)
        model = build_model(study)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in DataLoader(kept, batch_size=256):
                correct += int((model(images).argmax(dim=1) == labels).sum())
        metrics = MetricRecord({"num-examples": len(kept), "accuracy": correct / len(kept)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def make_server(study: Study, mark: Callable[[], None]) -> ServerApp:
    """Return the ServerApp: FedAvg over all sites; `mark` is called at each round's end."""
    app = ServerApp()

    class Timed(FedAvg):
        def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
            result = super().aggregate_evaluate(server_round, replies)
            mark()
            return result

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_train=1.0, fraction_evaluate=1.0)
        arrays = ArrayRecord(build_model(study).state_dict())
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=study.federation.rounds)

    return app
