"""What the server does with a round's combined update before it is added to the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.study import ServerOptimiser
from shared.transport import Weights

Floats = NDArray[np.float64]


class Optimiser(Protocol):
    """Turns combined updates into changes of the global weights, round by round.

    Attributes:
        state: All it remembers, as float32 arrays: an optimiser made from them goes on with the
            same bits.
    """

    state: Weights

    def step(self, change: Weights) -> Weights:
        """Return the change of the weights for a round's combined update."""


def make_optimiser(plan: ServerOptimiser, state: Weights) -> Optimiser:
    """Return the optimiser of a study.

    Args:
        plan: Which one, with its settings.
        state: As `initial_state` gave it, or as it was left after the round before.
    """
    makers: dict[str, Callable[[ServerOptimiser, Weights], Optimiser]] = {
        "none": Plain,
        "momentum": Momentum,
        "adam": Adam,
        "yogi": Yogi,
    }
    return makers[plan.name](plan, state)


def initial_state(plan: ServerOptimiser, weights: Weights) -> Weights:
    """Return the state before the first round.

    The mean of updates starts at 0 and that of their squares at tau squared, the least that
    Reddi et al. allow.
    """
    state: Weights = {}
    if plan.name in ("momentum", "adam", "yogi"):
        state |= {f"mean/{name}": np.zeros_like(array) for name, array in weights.items()}
    if plan.name in ("adam", "yogi"):
        start = np.float32(plan.tau**2)
        state |= {f"square/{name}": np.full_like(a, start) for name, a in weights.items()}
    return state


class Plain:
    """Adds the update, times the learning rate (FedAvg with a server learning rate)."""

    def __init__(self, plan: ServerOptimiser, state: Weights) -> None:
        self._plan, self.state = plan, dict(state)

    def step(self, change: Weights) -> Weights:
        """Return the change scaled; at a rate of 1, as it is."""
        rate = self._plan.learning_rate
        return {name: _float32(rate * array.astype(np.float64)) for name, array in change.items()}


class Momentum:
    """Adds the running mean of the updates.

    m = b m + (1 - b) d and the weights change by rate * m. This is FedAvgM (Hsu, Qi and Brown
    2019, "Measuring the effects of non-identical data distribution", section 5) with its rate
    divided by 1 - b: at rate 1 it goes as far as averaging does, only steadier; their momentum
    at rate 1 is rate 1 / (1 - b) here.
    """

    def __init__(self, plan: ServerOptimiser, state: Weights) -> None:
        self._plan, self.state = plan, dict(state)

    def step(self, change: Weights) -> Weights:
        """Take the update into the mean and return the mean, scaled."""
        result: Weights = {}
        for name, update in change.items():
            mean = self._mean(name, update.astype(np.float64))
            result[name] = self._direction(name, mean, update.astype(np.float64))
        return result

    def _mean(self, name: str, update: Floats) -> Floats:
        """Take the update into the running mean and return it."""
        decay, key = self._plan.momentum, f"mean/{name}"
        self.state |= {key: _float32(decay * self.state[key] + (1 - decay) * update)}
        return self.state[key].astype(np.float64)

    def _direction(self, name: str, mean: Floats, update: Floats) -> NDArray[np.float32]:
        return _float32(self._plan.learning_rate * mean)


class Adam(Momentum):
    """FedAdam (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2).

    m as in momentum, v = b2 v + (1 - b2) d^2, and the weights change by
    rate * m / (sqrt(v) + tau). As in the paper, nothing corrects for the start.
    """

    def _direction(self, name: str, mean: Floats, update: Floats) -> NDArray[np.float32]:
        key = f"square/{name}"
        self.state |= {key: _float32(self._square(self.state[key].astype(np.float64), update))}
        root = np.sqrt(self.state[key].astype(np.float64))
        return _float32(self._plan.learning_rate * mean / (root + self._plan.tau))

    def _square(self, before: Floats, update: Floats) -> Floats:
        square: Floats = self._plan.beta2 * before + (1 - self._plan.beta2) * update**2
        return square


class Yogi(Adam):
    """FedYogi (Reddi et al. 2021, algorithm 2; Zaheer et al. 2018).

    As Adam, but v = v - (1 - b2) d^2 sign(v - d^2): v moves by what the newest square is, so it
    forgets large ones more slowly.
    """

    def _square(self, before: Floats, update: Floats) -> Floats:
        new = update**2
        square: Floats = before - (1 - self._plan.beta2) * new * np.sign(before - new)
        return square


def _float32(values: Floats) -> NDArray[np.float32]:
    """Round once, so that what goes on in memory is what a checkpoint holds."""
    return values.astype(np.float32)
