"""Flower's simulation engine without its waiting: apps on a grid of virtual nodes, in-process.

The messages, the ServerApp, the ClientApp and the Ray actors are Flower's. Its own loop around
them is left out: it looks for messages every tenth of a second, at a cost that grows with the
square of the number of nodes, and ends Ray after each run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = tuple[Message, Message]
"""A message and the reply to it."""


class Executor(ABC):
    """Runs messages through a ClientApp, somewhere."""

    @abstractmethod
    def start(self, message: Message, context: Context) -> None:
        """Take a message; returns at once."""

    @abstractmethod
    def finish(self) -> Iterator[Answer]:
        """Wait until at least one message is answered, and yield those that are."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a message that was taken is not answered yet."""


class InProcess(Executor):
    """Runs one message after the other in this process.

    Args:
        app: The ClientApp.
    """

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._waiting: deque[tuple[Message, Context]] = deque()

    def start(self, message: Message, context: Context) -> None:
        """Put the message in the queue."""
        self._waiting.append((message, context))

    def finish(self) -> Iterator[Answer]:
        """Run the first message of the queue."""
        message, context = self._waiting.popleft()
        yield message, self._app(message, context)

    @property
    def busy(self) -> bool:
        """Whether the queue is not empty."""
        return bool(self._waiting)


class SimulationGrid(Grid):
    """A Flower grid of virtual nodes whose ids are 1, 2, ...; node n has partition n - 1.

    Replies arrive during `wait`, and nowhere else.

    Args:
        executor: Runs the messages.
        nodes: Number of nodes.
        run_config: What both apps find in their contexts.
    """

    def __init__(self, executor: Executor, nodes: int, run_config: Mapping[str, str]) -> None:
        self.run_config = run_config
        self._executor = executor
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={PARTITION_ID_KEY: node - 1},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for node in range(1, nodes + 1)
        }
        self._replies: dict[str, Message] = {}

    @property
    def busy(self) -> bool:
        """Whether a reply is still to come."""
        return self._executor.busy

    def wait(self) -> None:
        """Wait for at least one reply; only where the grid is busy."""
        for message, reply in self._executor.finish():
            self._replies[message.metadata.message_id] = reply

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return self._contexts.keys()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the executor; return their ids."""
        pushed = []
        for message in messages:
            pushed.append(str(uuid4()))
            message.metadata.__dict__["_message_id"] = pushed[-1]
            self._executor.start(message, self._contexts[message.metadata.dst_node_id])
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived for these messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and return all replies; `timeout` has no meaning here."""
        pushed = self.push_messages(messages)
        while self.busy:
            self.wait()
        return self.pull_messages(pushed)

    @property
    def run(self) -> Run:
        """The run: an empty one."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def run_server(server: ServerApp, grid: SimulationGrid) -> None:
    """Run a ServerApp on a grid, in this thread, until it returns."""
    # Flower tells in global variables who speaks; in a simulation it is always the server.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    context = Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), dict(grid.run_config))
    server(grid, context)


def failure(message: Message, error: Exception) -> Message:
    """Return the reply Flower gives for a ClientApp that raised an exception."""
    reason = f"{type(error)}:<'{error}'>"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
