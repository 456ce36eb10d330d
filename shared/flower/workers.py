"""Worker processes for simulations: Flower's actors on Ray, started once for many runs."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from shared.errors import SimulationError
from shared.flower.simulation import Answer, Executor, failure

OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory Ray may use for messages; what exceeds it goes to disk."""

AHEAD = 2
"""Messages given to an actor at once, so that it need not wait for the server in between."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that it will change
    "RAY_enable_metrics_collection": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_TEMPORARY = "consilium-ray-"


@dataclass(frozen=True)
class WorkerSettings:
    """What the workers may use.

    Attributes:
        workers: Processes on this machine.
        cpus: Of each, as Ray counts them.
        gpus: Of each; parts share a GPU.
        address: Of a running Ray cluster, which then decides how many workers there are.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""


class Workers(Executor):
    """Runs messages in Flower's actors; start it in the main thread, and close it.

    Ray's processes end with the thread that started them, however that ends.

    Args:
        settings: How many, and what each may use.
        load: Returns the ClientApp; a function of an installed module.

    Raises:
        SimulationError: Ray is not installed or does not start, or has no room for a worker.
    """

    def __init__(self, settings: WorkerSettings, load: Callable[[], ClientApp]) -> None:
        if find_spec("ray") is None:
            raise SimulationError(
                "simulations of several sites need Ray, which is not installed",
                todo="Run `pip install 'consilium-fl[simulation]'`",
            )
        self._load = load
        self._folder = _new_folder()
        self._actors: list[Any] = []
        try:
            self._actors = _start(settings, self._folder)
        except BaseException:
            self.close()
            raise
        # After Ray's own handler was registered, so as to run before it.
        atexit.register(self.close)
        self._free = deque(self._actors * AHEAD)
        self._waiting: deque[tuple[Message, Context]] = deque()
        self._running: dict[Any, tuple[Any, Message]] = {}

    def __len__(self) -> int:
        return len(self._actors)

    def close(self) -> None:
        """End all of Ray's processes, busy or not."""
        import ray

        atexit.unregister(self.close)
        while self._actors:
            ray.kill(self._actors.pop())
        ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, message: Message, context: Context) -> None:
        """Give the message to a free actor, or queue it."""
        self._waiting.append((message, context))
        self._hand_out()

    def finish(self) -> Iterator[Answer]:
        """Wait for an actor, and yield what has been answered.

        Raises:
            SimulationError: A worker process has died.
        """
        import ray

        ready, _ = ray.wait(list(self._running), num_returns=1)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for done in dict.fromkeys([*ready, *more]):
            actor, message = self._running.pop(done)
            self._free.append(actor)
            self._hand_out()
            yield message, self._result(done, message)

    @property
    def busy(self) -> bool:
        """Whether a message is queued or running."""
        return bool(self._waiting or self._running)

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            message, context = self._waiting.popleft()
            actor = self._free.popleft()
            node = str(context.node_id)
            self._running[actor.run.remote(self._load, message, node, context)] = actor, message

    @staticmethod
    def _result(done: Any, message: Message) -> Message:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            reply: Message = ray.get(done)[1]
        except RayTaskError as error:
            return failure(message, error)
        except RayError as error:
            raise SimulationError(
                f"a worker process of the simulation has ended: {type(error).__name__}",
                todo="Most often memory ran out: use fewer workers, then start again",
            ) from None
        return reply


def _start(settings: WorkerSettings, folder: Path) -> list[Any]:
    """Start or join Ray, and return Flower's actors, one for each worker."""
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.address:
        check_reachable(settings.address)
        options["address"] = settings.address
    else:
        options |= {
            "num_cpus": max(1, round(settings.workers * settings.cpus)),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
    try:
        with _environment():
            from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor

            if not ray.is_initialized():
                on_term = signal.getsignal(signal.SIGTERM)
                ray.init(**options)
                # Ray ends the process there and then; whoever runs a simulation may want a word.
                signal.signal(signal.SIGTERM, on_term)
            resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
            pool = BasicActorPool(ClientAppActor, resources, {})
            pool.add_actors_to_pool(pool.actors_capacity)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise SimulationError(
            f"Ray did not start: {str(error).splitlines()[0]}",
            settings.address or "this machine",
            "Check --ray-address, and that a worker's CPUs and GPUs do not exceed the machine's",
        ) from None
    return list(pool.pool)


def check_reachable(address: str) -> None:
    """Knock at HOST:PORT; Ray itself would try for many minutes, in silence.

    Raises:
        SimulationError: It is no address, or nobody answers there.
    """
    if address == "auto":
        return  # Ray looks it up in its own files
    parts = re.fullmatch(r"(?:ray://)?([^/]+):([0-9]+)", address)
    if parts is None:
        raise SimulationError(
            "this is not the address of a Ray cluster",
            address,
            "Give --ray-address as HOST:PORT, ray://HOST:PORT or auto",
        )
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise SimulationError(
            f"no Ray cluster answers: {error}",
            address,
            "Check --ray-address, and that `ray start --head` runs there",
        ) from None


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the variables Ray's processes inherit, for as long as they are being started."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _new_folder() -> Path:
    """Make a folder for Ray's sockets and logs; remove those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_TEMPORARY}*"):
        if not Path("/proc", folder.name.split("-")[2]).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=parent))
