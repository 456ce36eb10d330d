"""Whether a federation can be built at all, found out before anything is computed."""

from __future__ import annotations

from shared.errors import ConsiliumError
from simulations.build import build_from
from simulations.datasets import outline_dataset
from simulations.scenario import Scenario


def find_obstacle(scenario: Scenario, seed: int) -> ConsiliumError | None:
    """Return the error that would keep a scenario's federation from being built, if any.

    The patients are dealt, degraded and split as for training, by the same code and the same
    chance, but without images: what these look like decides nothing of it.
    """
    plain = scenario.model_copy(update={"shifts": ()})
    try:
        build_from(outline_dataset(scenario.data, seed), plain, seed)
    except ConsiliumError as error:
        return error
    except Exception:  # noqa: BLE001
        # What nobody foresaw is told when the cell is reached, with its traceback.
        return None
    return None
